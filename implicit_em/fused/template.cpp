// Log-partition of N samples over K components, and its gradients or those of a posterior mean, without an N×K matrix.
//
// What stands before this text: `vectors.cpp`, and what `cpu.py` writes for one kernel and dtype:
//   SHAPE, N_PARAMETERS, AXES             how a pair is reduced, and which axes parameters have
//   energy(q, mu, p)                      the energy of a pair, or of one feature of it where SHAPE is FEATURES
//   terms(q, mu, p, out)                  where HAS_LOGARITHM the energy of a feature is rest + factor·log(1 + inside), and
//                                         these three are in `out`; the factor is the same for all features, the rest 0
//                                         unless HAS_REST
//   slope(q, mu, p)                       its derivative as the shape wants it, see `Shape`
//   parameter_slopes(q, mu, p, out)       its derivatives in the parameters
//   wide::energy(q, mu, p)                the energy again, of float64
//   MEANS                                 whether the loops are those of Σ_k r_k v_k, see `posterior.cpp`
//
// Lanes are samples. So a sum over components or features needs no horizontal step, and components and features may
// have any number; only sums over samples, for gradients, end with one.

constexpr int64_t ROWS = SHAPE == FEATURES ? 1 : 2;  // components at a time: what they keep has to stay in registers
constexpr int64_t ARMS = 4;                          // and of gradients
constexpr int64_t WIDTH = 4;                         // features at a time, of gradients
constexpr int64_t BLOCK = 8;                         // features in one partial sum
constexpr int64_t CHUNK = 32;                        // components between two rescalings, and in one partial sum
constexpr int64_t STRANDS = 4;                       // sums of a chunk's exponentials, side by side

// Weights in gradients are so many powers of two too large, so that none of them is below the normal range; their sums are
// brought back.
constexpr int64_t LIFT = DIGITS + 1;
constexpr double LOWERED = 1.0 / double(int64_t(1) << LIFT);

// Whether the largest score is worked out again, and how far off it may be.
constexpr bool PEAKS = IS_NARROW && !MEANS;
constexpr double CORRECTED = 1;

using Parameters = V[N_PARAMETERS + 1];

struct Problem {
  const T* x;            // [N, D]
  const T* mu;           // [K, D]
  const double* log_weights;  // [K]
  const T* const* parameters;
  int64_t n_samples, n_components, n_features;
};

inline void load_scalars(const Problem& problem, Parameters& p) {
  for (int64_t i = 0; i < N_PARAMETERS; ++i)
    if (AXES[i] == SCALAR) p[i] = V(problem.parameters[i][0]);
}

inline void load_component(const Problem& problem, int64_t k, Parameters& p) {
  for (int64_t i = 0; i < N_PARAMETERS; ++i)
    if (AXES[i] == COMPONENT) p[i] = V(problem.parameters[i][k]);
}

inline void load_feature(const Problem& problem, int64_t k, int64_t d, Parameters& p) {
  for (int64_t i = 0; i < N_PARAMETERS; ++i)
    if (AXES[i] == FEATURE) p[i] = V(problem.parameters[i][k * problem.n_features + d]);
}

// Σ_d energy of a block of features, [first, last), of one component, for VECTORS vectors of samples.
//
// Where it is a logarithm, Σ log(1 + q) is log Π(1 + q), one logarithm for all. Π(1 + q) − 1 is what is kept: of small q it
// has all digits. Where that overflows, logarithms add up after all.
inline void block_of_energies(const Problem& problem, const T* tile, int64_t width, int64_t k, int64_t first, int64_t last,
                              Parameters& p, V (&sums)[VECTORS]) {
  const int64_t D = problem.n_features;
  V products[VECTORS], out[3];
  V &rest = out[0], &inside = out[1], &factor = out[2];
  for (int64_t j = 0; j < VECTORS; ++j) sums[j] = products[j] = V(0);
  for (int64_t d = first; d < last; ++d) {
    const V mu(problem.mu[k * D + d]);
    load_feature(problem, k, d, p);
    for (int64_t j = 0; j < VECTORS; ++j) {
      const V x = V::loadu(tile + d * width + j * LANES);
      if (!HAS_LOGARITHM) {
        sums[j] = sums[j] + energy(x, mu, p);
        continue;
      }
      terms(x, mu, p, out);
      if (HAS_REST) sums[j] = sums[j] + rest;
      products[j] = at::vec::fmadd(inside, products[j] + V(1), products[j]);
    }
  }
  if (!HAS_LOGARITHM) return;
  for (int64_t j = 0; j < VECTORS; ++j) {
    const V fits = products[j] < V(std::numeric_limits<T>::infinity());
    V logarithm = log_one_plus(products[j]);
    if (fits.zero_mask()) {
      V total(0);
      for (int64_t d = first; d < last; ++d) {
        load_feature(problem, k, d, p);
        terms(V::loadu(tile + d * width + j * LANES), V(problem.mu[k * D + d]), p, out);
        total = total + log_one_plus(inside);
      }
      logarithm = V::blendv(total, logarithm, fits);
    }
    sums[j] = at::vec::fmadd(factor, logarithm, sums[j]);
  }
}

