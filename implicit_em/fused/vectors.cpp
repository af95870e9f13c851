// Vectors whose lanes are samples, and tiles of samples that stay in the cache. The number type T stands before this text.

using V = at::vec::Vectorized<T>;

constexpr int64_t LANES = V::size();
constexpr int64_t VECTORS = 4;                // registers of samples at a time
constexpr int64_t GROUP = VECTORS * LANES;    // samples in them
constexpr int64_t TILE_BYTES = 1 << 16;       // of a tile: what stays in the cache while components pass
constexpr int64_t LONGEST_TILE = 512;
static_assert(LONGEST_TILE % GROUP == 0);

inline V ignore(V value, V where, V by) { return V::blendv(value, by, where); }

// −∞ as a shift would make NaN of −∞ − (−∞).
inline V finite(V shift) { return ignore(shift, shift == V(-std::numeric_limits<T>::infinity()), V(0)); }

// Samples [first, first + width) of x [N, D] as [feature, sample]; the last sample stands for those that are not there.
inline void load_tile(const T* x, int64_t N, int64_t D, int64_t first, int64_t width, T* tile) {
  for (int64_t n = 0; n < width; ++n) {
    const T* row = x + std::min(first + n, N - 1) * D;
    for (int64_t d = 0; d < D; ++d) tile[d * width + n] = row[d];
  }
}

inline double sum_of_lanes(V value) {
  T lanes[LANES];
  value.store(lanes);
  double total = 0;
  for (int64_t i = 0; i < LANES; ++i) total += lanes[i];
  return total;
}
