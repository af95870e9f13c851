// Log-partition of N samples over K components, and its gradients, without an N×K matrix.
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
//
// Lanes are samples. So a sum over components or features needs no horizontal step, and components and features may
// have any number; only sums over samples, for gradients, end with one.

constexpr int64_t ROWS = SHAPE == FEATURES ? 1 : 4;  // components at a time: what they keep has to stay in registers
constexpr int64_t ARMS = 4;                          // and of gradients
constexpr int64_t WIDTH = 2;                         // features at a time, of gradients
constexpr int64_t BLOCK = 8;                         // features in one partial sum
constexpr int64_t CHUNK = 32;                        // components between two rescalings, and in one partial sum
constexpr int64_t STRANDS = 4;                       // sums of a chunk's exponentials, side by side

// Weights in gradients are so many powers of two too large, so that none of them is below the normal range; their sums are
// brought back.
constexpr int64_t LIFT = DIGITS + 1;
constexpr double LOWERED = 1.0 / double(int64_t(1) << LIFT);

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
// worked out again in float64, and takes the place of the 1 that stands for it in the sum.
inline wide::V log_partition(const Problem& problem, const T* tile, int64_t width, const Index* nearest, const T* top,
                             const T* total) {
  const wide::V highest = widened([&](int64_t i) { return top[i]; }), none(-std::numeric_limits<double>::infinity());
  wide::V sum = widened([&](int64_t i) { return total[i]; });
  if (IS_NARROW) sum = sum + (wide_scores(problem, tile, width, nearest) - highest).expm1();
  return wide::V::blendv(highest + sum.log(), none, highest == none);
}