// What a pair is reduced to, for ROWS components from k on and one group of samples; those beyond the end are the last.
inline void gather(const Problem& problem, const T* tile, int64_t width, int64_t k, int64_t end, Parameters& p,
                   V (&sums)[ROWS][VECTORS]) {
  const int64_t D = problem.n_features;
  const T* rows[ROWS];
  for (int64_t i = 0; i < ROWS; ++i) {
    rows[i] = problem.mu + std::min(k + i, end - 1) * D;
    for (int64_t j = 0; j < VECTORS; ++j) sums[i][j] = V(0);
  }
  if (SHAPE == FEATURES) load_component(problem, k, p);
  for (int64_t first = 0; first < D; first += BLOCK) {
    const int64_t last = std::min(first + BLOCK, D);
    V parts[ROWS][VECTORS];
    if (SHAPE == FEATURES) {
      block_of_energies(problem, tile, width, k, first, last, p, parts[0]);
    } else {
      for (int64_t i = 0; i < ROWS; ++i)
        for (int64_t j = 0; j < VECTORS; ++j) parts[i][j] = V(0);
      for (int64_t d = first; d < last; ++d) {
        V x[VECTORS];
        for (int64_t j = 0; j < VECTORS; ++j) x[j] = V::loadu(tile + d * width + j * LANES);
        for (int64_t i = 0; i < ROWS; ++i) {
          const V mu(rows[i][d]);
          for (int64_t j = 0; j < VECTORS; ++j) {
            const V u = SHAPE == SQUARE ? x[j] - mu : x[j];
            parts[i][j] = at::vec::fmadd(u, SHAPE == SQUARE ? u : mu, parts[i][j]);
          }
        }
      }
    }
    for (int64_t i = 0; i < ROWS; ++i)
      for (int64_t j = 0; j < VECTORS; ++j) sums[i][j] = sums[i][j] + parts[i][j];
  }
}
static_assert(SHAPE != FEATURES || ROWS == 1);

// Calls visit(component, j, reduced pair, log π_k − d, p) for every pair of a group of samples and of ROWS components
// from k on, or as many as there are before the end.
template <typename Visit>
inline void pairs(const Problem& problem, const T* tile, int64_t width, int64_t k, int64_t end, Parameters& p,
                  const Visit& visit) {
  V sums[ROWS][VECTORS];
  gather(problem, tile, width, k, end, p, sums);
  for (int64_t i = 0; i < std::min(ROWS, end - k); ++i) {
    if (SHAPE != FEATURES) load_component(problem, k + i, p);
    const V log_weight(T(problem.log_weights[k + i]));
    for (int64_t j = 0; j < VECTORS; ++j) {
      const V d = SHAPE == FEATURES ? sums[i][j] : energy(sums[i][j], V(0), p);
      visit(k + i, j, sums[i][j], log_weight - d, p);
    }
  }
}

// sum + lost, exactly but for the rounding of `lost`, after a term is added. Source: Knuth (1969).
inline void add(V term, V& sum, V& lost) {
  const V total = sum + term, back = total - sum;
  lost = lost + ((sum - (total - back)) + (term - back));
  sum = total;
}

