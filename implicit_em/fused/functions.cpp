// The loops' own functions by themselves, for measuring what they err. Stands after `vectors.cpp`.

template <typename Function>
inline void elementwise(const Function& function, const T* x, int64_t n, T* y) {
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t there = std::min(LANES, n - i);
    function(V::loadu(x + i, there)).store(y + i, there);
  }
}

extern "C" void exponential_of(const T* x, int64_t n, T* y) { elementwise(exponential<>, x, n, y); }

extern "C" void log_one_plus_of(const T* x, int64_t n, T* y) { elementwise(log_one_plus, x, n, y); }
