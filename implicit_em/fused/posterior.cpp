// Posterior means Σ_k r_k v_k of N samples over K components, once `forward` has each sample's largest score and sum.
//
// Stands after `template.cpp`, whose MEANS is true. A mean is an origin and the rest: the value of the component that has most
// of the sample, and Σ_k r_k (v_k − origin). So a common offset of values costs no digits, and next to one component it is
// what the others add that is rounded.

// exp(score − largest) for a chunk of components and a tile.
inline void chunk_of_weights(const Problem& problem, const Tile& tile, int64_t first, int64_t end, Parameters& p) {
  for (int64_t k = first; k < end; k += ROWS)
    for (int64_t n = 0; n < tile.width; n += GROUP)
      pairs(problem, tile.x + n, tile.width, k, end, p, [&](int64_t component, int64_t j, V, V score, Parameters&) {
        const int64_t at = n + j * LANES;
        exponential(score - V::loadu(tile.top + at)).store(tile.weights + (component - first) * tile.width + at);
      });
}

// Values that are not finite, which `bounded` leaves out: they count where a component has a share, as 0·∞ is 0 here.
inline void add_unbounded(const Values& values, const Tile& tile, int64_t first, int64_t end, T* sums) {
  const int64_t E = values.n_features;
  for (int64_t k = first; k < end; ++k)
    for (int64_t e = 0; e < E; ++e) {
      const T value = values.all[k * E + e];
      if (std::isfinite(value)) continue;
      for (int64_t n = 0; n < tile.width; ++n)
        if (tile.weights[(k - first) * tile.width + n] > T(0)) sums[e * tile.width + n] += value;
    }
}

// For each sample Σ_k r_k v_k [N, E], and what of it is not its origin.
extern "C" void means(const T* x, const T* mu, const double* log_weights, const T* const* parameters, int64_t n_samples,
                      int64_t n_components, int64_t n_features, int32_t threads, const T* top, const T* total,
                      const T* all, const T* bounded, const Index* nearest, T* residuals, int64_t n_values, T* mean) {
  const Problem problem{x, mu, log_weights, parameters, n_samples, n_components, n_features};
  const Values values{all, bounded, nearest, residuals, n_values};
  const int64_t N = n_samples, K = n_components, D = n_features, E = n_values;
  const int64_t width = tile_width(D + 2 * E), tiles = (N + width - 1) / width;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> points(D * width), weights((CHUNK + 1) * width), highest(width), origins(E * width), sums(E * width);
    Tile tile{};
    tile.x = points.data(), tile.top = highest.data(), tile.weights = weights.data(), tile.width = width;
    tile.nothing = weights.data() + CHUNK * width;
    const Sides sides{origins.data(), bounded, E, weights.data(), sums.data(), nullptr};
    Parameters p;
    load_scalars(problem, p);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t start = t * width, count = std::min(width, N - start);
      load_tile(x, N, D, start, width, points.data());
      load_origins(values, N, start, width, origins.data());
      for (int64_t n = 0; n < width; ++n) {
        const T shift = top[std::min(start + n, N - 1)];
        highest[n] = std::isinf(shift) ? T(0) : shift;
      }
      std::fill(sums.begin(), sums.end(), T(0));
      for (int64_t first = 0; first < K; first += CHUNK) {
        const int64_t end = std::min(first + CHUNK, K);
        chunk_of_weights(problem, tile, first, end, p);
        all_features<OfValues, true, false, false>(problem, sides, tile, first, end, p, nullptr);
        add_unbounded(values, tile, first, end, sums.data());
      }
      for (int64_t n = 0; n < count; ++n)
        for (int64_t e = 0; e < E; ++e) {
          const T residual = sums[e * width + n] / total[start + n];
          residuals[(start + n) * E + e] = residual;
          mean[(start + n) * E + e] = origins[e * width + n] + residual;
        }
    }
  }
}