// wide::LANES numbers in float64, the i-th being number(i).
template <typename Number>
inline wide::V widened(const Number& number) {
  double values[wide::LANES];
  for (int64_t i = 0; i < wide::LANES; ++i) values[i] = number(i);
  return wide::V::loadu(values);
}

// The score of one component for each of wide::LANES samples, in float64; the samples are next to one another in the tile.
inline wide::V wide_scores(const Problem& problem, const T* tile, int64_t width, const Index* nearest) {
  const int64_t D = problem.n_features;
  const T* locations[wide::LANES];
  for (int64_t i = 0; i < wide::LANES; ++i) locations[i] = problem.mu + nearest[i] * D;
  wide::V p[N_PARAMETERS + 1], sum(0);
  for (int64_t a = 0; a < N_PARAMETERS; ++a)
    if (AXES[a] != FEATURE)
      p[a] = widened([&](int64_t i) { return problem.parameters[a][AXES[a] == SCALAR ? 0 : nearest[i]]; });
  for (int64_t d = 0; d < D; ++d) {
    const wide::V x = widened([&](int64_t i) { return tile[d * width + i]; });
    const wide::V mu = widened([&](int64_t i) { return locations[i][d]; });
    for (int64_t a = 0; a < N_PARAMETERS; ++a)
      if (AXES[a] == FEATURE) p[a] = widened([&](int64_t i) { return problem.parameters[a][nearest[i] * D + d]; });
    if (SHAPE == FEATURES)
      sum = sum + wide::energy(x, mu, p);
    else if (SHAPE == SQUARE)
      sum = sum + (x - mu) * (x - mu);
    else
      sum = sum + x * mu;
  }
  const wide::V log_weight = widened([&](int64_t i) { return problem.log_weights[nearest[i]]; });
  return log_weight - (SHAPE == FEATURES ? sum : wide::energy(sum, wide::V(0), p));
}

// L of wide::LANES samples from the largest score and Σ exp(score − largest).
//
// The rounding of the largest score is most of what L errs, where one component has most of a sample. So that one score is
// worked out again in float64. Its exponential, the peak, takes the place of the 1 that stands for it in the sum, and for
// each score that is equal: `peak` comes as their number. Where scores are so large that they err by more than CORRECTED, all
// others are taken to err alike.
inline wide::V log_partition(const Problem& problem, const T* tile, int64_t width, const Index* nearest, const T* top,
                             T* total, T* peak) {
  const wide::V none(-std::numeric_limits<double>::infinity());
  wide::V highest = widened([&](int64_t i) { return top[i]; }), sum = widened([&](int64_t i) { return total[i]; });
  const wide::V impossible = highest == none;
  if (IS_NARROW) {
    const wide::V error = wide_scores(problem, tile, width, nearest) - highest;
    const wide::V corrected = at::vec::clamp(error, wide::V(-CORRECTED), wide::V(CORRECTED));
    const wide::V more = corrected.expm1(), ties = widened([&](int64_t i) { return peak[i]; });
    highest = highest + (error - corrected);
    sum = sum + ties * more;
    double sums[wide::LANES], mores[wide::LANES];
    sum.store(sums);
    more.store(mores);
    for (int64_t i = 0; i < wide::LANES; ++i) {
      total[i] = T(sums[i]);
      peak[i] = T(1 + mores[i]);
    }
  }
  return wide::V::blendv(highest + sum.log(), none, impossible);
}

// How many scores of each sample of a group are the largest; mostly one, and then the second largest is another.
inline void count_largest(const Problem& problem, const T* tile, const V (&highest)[VECTORS], const V (&second)[VECTORS],
                          Parameters& p, T* counts) {
  bool is_shared = false;
  for (int64_t j = 0; j < VECTORS; ++j) {
    V(1).store(counts + j * LANES);
    is_shared = is_shared || (highest[j] != second[j]).zero_mask();
  }
  if (!is_shared) return;
  V found[VECTORS];
  for (int64_t j = 0; j < VECTORS; ++j) found[j] = V(0);
  for (int64_t k = 0; k < problem.n_components; k += ROWS)
    pairs(problem, tile, GROUP, k, problem.n_components, p, [&](int64_t, int64_t j, V, V score, Parameters&) {
      found[j] = found[j] + ignore(V(0), score == highest[j], V(1));
    });
  for (int64_t j = 0; j < VECTORS; ++j) found[j].store(counts + j * LANES);
}

