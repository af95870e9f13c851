// Vectors whose lanes are samples, and tiles of samples that stay in the cache. The number type T stands before this text.

using V = at::vec::Vectorized<T>;

using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
using Bits = at::vec::Vectorized<Index>;

constexpr int64_t LANES = V::size();
constexpr bool IS_NARROW = sizeof(T) < sizeof(double);
constexpr int64_t DIGITS = IS_NARROW ? 23 : 52;  // of a number, behind the point
constexpr int64_t BIAS = IS_NARROW ? 127 : 1023;  // of its exponent
constexpr int64_t VECTORS = 4;                // registers of samples at a time
constexpr int64_t GROUP = VECTORS * LANES;    // samples in them
constexpr int64_t TILE_BYTES = 1 << 16;       // of a tile: what stays in the cache while components pass
constexpr int64_t LONGEST_TILE = 512;
static_assert(LONGEST_TILE % GROUP == 0);

// What little is done in float64, whatever T is.
namespace wide {
using T = double;
using V = at::vec::Vectorized<T>;
constexpr int64_t LANES = V::size();
inline V log_one_plus(V q) { return q.log1p(); }
}  // namespace wide

// ln 2 in two parts, the first so short that a whole number of them is a number of the format.
constexpr T LOG_2_HIGH = IS_NARROW ? 0x1.62e4p-1 : 0x1.62e42fefap-1;
constexpr T LOG_2_LOW = IS_NARROW ? 0x1.7f7d1cp-20 : 0x1.cf79abc9e3b3ap-40;

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

// 2^LIFT e^x for x ≤ 0, and 0 where that is less than half the smallest normal number. A library's function would be
// called, and a call empties the registers; and results below the normal range take many times as long as others.
//
// x = n·ln 2 + r with |r| ≤ ½ ln 2; e^r by Taylor, whose remainder |r|^(ORDER + 1)/(ORDER + 1)! is below a tenth of an ulp;
// 2^n is made of its bits, which are 0 where n is too low. What it errs is measured: `implicit-em primitives`.
template <int64_t LIFT = 0>
inline V exponential(V x) {
  constexpr int64_t ORDER = IS_NARROW ? 7 : 13;
  // Added to a small number, it leaves the nearest integer, and the bias of exponents, in the last bits.
  constexpr T SHIFT = T(1.5) * T(int64_t(1) << DIGITS) + T(BIAS + LIFT);
  x = at::vec::clamp_min(x, V(T(-BIAS - LIFT) * LOG_2_HIGH));
  const V shifted = at::vec::fmadd(x, V(T(1.4426950408889634)), V(SHIFT)), n = shifted - V(SHIFT);
  const V r = at::vec::fmadd(n, V(-LOG_2_LOW), at::vec::fmadd(n, V(-LOG_2_HIGH), x));
  V rest(T(1) / factorial(ORDER));
  for (int64_t i = ORDER - 1; i > 1; --i) rest = at::vec::fmadd(rest, r, V(T(1) / factorial(i)));
  const V power = at::vec::cast<T>(bits(shifted) << Bits(DIGITS));
  return (at::vec::fmadd(r * r, rest, r) + V(1)) * power;
}

// log(1 + q) in registers, as `exponential` is; where q ≤ −1 or q is not finite, the library's.
//
// 1 + q = 2^k (1 + f) with f in [−¼, ½], and f from q itself, as 1 + q has lost its last digits. Then
// log(1 + f) = f − (f²/2 − s (f²/2 + z·(2/3 + 2z/5 + 2z²/7 + …))) with s = f/(2 + f) and z = s² ≤ 1/25.
// Source: Muller et al. (2018), chapter 10; the last formula is that of log1p in FDLIBM.
inline V log_one_plus(V q) {
  constexpr int64_t TERMS = IS_NARROW ? 5 : 12;
  const V y = q + V(1);
  const Bits exponent = (bits(y) - bits(V(T(0.75)))) & Bits(-(Index(1) << DIGITS));
  const V power = at::vec::cast<T>(bits(V(4)) - exponent) * V(T(0.25));  // 2^−k; a quarter of it may be below the normal range
  const V f = at::vec::fmadd(q, power, power - V(1));
  const V k = at::vec::convert_to_fp_of_same_size<T>(exponent) * V(T(1) / T(int64_t(1) << DIGITS));
  const V s = f / (V(2) + f), z = s * s, half = V(T(0.5)) * f * f;
  V rest(T(2) / T(2 * TERMS + 1));
  for (int64_t i = TERMS - 1; i > 0; --i) rest = at::vec::fmadd(rest, z, V(T(2) / T(2 * i + 1)));
  const V low = at::vec::fmadd(s, at::vec::fmadd(rest, z, half), k * V(LOG_2_LOW));
  const V result = at::vec::fmadd(k, V(LOG_2_HIGH), f - (half - low));
  const V usual = (q > V(-1)) & (q < V(std::numeric_limits<T>::infinity()));
  return usual.zero_mask() ? V::blendv(q.log1p(), result, usual) : result;
}