// For each sample L, its largest score and Σ exp(score − largest).
extern "C" void forward(const T* x, const T* mu, const double* log_weights, const T* const* parameters,
                        int64_t n_samples, int64_t n_components, int64_t n_features, int32_t threads, T* value, T* top,
                        T* total) {
  const Problem problem{x, mu, log_weights, parameters, n_samples, n_components, n_features};
  const int64_t groups = (n_samples + GROUP - 1) / GROUP;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> tile(n_features * GROUP), scores(CHUNK * GROUP);
    T tops[GROUP], totals[GROUP];
    double values[GROUP];
    Index nearest[GROUP];
    Parameters p;
    load_scalars(problem, p);
#pragma omp for schedule(static)
    for (int64_t group = 0; group < groups; ++group) {
      load_tile(x, n_samples, n_features, group * GROUP, GROUP, tile.data());
      V highest[VECTORS], sum[VECTORS], lost[VECTORS];
      Bits best[VECTORS];
      for (int64_t j = 0; j < VECTORS; ++j) {
        highest[j] = V(-std::numeric_limits<T>::infinity());
        sum[j] = lost[j] = V(0);
        best[j] = Bits(0);
      }
      for (int64_t first = 0; first < n_components; first += CHUNK) {
        const int64_t end = std::min(first + CHUNK, n_components);
        V before[VECTORS];
        for (int64_t j = 0; j < VECTORS; ++j) before[j] = highest[j];
        for (int64_t k = first; k < end; k += ROWS)
          pairs(problem, tile.data(), GROUP, k, end, p, [&](int64_t component, int64_t j, V, V score, Parameters&) {
            if (IS_NARROW) best[j] = Bits::blendv(best[j], Bits(Index(component)), bits(score > highest[j]));
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
      const int64_t count = std::min(GROUP, n_samples - group * GROUP);
      for (int64_t n = 0; n < count; n += wide::LANES)
        log_partition(problem, tile.data() + n, GROUP, nearest + n, tops + n, totals + n).store(values + n);
      for (int64_t n = 0; n < count; ++n) {
        value[group * GROUP + n] = T(values[n]);
        top[group * GROUP + n] = tops[n];
        total[group * GROUP + n] = totals[n];
      }
    }
  }
}

// Sums over samples, of one segment of them: [K, D], [K] and, for each parameter, [K, D] or [K].
struct Sums {
  double* mu;
  double* log_weights;
  double* parameters;
};

// What the samples of one tile and a chunk of components work with.
struct Tile {
  const T* x;      // [D, width]
  const T* scale;  // [width]: g/total
  const T* top;    // [width], finite
  T* weights;      // [CHUNK, width]: 2^LIFT g·r, times what the shape's slope is the same for in all features
  const T* nothing;  // [width]: the weights of a component beyond the end
  const T* near;     // [K, D]: μ, or 0 where that is infinite; such a component has weight 0, and 0·∞ is 0 here
  int64_t width;
};

// 2^LIFT g·r for every pair, Σ_n g·r, and what the pair's own parameters get.
template <bool WithParameters>
inline void responsibilities(const Problem& problem, const Tile& tile, int64_t first, int64_t k, int64_t end,
                             Parameters& p, const Sums& sums) {
  constexpr int64_t OWN = SHAPE == FEATURES ? 0 : N_PARAMETERS;
  V counts[ROWS], shares[ROWS][OWN + 1];
  for (int64_t i = 0; i < ROWS; ++i) {
    counts[i] = V(0);
    for (int64_t a = 0; a < OWN; ++a) shares[i][a] = V(0);
  }
  for (int64_t n = 0; n < tile.width; n += GROUP) {
    pairs(problem, tile.x + n, tile.width, k, end, p,
          [&](int64_t component, int64_t j, V pair, V score, Parameters& own) {
      const int64_t i = component - k, at = n + j * LANES;
      const V r = exponential<LIFT>(score - V::loadu(tile.top + at)) * V::loadu(tile.scale + at);
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

// What a component's slopes want of it in one feature.
struct Arm {
  V mu;
  Parameters p;
};

// What a weight is multiplied by in ∂L/∂x, but for the sign: ψ, x − μ, or μ.
inline V towards_sample(V x, const Arm& arm) {
  return SHAPE == FEATURES ? slope(x, arm.mu, arm.p) : SHAPE == SQUARE ? x - arm.mu : arm.mu;
}

// And in ∂L/∂μ: ψ, x − μ, or −x.
inline V towards_location(V x, const Arm& arm) { return SHAPE == DOT ? x.neg() : towards_sample(x, arm); }

// ∂L/∂x and ∂L/∂μ of `Features` features, from the weights of a chunk of components, and what parameters get from them.
template <int64_t Features, bool ToSamples, bool WithParameters>
inline void features(const Problem& problem, const Tile& tile, int64_t first, int64_t end, int64_t d, Parameters& p,
                     const Sums& sums, T* towards_x) {
  constexpr int64_t OWN = SHAPE == FEATURES && WithParameters ? N_PARAMETERS : 0;
  const int64_t K = problem.n_components, D = problem.n_features;
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
      weights[i] = is_there ? tile.weights + (k + i - first) * tile.width : tile.nothing;
      for (int64_t c = 0; c < Features; ++c) {
        totals[i][c] = V(0);
        for (int64_t a = 0; a < OWN; ++a) shares[i][c][a] = V(0);
        arms[i][c].mu = V(tile.near[component * D + d + c]);
        if (SHAPE != FEATURES) continue;
        load_component(problem, component, p);
        load_feature(problem, component, d + c, p);
        std::copy(p, p + N_PARAMETERS, arms[i][c].p);
      }
    }
    for (int64_t n = 0; n < tile.width; n += LANES)
      for (int64_t c = 0; c < Features; ++c) {
        const V x = V::loadu(tile.x + (d + c) * tile.width + n);
        V part;
        if (ToSamples) part = V::loadu(parts[c] + n);
        for (int64_t i = 0; i < ARMS; ++i) {
          const V weight = V::loadu(weights[i] + n);
          const Arm& arm = arms[i][c];
          if (SHAPE == FEATURES) {
            const V impossible = weight == V(0);
            const V share = ignore(weight * towards_sample(x, arm), impossible, V(0));
            if (ToSamples) part = part + share;
            totals[i][c] = totals[i][c] + share;
            if (OWN > 0) {
              V out[N_PARAMETERS + 1];
              parameter_slopes(x, arm.mu, arm.p, out);
              for (int64_t a = 0; a < OWN; ++a)
                shares[i][c][a] = shares[i][c][a] - ignore(weight * out[a], impossible, V(0));
            }
          } else {
            if (ToSamples) part = at::vec::fmadd(weight, towards_sample(x, arm), part);
            totals[i][c] = at::vec::fmadd(weight, towards_location(x, arm), totals[i][c]);
          }
        }
        if (ToSamples) part.store(parts[c] + n);
      }
    for (int64_t i = 0; i < std::min(ARMS, end - k); ++i)
      for (int64_t c = 0; c < Features; ++c) {
        const int64_t at = (k + i) * D + d + c;
        sums.mu[at] += LOWERED * sum_of_lanes(totals[i][c]);
        for (int64_t a = 0; a < OWN; ++a) sums.parameters[a * K * D + at] += LOWERED * sum_of_lanes(shares[i][c][a]);
      }
  }
  if (ToSamples)
    for (int64_t c = 0; c < Features; ++c)
      for (int64_t n = 0; n < tile.width; n += LANES) {
        T* place = towards_x + (d + c) * tile.width + n;
        (V::loadu(place) - V::loadu(parts[c] + n)).store(place);
      }
}

template <int64_t Features, bool WithParameters>
inline void features(const Problem& problem, const Tile& tile, int64_t first, int64_t end, int64_t d, Parameters& p,
                     const Sums& sums, T* towards_x) {
  const auto chosen = towards_x ? features<Features, true, WithParameters> : features<Features, false, WithParameters>;
  chosen(problem, tile, first, end, d, p, sums, towards_x);
}

template <bool WithParameters>
void gradients(const Problem& problem, const T* near, const T* top, const T* total, const T* grad, int64_t segments,
               int32_t threads, T* towards_x, double* mu, double* log_weights, double* parameters) {
  const int64_t N = problem.n_samples, K = problem.n_components, D = problem.n_features;
  const int64_t fitting = TILE_BYTES / (D * int64_t(sizeof(T))) / GROUP * GROUP;
  const int64_t width = std::min(std::max(fitting, GROUP), LONGEST_TILE), tiles = (N + width - 1) / width;
  const int64_t per_parameter = SHAPE == FEATURES ? K * D : K;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> x(D * width), weights((CHUNK + 1) * width), scale(width), highest(width);
    std::vector<T> sum(D * width);
    T* const towards = towards_x ? sum.data() : nullptr;
    const Tile tile{x.data(), scale.data(), highest.data(), weights.data(), weights.data() + CHUNK * width, near, width};
    Parameters p;
    load_scalars(problem, p);
    // Segments, and not threads, own the sums: the result is the same, bit by bit, for any number of threads.
#pragma omp for schedule(dynamic, 1)
    for (int64_t segment = 0; segment < segments; ++segment) {
      const Sums sums{mu + segment * K * D, log_weights + segment * K,
                      parameters + segment * N_PARAMETERS * per_parameter};
      for (int64_t t = segment * tiles / segments; t < (segment + 1) * tiles / segments; ++t) {
        const int64_t start = t * width, count = std::min(width, N - start);
        load_tile(problem.x, N, D, start, width, x.data());
        for (int64_t n = 0; n < width; ++n) {
          const T shift = top[std::min(start + n, N - 1)];
          highest[n] = std::isinf(shift) ? T(0) : shift;
          scale[n] = n < count ? grad[start + n] / total[start + n] : T(0);
        }
        std::fill(sum.begin(), sum.end(), T(0));
        for (int64_t first = 0; first < K; first += CHUNK) {
          const int64_t end = std::min(first + CHUNK, K);
          for (int64_t k = first; k < end; k += ROWS)
            responsibilities<WithParameters>(problem, tile, first, k, end, p, sums);
          int64_t d = 0;
          for (; d + WIDTH <= D; d += WIDTH)
            features<WIDTH, WithParameters>(problem, tile, first, end, d, p, sums, towards);
          for (; d < D; ++d) features<1, WithParameters>(problem, tile, first, end, d, p, sums, towards);
        }
        if (towards_x)
          for (int64_t n = 0; n < count; ++n)
            for (int64_t d = 0; d < D; ++d) towards_x[(start + n) * D + d] = sum[d * width + n] * T(LOWERED);
      }
    }
  }
}

// Σ over samples of g ∂L/∂μ, g ∂L/∂log π and g ∂L/∂θ for each segment of samples, and g ∂L/∂x; the sums start at 0.
// towards_x or parameters may be null: they are not computed then.
extern "C" void backward(const T* x, const T* mu, const double* log_weights, const T* const* parameters, int64_t n_samples,
                         int64_t n_components, int64_t n_features, int32_t threads, const T* near, const T* top,
                         const T* total, const T* grad, int64_t segments, T* towards_x, double* towards_mu,
                         double* towards_log_weights, double* towards_parameters) {
  const Problem problem{x, mu, log_weights, parameters, n_samples, n_components, n_features};
  const auto chosen = towards_parameters ? gradients<true> : gradients<false>;
  chosen(problem, near, top, total, grad, segments, threads, towards_x, towards_mu, towards_log_weights,
         towards_parameters);
}