// For each sample L, its largest score, Σ exp(score − largest) and, in float32, the peak; for a posterior mean, which score is
// the largest instead of L and the peak.
extern "C" void forward(const T* x, const T* mu, const double* log_weights, const T* const* parameters,
                        int64_t n_samples, int64_t n_components, int64_t n_features, int32_t threads, T* value, T* top,
                        T* total, T* peak, Index* largest) {
  const Problem problem{x, mu, log_weights, parameters, n_samples, n_components, n_features};
  const int64_t groups = (n_samples + GROUP - 1) / GROUP;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> tile(n_features * GROUP), scores(CHUNK * GROUP);
    T tops[GROUP], totals[GROUP], peaks[GROUP];
    double values[GROUP];
    Index nearest[GROUP];
    Parameters p;
    load_scalars(problem, p);
#pragma omp for schedule(static)
    for (int64_t group = 0; group < groups; ++group) {
      load_tile(x, n_samples, n_features, group * GROUP, GROUP, tile.data());
      V highest[VECTORS], second[VECTORS], sum[VECTORS], lost[VECTORS];
      Bits best[VECTORS];
      for (int64_t j = 0; j < VECTORS; ++j) {
        highest[j] = second[j] = V(-std::numeric_limits<T>::infinity());
        sum[j] = lost[j] = V(0);
        best[j] = Bits(0);
      }
      for (int64_t first = 0; first < n_components; first += CHUNK) {
        const int64_t end = std::min(first + CHUNK, n_components);
        V before[VECTORS];
        for (int64_t j = 0; j < VECTORS; ++j) before[j] = highest[j];
        for (int64_t k = first; k < end; k += ROWS)
          pairs(problem, tile.data(), GROUP, k, end, p, [&](int64_t component, int64_t j, V, V score, Parameters&) {
            if (IS_NARROW || MEANS) best[j] = Bits::blendv(best[j], Bits(Index(component)), bits(score > highest[j]));
            if (PEAKS) second[j] = at::vec::clamp_min(at::vec::clamp_max(score, highest[j]), second[j]);
            highest[j] = at::vec::clamp_min(score, highest[j]);
            score.store(scores.data() + (component - first) * GROUP + j * LANES);
          });
        for (int64_t j = 0; j < VECTORS; ++j) {
          const V shift = finite(highest[j]);
          V parts[STRANDS];
          for (int64_t i = 0; i < STRANDS; ++i) parts[i] = V(0);
          for (int64_t k = 0; k < end - first; ++k)
            parts[k % STRANDS] =
                parts[k % STRANDS] + exponential(V::loadu(scores.data() + k * GROUP + j * LANES) - shift);
          const V factor = exponential(before[j] - shift);
          sum[j] = sum[j] * factor;
          lost[j] = lost[j] * factor;
          add((parts[0] + parts[1]) + (parts[2] + parts[3]), sum[j], lost[j]);
        }
      }
      for (int64_t j = 0; j < VECTORS; ++j) {
        highest[j].store(tops + j * LANES);
        (sum[j] + lost[j]).store(totals + j * LANES);
        best[j].store(nearest + j * LANES);
      }
      if (PEAKS) count_largest(problem, tile.data(), highest, second, p, peaks);
      const int64_t count = std::min(GROUP, n_samples - group * GROUP);
      if (!MEANS)
        for (int64_t n = 0; n < count; n += wide::LANES)
          log_partition(problem, tile.data() + n, GROUP, nearest + n, tops + n, totals + n, peaks + n).store(values + n);
      for (int64_t n = 0; n < count; ++n) {
        if (MEANS)
          largest[group * GROUP + n] = nearest[n];
        else
          value[group * GROUP + n] = T(values[n]);
        if (PEAKS) peak[group * GROUP + n] = peaks[n];
        top[group * GROUP + n] = tops[n];
        total[group * GROUP + n] = totals[n];
      }
    }
  }
}

