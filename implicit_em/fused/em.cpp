// An EM step of a Gaussian mixture: what its M-step needs, in two passes over the samples.
//
// Stands after `vectors.cpp`. P is lower triangular with PPᵀ = Σ⁻¹.

constexpr int64_t SIDE = 4;  // rows and columns of a scatter matrix at a time

struct Mixture {
  const T* x;            // [N, D]
  const T* weights;      // [N], or null where all are 1
  const T* mu;           // [K, D]
  const T* log_weights;  // [K]: log π_k − ½ log |2πΣ_k|
  const T* factors;      // [K, D, D]: P
  int64_t n_samples, n_components, n_features;
};

// What a thread works with on one tile of samples.
struct Workplace {
  int64_t width;
  std::vector<T> x, scores, gaps;  // [D, width], [K, width], [D, width]

  Workplace(const Mixture& m, int64_t width)
      : width(width), x(m.n_features * width), scores(m.n_components * width), gaps(m.n_features * width) {}
};

inline int64_t tile_width(const Mixture& m) {
  const int64_t most = std::max(m.n_components, 2 * m.n_features) * int64_t(sizeof(T));
  return std::min(std::max(4 * TILE_BYTES / most / GROUP * GROUP, GROUP), LONGEST_TILE);
}

inline V sample_weight(const Mixture& m, int64_t start, int64_t n) {
  T lanes[LANES];
  for (int64_t i = 0; i < LANES; ++i) {
    const int64_t at = start + n + i;
    lanes[i] = at < m.n_samples ? (m.weights ? m.weights[at] : T(1)) : T(0);
  }
  return V::loadu(lanes);
}

// x − μ for a tile and one location.
inline void differences(const T* x, const T* mu, int64_t D, int64_t width, T* gaps) {
  for (int64_t d = 0; d < D; ++d)
    for (int64_t n = 0; n < width; n += LANES) (V::loadu(x + d * width + n) - V(mu[d])).store(gaps + d * width + n);
}

// ‖Pᵀu‖² of a group, two columns of P at a time: above its diagonal there are zeros.
inline void whitened_squares(const T* gaps, int64_t width, const T* factor, int64_t D, V (&squares)[VECTORS]) {
  for (int64_t j = 0; j < VECTORS; ++j) squares[j] = V(0);
  for (int64_t c = 0; c < D; c += 2) {
    const bool paired = c + 1 < D;
    V first[VECTORS], second[VECTORS];
    for (int64_t j = 0; j < VECTORS; ++j) first[j] = second[j] = V(0);
    for (int64_t d = c; d < D; ++d) {
      const V p(factor[d * D + c]), q(paired ? factor[d * D + c + 1] : T(0));
      for (int64_t j = 0; j < VECTORS; ++j) {
        const V u = V::loadu(gaps + d * width + j * LANES);
        first[j] = at::vec::fmadd(p, u, first[j]);
        second[j] = at::vec::fmadd(q, u, second[j]);
      }
    }
    for (int64_t j = 0; j < VECTORS; ++j)
      squares[j] = at::vec::fmadd(second[j], second[j], at::vec::fmadd(first[j], first[j], squares[j]));
  }
}

// log π_k p_k(x) for a tile.
inline void score_tile(const Mixture& m, int64_t start, Workplace& w) {
  const int64_t D = m.n_features;
  load_tile(m.x, m.n_samples, D, start, w.width, w.x.data());
  for (int64_t k = 0; k < m.n_components; ++k) {
    differences(w.x.data(), m.mu + k * D, D, w.width, w.gaps.data());
    for (int64_t n = 0; n < w.width; n += GROUP) {
      V squares[VECTORS];
      whitened_squares(w.gaps.data() + n, w.width, m.factors + k * D * D, D, squares);
      for (int64_t j = 0; j < VECTORS; ++j)
        (V(m.log_weights[k]) - V(T(0.5)) * squares[j]).store(w.scores.data() + k * w.width + n + j * LANES);
    }
  }
}

// From scores to s·r, given the largest score and the sum, per sample. A sample without weight has no share.
inline void share_tile(const Mixture& m, int64_t start, const T* top, const T* total, Workplace& w) {
  for (int64_t n = 0; n < w.width; n += LANES) {
    const V shift = finite(V::loadu(top + n)), weight = sample_weight(m, start, n);
    const V scale = weight / V::loadu(total + n), none = weight == V(0);
    for (int64_t k = 0; k < m.n_components; ++k) {
      T* place = w.scores.data() + k * w.width + n;
      ignore(exponential(V::loadu(place) - shift) * scale, none, V(0)).store(place);
    }
  }
}

template <typename Visit>
inline void tiles_of_segments(const Mixture& m, int64_t segments, int32_t threads, const Visit& visit) {
  const int64_t width = tile_width(m), tiles = (m.n_samples + width - 1) / width;
#pragma omp parallel num_threads(threads)
  {
    Workplace w(m, width);
#pragma omp for schedule(dynamic, 1)
    for (int64_t segment = 0; segment < segments; ++segment)
      for (int64_t t = segment * tiles / segments; t < (segment + 1) * tiles / segments; ++t) {
        score_tile(m, t * width, w);
        visit(segment, t * width, w);
      }
  }
}

