// Posterior means Σ_k r_k v_k of N samples over K components, once `forward` has each sample's largest score and sum.
//
// Stands after `template.cpp`, whose MEANS is true. Values are averaged as they come: a mean starts with the value of the
// component that has most of the sample, and each chunk of components moves it by Σ w (v − mean)/Σ w, the last sum being of
// all components so far. So a common offset of values costs no digits, and neither does it that the first value is far from
// the mean: of the first chunk, which takes that distance, the sums are short. A mean is two numbers, what is rounded and
// the rest: next to one component the rest is what the others add. Source: West (1979).

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

// The weights of a chunk without those of each sample's nearest component, which its mean has started with.
inline void leave_out(const Index* nearest, const Tile& tile, int64_t first, int64_t end) {
  for (int64_t n = 0; n < tile.width; ++n)
    if (nearest[n] >= first && nearest[n] < end) tile.weights[(nearest[n] - first) * tile.width + n] = T(0);
}

// Moves means, and the rest of each, [E, width], by a chunk of so many components; `moves` has Σ w (v − mean) of it, and
// `weight`, [width], Σ w of all before.
inline void move(const Tile& tile, int64_t count, int64_t n_values, const T* moves, T* weight, T* means, T* rests) {
  for (int64_t n = 0; n < tile.width; n += LANES) {
    V own(0);
    for (int64_t k = 0; k < count; ++k) own = own + V::loadu(tile.weights + k * tile.width + n);
    const V total = V::loadu(weight + n) + own;
    total.store(weight + n);
    for (int64_t e = 0; e < n_values; ++e) {
      const int64_t at = e * tile.width + n;
      V mean = V::loadu(means + at), rest = V::loadu(rests + at), left(0);
      add(rest + (V::loadu(moves + at) - own * rest) / total, mean, left);
      mean.store(means + at);
      left.store(rests + at);
    }
  }
}

// For each sample Σ_k r_k v_k, [N, E], and what its rounding left of it.
extern "C" void means(const T* x, const T* mu, const double* log_weights, const T* const* parameters, int64_t n_samples,
                      int64_t n_components, int64_t n_features, int32_t threads, const T* top, const T* total,
                      const Index* nearest, const T* all, const T* bounded, int64_t n_values, T* mean, T* rest) {
  const Problem problem{x, mu, log_weights, parameters, n_samples, n_components, n_features};
  const Values values{all, bounded, mean, rest, n_values};
  const int64_t N = n_samples, K = n_components, D = n_features, E = n_values;
  const int64_t width = tile_width(D + 4 * E), tiles = (N + width - 1) / width;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> points(D * width), weights((CHUNK + 1) * width), highest(width), weight(width);
    std::vector<T> found(E * width), rests(E * width), moves(E * width), unbounded(E * width);
    std::vector<Index> origins(width);
    Tile tile{};
    tile.x = points.data(), tile.top = highest.data(), tile.weights = weights.data(), tile.width = width;
    tile.nothing = weights.data() + CHUNK * width;
    const Sides sides{found.data(), bounded, E, weights.data(), moves.data(), nullptr};
    Parameters p;
    load_scalars(problem, p);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t start = t * width, count = std::min(width, N - start);
      load_tile(x, N, D, start, width, points.data());
      for (int64_t n = 0; n < width; ++n) {
        const int64_t sample = std::min(start + n, N - 1);
        highest[n] = std::isinf(top[sample]) ? T(0) : top[sample];
        origins[n] = nearest[sample];
        for (int64_t e = 0; e < E; ++e) found[e * width + n] = bounded[origins[n] * E + e];
      }
      std::fill(weight.begin(), weight.end(), T(1));
      for (std::vector<T>* each : {&rests, &unbounded}) std::fill(each->begin(), each->end(), T(0));
      for (int64_t first = 0, end; first < K; first = end) {
        end = std::min(first + (first ? CHUNK : BLOCK), K);
        std::fill(moves.begin(), moves.end(), T(0));
        chunk_of_weights(problem, tile, first, end, p);
        add_unbounded(values, tile, first, end, unbounded.data());
        leave_out(origins.data(), tile, first, end);
        all_features<OfValues, true, false, false>(problem, sides, tile, first, end, p, nullptr);
        move(tile, end - first, E, moves.data(), weight.data(), found.data(), rests.data());
      }
      for (int64_t n = 0; n < count; ++n)
        for (int64_t e = 0; e < E; ++e) {
          const int64_t at = (start + n) * E + e;
          const T nothing = std::numeric_limits<T>::quiet_NaN();
          mean[at] = total[start + n] > T(0) ? found[e * width + n] + unbounded[e * width + n] : nothing;
          rest[at] = rests[e * width + n];
        }
    }
  }
}