// Sums over samples, of one segment of them: [K, D], [K], for each parameter [K, D] or [K], and [K, E].
struct Sums {
  double* mu;
  double* log_weights;
  double* parameters;
  double* values;
};

// What a mean Σ_k r_k v_k is of, and what it is; nothing for the log-partition.
struct Values {
  const T* all;        // [K, E]: v
  const T* bounded;    // [K, E]: v, or 0 where that is not finite
  const T* mean;       // [N, E], rounded
  const T* rest;       // [N, E]: what the rounding left
  int64_t n_features;  // E
};

// What the samples of one tile and a chunk of components work with.
struct Tile {
  const T* x;      // [D, width]
  const T* scale;  // [width]: g/total, or 1/total for a mean
  const T* top;    // [width], finite
  const T* peak;   // [width], times 2^LIFT
  T* weights;      // [CHUNK, width]: 2^LIFT g·r, times what the shape's slope is the same for in all features
  const T* nothing;  // [width]: the weights of a component beyond the end
  const T* near;     // [K, D]: μ, or unless SHAPE is FEATURES 0 where that is infinite: at that distance a weight is 0, and
                     // 0·∞ is 0 here
  int64_t width;
  // Of a mean m with ∂/∂m = G: m, rounded, and G, [E, width], what G is of the rest of m, [width], and r.
  const T* means;
  const T* towards;
  const T* level;
  T* shares;  // [CHUNK, width], times 2^LIFT
};

// G·(v − m) for ROWS components from k on and one group of samples from n on. It takes the place of g.
inline void pulls(const Values& values, const Tile& tile, int64_t n, int64_t k, int64_t end, V (&sums)[ROWS][VECTORS]) {
  const int64_t E = values.n_features;
  for (int64_t i = 0; i < ROWS; ++i)
    for (int64_t j = 0; j < VECTORS; ++j) sums[i][j] = V::loadu(tile.level + n + j * LANES).neg();
  for (int64_t first = 0; first < E; first += BLOCK) {
    V parts[ROWS][VECTORS];
    for (int64_t i = 0; i < ROWS; ++i)
      for (int64_t j = 0; j < VECTORS; ++j) parts[i][j] = V(0);
    for (int64_t e = first; e < std::min(first + BLOCK, E); ++e)
      for (int64_t j = 0; j < VECTORS; ++j) {
        const int64_t at = e * tile.width + n + j * LANES;
        const V towards = V::loadu(tile.towards + at), mean = V::loadu(tile.means + at);
        for (int64_t i = 0; i < ROWS; ++i) {
          const V value(values.all[std::min(k + i, end - 1) * E + e]);
          parts[i][j] = at::vec::fmadd(towards, value - mean, parts[i][j]);
        }
      }
    for (int64_t i = 0; i < ROWS; ++i)
      for (int64_t j = 0; j < VECTORS; ++j) sums[i][j] = sums[i][j] + parts[i][j];
  }
}

// 2^LIFT g·r for every pair, Σ_n g·r, and what the pair's own parameters get.
template <bool WithParameters>
inline void responsibilities(const Problem& problem, const Values& values, const Tile& tile, int64_t first, int64_t k,
                             int64_t end, Parameters& p, const Sums& sums) {
  constexpr int64_t OWN = SHAPE == FEATURES ? 0 : N_PARAMETERS;
  V counts[ROWS], shares[ROWS][OWN + 1];
  for (int64_t i = 0; i < ROWS; ++i) {
    counts[i] = V(0);
    for (int64_t a = 0; a < OWN; ++a) shares[i][a] = V(0);
  }
  for (int64_t n = 0; n < tile.width; n += GROUP) {
    V towards[ROWS][VECTORS];
    if (MEANS) pulls(values, tile, n, k, end, towards);
    pairs(problem, tile.x + n, tile.width, k, end, p,
          [&](int64_t component, int64_t j, V pair, V score, Parameters& own) {
      const int64_t i = component - k, at = n + j * LANES;
      const V gap = score - V::loadu(tile.top + at);
      V r = exponential<LIFT>(gap);
      if (PEAKS) r = ignore(r, gap == V(0), V::loadu(tile.peak + at));
      r = r * V::loadu(tile.scale + at);
      if (MEANS) {
        r.store(tile.shares + (component - first) * tile.width + at);
        r = ignore(r * towards[i][j], r == V(0), V(0));
      }
      const V impossible = r == V(0);  // its slopes may be ∞: 0·∞ is 0 here
      counts[i] = counts[i] + r;
      if (WithParameters && OWN > 0) {
        V out[N_PARAMETERS + 1];
        parameter_slopes(pair, V(0), own, out);
        for (int64_t a = 0; a < OWN; ++a) shares[i][a] = shares[i][a] - ignore(r * out[a], impossible, V(0));
      }
      V weight = r;
      if (SHAPE != FEATURES) {
        const V flat = SHAPE == SQUARE ? pair == V(0) : V(0);  // at x = μ every derivative is 0
        weight = ignore(r * slope(pair, V(0), own), impossible | flat, V(0));
      }
      weight.store(tile.weights + (component - first) * tile.width + at);
    });
  }
  for (int64_t i = 0; i < std::min(ROWS, end - k); ++i) {
    sums.log_weights[k + i] += LOWERED * sum_of_lanes(counts[i]);
    if (WithParameters)
      for (int64_t a = 0; a < OWN; ++a)
        sums.parameters[a * problem.n_components + k + i] += LOWERED * sum_of_lanes(shares[i][a]);
  }
}