// Σ s r, Σ s r (x − μ) and Σ s log p(x) for each segment of samples; and per sample the largest score and the sum.
extern "C" void moments(const T* x, const T* weights, const T* mu, const T* log_weights, const T* factors,
                        int64_t n_samples, int64_t n_components, int64_t n_features, int32_t threads, int64_t segments,
                        T* top, T* total, double* counts, double* sums, double* log_likelihood) {
  const Mixture m{x, weights, mu, log_weights, factors, n_samples, n_components, n_features};
  const int64_t K = n_components, D = n_features;
  tiles_of_segments(m, segments, threads, [&](int64_t segment, int64_t start, Workplace& w) {
    T highest[LONGEST_TILE], sum[LONGEST_TILE];
    for (int64_t n = 0; n < w.width; n += LANES) {
      V most(-std::numeric_limits<T>::infinity()), all(0);
      for (int64_t k = 0; k < K; ++k) most = at::vec::maximum(most, V::loadu(w.scores.data() + k * w.width + n));
      const V shift = finite(most);
      for (int64_t k = 0; k < K; ++k) all = all + exponential(V::loadu(w.scores.data() + k * w.width + n) - shift);
      most.store(highest + n);
      all.store(sum + n);
      const V weight = sample_weight(m, start, n);
      log_likelihood[segment] += sum_of_lanes(ignore(weight * (most + all.log()), weight == V(0), V(0)));
    }
    const int64_t count = std::min(w.width, n_samples - start);
    std::copy(highest, highest + count, top + start);
    std::copy(sum, sum + count, total + start);
    share_tile(m, start, highest, sum, w);
    for (int64_t k = 0; k < K; ++k) {
      const T* r = w.scores.data() + k * w.width;
      V shares(0);
      for (int64_t n = 0; n < w.width; n += LANES) shares = shares + V::loadu(r + n);
      counts[segment * K + k] += sum_of_lanes(shares);
      for (int64_t d = 0; d < D; ++d) {
        V moved(0);
        for (int64_t n = 0; n < w.width; n += LANES)
          moved = at::vec::fmadd(V::loadu(r + n), V::loadu(w.x.data() + d * w.width + n) - V(mu[k * D + d]), moved);
        sums[(segment * K + k) * D + d] += sum_of_lanes(moved);
      }
    }
  });
}

// Σ s r u_d u_e over a tile, for `Rows` rows of d and as many of e.
template <int64_t Rows>
inline void outer_products(const T* shares, const T* gaps, int64_t width, int64_t d, int64_t e, int64_t D,
                           double* scatter) {
  V totals[Rows][Rows];
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t j = 0; j < Rows; ++j) totals[i][j] = V(0);
  for (int64_t n = 0; n < width; n += LANES) {
    const V share = V::loadu(shares + n);
    V right[Rows];
    for (int64_t j = 0; j < Rows; ++j) right[j] = V::loadu(gaps + (e + j) * width + n);
    for (int64_t i = 0; i < Rows; ++i) {
      const V left = share * V::loadu(gaps + (d + i) * width + n);
      for (int64_t j = 0; j < Rows; ++j) totals[i][j] = at::vec::fmadd(left, right[j], totals[i][j]);
    }
  }
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t j = 0; j < Rows; ++j) scatter[(d + i) * D + e + j] += sum_of_lanes(totals[i][j]);
}

// Σ s r (x − c)(x − c)ᵀ about new means c, for each segment: its lower triangle.
extern "C" void scatter(const T* x, const T* weights, const T* mu, const T* log_weights, const T* factors,
                        int64_t n_samples, int64_t n_components, int64_t n_features, int32_t threads, int64_t segments,
                        const T* top, const T* total, const T* centers, double* out) {
  const Mixture m{x, weights, mu, log_weights, factors, n_samples, n_components, n_features};
  const int64_t K = n_components, D = n_features;
  tiles_of_segments(m, segments, threads, [&](int64_t segment, int64_t start, Workplace& w) {
    T highest[LONGEST_TILE], sum[LONGEST_TILE];
    for (int64_t n = 0; n < w.width; ++n) {
      highest[n] = top[std::min(start + n, n_samples - 1)];
      sum[n] = total[std::min(start + n, n_samples - 1)];
    }
    share_tile(m, start, highest, sum, w);
    for (int64_t k = 0; k < K; ++k) {
      differences(w.x.data(), centers + k * D, D, w.width, w.gaps.data());
      const T* r = w.scores.data() + k * w.width;
      double* own = out + (segment * K + k) * D * D;
      const int64_t whole = D / SIDE * SIDE;
      for (int64_t d = 0; d < whole; d += SIDE)
        for (int64_t e = 0; e <= d; e += SIDE) outer_products<SIDE>(r, w.gaps.data(), w.width, d, e, D, own);
      for (int64_t d = whole; d < D; ++d)
        for (int64_t e = 0; e <= d; ++e) outer_products<1>(r, w.gaps.data(), w.width, d, e, D, own);
    }
  });
}
