// Vectors whose lanes are samples, and tiles of samples that stay in the cache. The number type T stands before this text.

using V = at::vec::Vectorized<T>;

using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
using Bits = at::vec::Vectorized<Index>;

constexpr int64_t LANES = V::size();
constexpr bool IS_NARROW = sizeof(T) < sizeof(double);
constexpr int64_t VECTORS = 4;                // registers of samples at a time
constexpr int64_t GROUP = VECTORS * LANES;    // samples in them
constexpr int64_t TILE_BYTES = 1 << 16;       // of a tile: what stays in the cache while components pass
constexpr int64_t LONGEST_TILE = 512;
static_assert(LONGEST_TILE % GROUP == 0);

constexpr T factorial(int64_t n) { return n < 2 ? T(1) : T(n) * factorial(n - 1); }

inline Bits bits(V value) { return at::vec::cast<Index>(value); }

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

// A sum in halves: a lane takes part in log2 of LANES additions.
inline double sum_of_lanes(V value) {
  return at::vec::vec_reduce_all<T>([](V a, V b) { return a + b; }, value);
}

// e^x for x ≤ 0, and 0 where that is less than half the smallest normal number. A library's function would be called, and
// a call empties the registers; and results below the normal range take many times as long as others.
//
// x = n·ln 2 + r with |r| ≤ ½ ln 2; e^r by Taylor, whose remainder |r|^(ORDER + 1)/(ORDER + 1)! is below a tenth of an ulp;
// 2^n is made of its bits, which are 0 where n is too low. What it errs was measured: `implicit-em primitives`.
inline V exponential(V x) {
  constexpr bool SINGLE = sizeof(T) == 4;
  constexpr int64_t DIGITS = SINGLE ? 23 : 52, BIAS = SINGLE ? 127 : 1023, ORDER = SINGLE ? 7 : 13;
  // ln 2 in two parts, the first so short that n times it is a number of the format.
  constexpr T HIGH = SINGLE ? 0x1.62e4p-1 : 0x1.62e42fefap-1, LOW = SINGLE ? 0x1.7f7d1cp-20 : 0x1.cf79abc9e3b3ap-40;
  // Added to a small number, it leaves the nearest integer, and the bias of exponents, in the last bits.
  constexpr T SHIFT = T(1.5) * T(int64_t(1) << DIGITS) + T(BIAS);
  x = at::vec::clamp_min(x, V(T(-BIAS) * HIGH));
  const V shifted = at::vec::fmadd(x, V(T(1.4426950408889634)), V(SHIFT)), n = shifted - V(SHIFT);
  const V r = at::vec::fmadd(n, V(-LOW), at::vec::fmadd(n, V(-HIGH), x));
  V rest(T(1) / factorial(ORDER));
  for (int64_t i = ORDER - 1; i > 1; --i) rest = at::vec::fmadd(rest, r, V(T(1) / factorial(i)));
  const V power = at::vec::cast<T>(bits(shifted) << Bits(DIGITS));
  return (at::vec::fmadd(r * r, rest, r) + V(1)) * power;
}