// A component in one feature, and where slopes are of features its parameters.
struct Arm {
  V location;
  Parameters p;
};

// What a weight is multiplied by, but for the sign of the first: between points, in ∂L/∂x ψ, x − μ, or μ, and in ∂L/∂μ ψ,
// x − μ, or −x.
struct OfPoints {
  static constexpr bool ARE_SLOPES = SHAPE == FEATURES;  // which may be infinite, and parameters have some, too
  static V towards_sample(V x, const Arm& arm) {
    return SHAPE == FEATURES ? slope(x, arm.location, arm.p) : SHAPE == SQUARE ? x - arm.location : arm.location;
  }
  static V towards_component(V x, const Arm& arm) { return SHAPE == DOT ? x.neg() : towards_sample(x, arm); }
};

// In a mean, m − v as far as it is known, and in ∂/∂v, G.
struct OfValues {
  static constexpr bool ARE_SLOPES = false;
  static V towards_sample(V mean, const Arm& arm) { return mean - arm.location; }
  static V towards_component(V towards, const Arm&) { return towards; }
};

// What weights meet: features of a tile's samples and of all components, and the sums that they go to, or null.
struct Sides {
  const T* samples;     // [F, width]
  const T* components;  // [K, F]
  int64_t n_features;   // F
  const T* weights;     // [CHUNK, width]
  T* towards_samples;   // [F, width]
  double* towards_components;  // [K, F]
};

