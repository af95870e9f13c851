// The loops' exponential by itself, for measuring what it errs. Stands after `vectors.cpp`.

extern "C" void exponentials(const T* x, int64_t n, T* y) {
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t there = std::min(LANES, n - i);
    exponential(V::loadu(x + i, there)).store(y + i, there);
  }
}