// Sums over a chunk of components and over a tile's samples, of `Features` features, and what parameters get from them.
template <typename Arms, int64_t Features, bool ToSamples, bool ToComponents, bool WithParameters>
inline void features(const Problem& problem, const Sides& sides, const Tile& tile, int64_t first, int64_t end, int64_t d,
                     Parameters& p, double* towards_parameters) {
  constexpr int64_t OWN = Arms::ARE_SLOPES && WithParameters ? N_PARAMETERS : 0;
  const int64_t K = problem.n_components, F = sides.n_features;
  T parts[Features][LONGEST_TILE];
  if (ToSamples)
    for (int64_t c = 0; c < Features; ++c) std::fill(parts[c], parts[c] + tile.width, T(0));
  for (int64_t k = first; k < end; k += ARMS) {
    V totals[ARMS][Features], shares[ARMS][Features][OWN + 1];
    Arm arms[ARMS][Features];
    const T* weights[ARMS];
    for (int64_t i = 0; i < ARMS; ++i) {
      const bool is_there = k + i < end;
      const int64_t component = is_there ? k + i : k;
      weights[i] = is_there ? sides.weights + (k + i - first) * tile.width : tile.nothing;
      for (int64_t c = 0; c < Features; ++c) {
        totals[i][c] = V(0);
        for (int64_t a = 0; a < OWN; ++a) shares[i][c][a] = V(0);
        arms[i][c].location = V(sides.components[component * F + d + c]);
        if (!Arms::ARE_SLOPES) continue;
        load_component(problem, component, p);
        load_feature(problem, component, d + c, p);
        std::copy(p, p + N_PARAMETERS, arms[i][c].p);
      }
    }
    for (int64_t n = 0; n < tile.width; n += LANES)
      for (int64_t c = 0; c < Features; ++c) {
        const V x = V::loadu(sides.samples + (d + c) * tile.width + n);
        V part;
        if (ToSamples) part = V::loadu(parts[c] + n);
        for (int64_t i = 0; i < ARMS; ++i) {
          const V weight = V::loadu(weights[i] + n);
          const Arm& arm = arms[i][c];
          if (Arms::ARE_SLOPES) {
            const V impossible = weight == V(0);
            const V share = ignore(weight * Arms::towards_sample(x, arm), impossible, V(0));
            if (ToSamples) part = part + share;
            totals[i][c] = totals[i][c] + share;
            if (OWN > 0) {
              V out[N_PARAMETERS + 1];
              parameter_slopes(x, arm.location, arm.p, out);
              for (int64_t a = 0; a < OWN; ++a)
                shares[i][c][a] = shares[i][c][a] - ignore(weight * out[a], impossible, V(0));
            }
          } else {
            if (ToSamples) part = at::vec::fmadd(weight, Arms::towards_sample(x, arm), part);
            if (ToComponents) totals[i][c] = at::vec::fmadd(weight, Arms::towards_component(x, arm), totals[i][c]);
          }
        }
        if (ToSamples) part.store(parts[c] + n);
      }
    if (ToComponents)
      for (int64_t i = 0; i < std::min(ARMS, end - k); ++i)
        for (int64_t c = 0; c < Features; ++c) {
          const int64_t at = (k + i) * F + d + c;
          sides.towards_components[at] += LOWERED * sum_of_lanes(totals[i][c]);
          for (int64_t a = 0; a < OWN; ++a) towards_parameters[a * K * F + at] += LOWERED * sum_of_lanes(shares[i][c][a]);
        }
  }
  if (ToSamples)
    for (int64_t c = 0; c < Features; ++c)
      for (int64_t n = 0; n < tile.width; n += LANES) {
        T* place = sides.towards_samples + (d + c) * tile.width + n;
        (V::loadu(place) - V::loadu(parts[c] + n)).store(place);
      }
}

template <typename Arms, bool ToSamples, bool ToComponents, bool WithParameters>
inline void all_features(const Problem& problem, const Sides& sides, const Tile& tile, int64_t first, int64_t end,
                         Parameters& p, double* towards_parameters) {
  int64_t d = 0;
  for (; d + WIDTH <= sides.n_features; d += WIDTH)
    features<Arms, WIDTH, ToSamples, ToComponents, WithParameters>(problem, sides, tile, first, end, d, p,
                                                                   towards_parameters);
  for (; d < sides.n_features; ++d)
    features<Arms, 1, ToSamples, ToComponents, WithParameters>(problem, sides, tile, first, end, d, p, towards_parameters);
}

// Samples in a tile that has so many numbers of each.
inline int64_t tile_width(int64_t numbers) {
  const int64_t fitting = TILE_BYTES / (numbers * int64_t(sizeof(T))) / GROUP * GROUP;
  return std::min(std::max(fitting, GROUP), LONGEST_TILE);
}

template <bool WithParameters>
void gradients(const Problem& problem, const Values& values, const T* near, const T* top, const T* total, const T* peak,
               const T* grad, int64_t segments, int32_t threads, T* towards_x, const Sums& all) {
  const int64_t N = problem.n_samples, K = problem.n_components, D = problem.n_features, E = values.n_features;
  const int64_t width = tile_width(D + 2 * E), tiles = (N + width - 1) / width;
  const int64_t per_parameter = SHAPE == FEATURES ? K * D : K;
  constexpr bool SLOPES_HAVE_SHARES = WithParameters && SHAPE == FEATURES;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> x(D * width), weights((CHUNK + 1) * width), scale(width), highest(width), peaks(PEAKS ? width : 0);
    std::vector<T> sum(D * width);
    std::vector<T> own(E * width), towards(E * width), level(width), shares(MEANS ? CHUNK * width : 0);
    const Tile tile{x.data(), scale.data(), highest.data(), peaks.data(), weights.data(), weights.data() + CHUNK * width, near, width,
                    own.data(), towards.data(), level.data(), shares.data()};
    Parameters p;
    load_scalars(problem, p);
    // Segments, and not threads, own the sums: the result is the same, bit by bit, for any number of threads.
#pragma omp for schedule(dynamic, 1)
    for (int64_t segment = 0; segment < segments; ++segment) {
      const Sums sums{all.mu + segment * K * D, all.log_weights + segment * K,
                      all.parameters + segment * N_PARAMETERS * per_parameter, all.values + segment * K * E};
      const Sides points{x.data(), near, D, weights.data(), sum.data(), sums.mu};
      const Sides means{towards.data(), values.bounded, E, shares.data(), nullptr, sums.values};
      for (int64_t t = segment * tiles / segments; t < (segment + 1) * tiles / segments; ++t) {
        const int64_t start = t * width, count = std::min(width, N - start);
        load_tile(problem.x, N, D, start, width, x.data());
        for (int64_t n = 0; n < width; ++n) {
          const T shift = top[std::min(start + n, N - 1)];
          highest[n] = std::isinf(shift) ? T(0) : shift;
          if (PEAKS) peaks[n] = peak[std::min(start + n, N - 1)] * T(int64_t(1) << LIFT);
          scale[n] = n < count ? (MEANS ? T(1) : grad[start + n]) / total[start + n] : T(0);
        }
        if (MEANS) {
          load_tile(grad, N, E, start, width, towards.data());
          load_tile(values.mean, N, E, start, width, own.data());
          for (int64_t n = 0; n < width; ++n) {
            const T* rest = values.rest + std::min(start + n, N - 1) * E;
            double product = 0;
            for (int64_t e = 0; e < E; ++e) product += double(towards[e * width + n]) * double(rest[e]);
            level[n] = T(product);
          }
        }
        std::fill(sum.begin(), sum.end(), T(0));
        for (int64_t first = 0; first < K; first += CHUNK) {
          const int64_t end = std::min(first + CHUNK, K);
          for (int64_t k = first; k < end; k += ROWS)
            responsibilities<WithParameters>(problem, values, tile, first, k, end, p, sums);
          if (towards_x)
            all_features<OfPoints, true, true, SLOPES_HAVE_SHARES>(problem, points, tile, first, end, p, sums.parameters);
          else
            all_features<OfPoints, false, true, SLOPES_HAVE_SHARES>(problem, points, tile, first, end, p, sums.parameters);
          if (MEANS && all.values)
            all_features<OfValues, false, true, false>(problem, means, tile, first, end, p, nullptr);
        }
        if (towards_x)
          for (int64_t n = 0; n < count; ++n)
            for (int64_t d = 0; d < D; ++d) towards_x[(start + n) * D + d] = sum[d * width + n] * T(LOWERED);
      }
    }
  }
}

// Σ over samples of g ∂L/∂μ, g ∂L/∂log π and g ∂L/∂θ for each segment of samples, and g ∂L/∂x; the sums start at 0. For a
// posterior mean m, whose gradient is [N, E], of Σ_n G_n·m_n instead, and in v. towards_x, towards_parameters or
// towards_values may be null: they are not computed then.
extern "C" void backward(const T* x, const T* mu, const double* log_weights, const T* const* parameters, int64_t n_samples,
                         int64_t n_components, int64_t n_features, int32_t threads, const T* near, const T* top,
                         const T* total, const T* peak, const T* grad, int64_t segments, T* towards_x, double* towards_mu,
                         double* towards_log_weights, double* towards_parameters, const T* values, const T* bounded,
                         const T* mean, const T* rest, int64_t n_values, double* towards_values) {
  const Problem problem{x, mu, log_weights, parameters, n_samples, n_components, n_features};
  const auto chosen = towards_parameters ? gradients<true> : gradients<false>;
  chosen(problem, Values{values, bounded, mean, rest, n_values}, near, top, total, peak, grad, segments,
         threads, towards_x, Sums{towards_mu, towards_log_weights, towards_parameters, towards_values});
}
