// Sums, order statistics and excesses over a batch of D[b,i,j] = offset + sum_s sign_s clamp(U_s[b,i,j]), where
// U_s[b,i,j] = max of d a over d in [delta_lower[b,i], delta_upper[b,i]] and a in [low[b,j], up[b,j]], without ever
// holding the (batch, out, in) values; or of D given as values. Everything is finite; the caller sees to that.
//
// A tile of columns is gone through for all rows while its activations stay in the cache. `columns` is a multiple of the
// lanes of a vector; the caller pads. Each call works on rows [first, last), so that threads can share the work.

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

// The machine's registers: longer vectors would be taken apart into numbers.
#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(BYTES)));
  typedef int32_t Mask __attribute__((vector_size(BYTES)));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(BYTES)));
  typedef int64_t Mask __attribute__((vector_size(BYTES)));
};
template <class T> using Vector = typename Lanes<T>::Vector;
template <class T> constexpr int64_t LANES = BYTES / sizeof(T);

template <class T> inline Vector<T> load(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, BYTES);
  return v;
}
template <class T> inline void store(T* p, Vector<T> v) { std::memcpy(p, &v, BYTES); }
template <class T> inline Vector<T> fill(T x) { return Vector<T>{} + x; }
template <class V> inline V larger(V a, V b) { return a > b ? a : b; }
template <class V> inline V smaller(V a, V b) { return a < b ? a : b; }
template <class M> inline bool any(M mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX__)
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask));
#else
  uint64_t words[2];
  std::memcpy(words, &mask, BYTES);
  return (words[0] | words[1]) != 0;
#endif
}

}  // namespace

extern "C" int64_t vector_bytes() { return BYTES; }

extern "C" struct Term {
  const void *delta_lower, *delta_upper;  // (batch, out)
  const void *low, *up;                   // (batch, columns)
  double sign, clip;                      // clip: infinity for none
  int64_t non_negative;                   // whether low >= 0 everywhere
};

extern "C" struct Problem {
  const Term* terms;
  const void* values;  // D itself, (batch, out, columns); or null, and the terms count
  int64_t count, batch, out, columns;
  double offset, floor;  // floor: 0 or minus infinity
};

namespace {

// D[b, row, column ... column + N * LANES).
template <class T, int N>
inline void deviation(const Problem& p, int64_t b, int64_t row, int64_t column, Vector<T>* d) {
  if (p.values) {
    const T* given = static_cast<const T*>(p.values) + (b * p.out + row) * p.columns + column;
    for (int n = 0; n < N; n++) d[n] = load<T>(given + n * LANES<T>);
    return;
  }
  for (int n = 0; n < N; n++) d[n] = fill<T>(T(p.offset));
  for (int64_t s = 0; s < p.count; s++) {
    const Term& term = p.terms[s];
    const T lower = static_cast<const T*>(term.delta_lower)[b * p.out + row];
    const T upper = static_cast<const T*>(term.delta_upper)[b * p.out + row];
    const T* low = static_cast<const T*>(term.low) + b * p.columns + column;
    const T* up = static_cast<const T*>(term.up) + b * p.columns + column;
    const T sign = T(term.sign);
    const bool clipped = term.clip != std::numeric_limits<double>::infinity();
    if (term.non_negative && !clipped) {
      const T* a = upper >= 0 ? up : low;
      const T factor = sign * upper;
      for (int n = 0; n < N; n++) d[n] += factor * load<T>(a + n * LANES<T>);
      continue;
    }
    // The largest product has delta's lower end with one end of the activation, or its upper end with one: which ones
    // follows from delta's sign.
    const T* with_lower = lower >= 0 ? up : low;
    const T* with_upper = upper >= 0 ? up : low;
    const Vector<T> clip = fill<T>(T(term.clip));
    for (int n = 0; n < N; n++) {
      Vector<T> u = larger(lower * load<T>(with_lower + n * LANES<T>), upper * load<T>(with_upper + n * LANES<T>));
      if (clipped) u = larger(smaller(u, clip), -clip);
      d[n] += sign * u;
    }
  }
}

// The samples that count for each row. Behind a closed gate all D are 0, and zeros change none of the sums below where
// only positive D count.
template <class T>
struct Samples {
  std::vector<int64_t> start, index;
  int64_t first;

  Samples(const Problem& p, int64_t first, int64_t last) : first(first) {
    const bool all = p.values || p.offset != 0 || p.floor != 0;
    for (int64_t row = first; row < last; row++) {
      start.push_back(index.size());
      for (int64_t b = 0; b < p.batch; b++) {
        bool open = all;
        for (int64_t s = 0; s < p.count && !open; s++)
          open = static_cast<const T*>(p.terms[s].delta_lower)[b * p.out + row] != 0 ||
                 static_cast<const T*>(p.terms[s].delta_upper)[b * p.out + row] != 0;
        if (open) index.push_back(b);
      }
    }
    start.push_back(index.size());
  }

  const int64_t* begin(int64_t row) const { return index.data() + start[row - first]; }
  int64_t size(int64_t row) const { return start[row - first + 1] - start[row - first]; }
};

// Runs `visit<N>(row, column, samples, count)` over all tiles: wide ones, then single vectors.
template <class T, class Visitor>
void tiles(const Problem& p, int64_t first, int64_t last, Visitor visit) {
  const Samples<T> samples(p, first, last);
  constexpr int64_t wide = 4 * LANES<T>;
  int64_t column = 0;
  for (; column + wide <= p.columns; column += wide)
    for (int64_t row = first; row < last; row++) visit.template operator()<4>(row, column, samples.begin(row), samples.size(row));
  for (; column < p.columns; column += LANES<T>)
    for (int64_t row = first; row < last; row++) visit.template operator()<1>(row, column, samples.begin(row), samples.size(row));
}

// The sum of the k largest by insertion into a sorted list for each column: best for small k.
template <class T> struct Insertion {
  const Problem& p;
  int64_t k;
  T* result;
  std::vector<Vector<T>> best;  // best[n * k ...]: ascending

  template <int N>
  void operator()(int64_t row, int64_t column, const int64_t* samples, int64_t count) {
    // Where floor is 0 only positive ones count, and the lists begin with zeros.
    for (int64_t q = 0; q < N * k; q++) best[q] = fill<T>(T(p.floor));
    Vector<T> d[N];
    for (int64_t i = 0; i < count; i++) {
      deviation<T, N>(p, samples[i], row, column, d);
      for (int n = 0; n < N; n++) {
        Vector<T>* held = best.data() + n * k;
        if (!any(d[n] > held[0])) continue;
        Vector<T> x = larger(d[n], held[0]);
        for (int64_t q = 0; q + 1 < k; q++) {
          const Vector<T> next = held[q + 1];
          held[q] = smaller(x, next);
          x = larger(x, next);
        }
        held[k - 1] = x;
      }
    }
    for (int64_t n = 0; n < N; n++) {
      Vector<T> sum = fill<T>(0);
      for (int64_t q = 0; q < k; q++) sum += best[n * k + q];
      store<T>(result + row * p.columns + column + n * LANES<T>, sum);
    }
  }
};

// The same by bisection on the k-th largest, whose cost does not depend on k: k t + sum (D - t)^+ is the sum of the k
// largest for every t with k values above it, and never below it for any other t.
template <class T> struct Bisection {
  const Problem& p;
  int64_t k;
  T* result;
  std::vector<Vector<T>> values;  // values[n * batch + b]

  template <int N>
  void operator()(int64_t row, int64_t column, const int64_t* samples, int64_t count) {
    using Mask = typename Lanes<T>::Mask;
    Vector<T> d[N];
    for (int64_t i = 0; i < count; i++) {
      deviation<T, N>(p, samples[i], row, column, d);
      for (int n = 0; n < N; n++) values[n * p.batch + i] = larger(d[n], fill<T>(T(p.floor)));
    }
    for (int n = 0; n < N; n++) {
      const Vector<T>* all = values.data() + n * p.batch;
      // Samples that were left out are zeros.
      Vector<T> low = count < p.batch ? fill<T>(0) : all[0], high = low;
      for (int64_t i = 0; i < count; i++) low = smaller(low, all[i]), high = larger(high, all[i]);
      Vector<T> t = low;
      bool tried = true;  // whether t is the smallest D above a level with more than k above it
      // Bits of the mantissa, and enough more for k widths of the last bracket to vanish in the sum.
      for (int pass = 1; pass <= (sizeof(T) == 4 ? 40 : 72); pass++) {
        Mask above{};
        for (int64_t i = 0; i < count; i++) above -= all[i] > t;
        const Mask wanted = Mask{} + static_cast<decltype(above[0] + 0)>(k);
        low = above > wanted ? t : low;
        high = above > wanted ? high : t;
        if (tried) low = above > wanted ? low : t;
        // Done: k above t, or t is the k-th largest.
        if (!any((above != wanted) & (low != high))) break;
        // Several samples may be equal to the k-th largest, and then no t has k above it.
        tried = pass >= 12 && pass % 6 == 0;
        Vector<T> next = low / 2 + high / 2;
        if (tried) {
          next = high;
          for (int64_t i = 0; i < count; i++) next = all[i] > low ? smaller(next, all[i]) : next;
        }
        t = above == wanted || low == high ? t : next;
      }
      // As sum of the D above t, and the rest of the k at t, which cancels less.
      Vector<T> sum = fill<T>(0), rest = fill<T>(T(k));
      for (int64_t i = 0; i < count; i++) {
        sum += all[i] > t ? all[i] : fill<T>(0);
        rest -= all[i] > t ? fill<T>(1) : fill<T>(0);
      }
      store<T>(result + row * p.columns + column + n * LANES<T>, sum + rest * t);
    }
  }
};

template <class T> struct Sums {
  const Problem& p;
  T* result;

  template <int N>
  void operator()(int64_t row, int64_t column, const int64_t* samples, int64_t count) {
    Vector<T> d[N], sum[N] = {};
    for (int64_t i = 0; i < count; i++) {
      deviation<T, N>(p, samples[i], row, column, d);
      for (int n = 0; n < N; n++) sum[n] += larger(d[n], fill<T>(T(p.floor)));
    }
    for (int n = 0; n < N; n++) store<T>(result + row * p.columns + column + n * LANES<T>, sum[n]);
  }
};

// `results`: (4, out, columns), the sums of D and of its square, the smallest and the largest D.
template <class T> struct Moments {
  const Problem& p;
  T* results;

  template <int N>
  void operator()(int64_t row, int64_t column, const int64_t* samples, int64_t count) {
    Vector<T> d[N], found[4][N] = {};
    const T outside = count < p.batch ? T(0) : std::numeric_limits<T>::infinity();
    for (int n = 0; n < N; n++) found[2][n] = fill<T>(outside), found[3][n] = -found[2][n];
    for (int64_t i = 0; i < count; i++) {
      deviation<T, N>(p, samples[i], row, column, d);
      for (int n = 0; n < N; n++) {
        const Vector<T> x = larger(d[n], fill<T>(T(p.floor)));
        found[0][n] += x;
        found[1][n] += x * x;
        found[2][n] = smaller(found[2][n], x);
        found[3][n] = larger(found[3][n], x);
      }
    }
    for (int64_t q = 0; q < 4; q++)
      for (int n = 0; n < N; n++) store<T>(results + (q * p.out + row) * p.columns + column + n * LANES<T>, found[q][n]);
  }
};

// `results`: (2, out, columns), the sum of (D - t)^+ and the number of D > t, for `t`, (out, columns), t >= floor.
template <class T> struct Excess {
  const Problem& p;
  const T* t;
  T* results;

  template <int N>
  void operator()(int64_t row, int64_t column, const int64_t* samples, int64_t count) {
    const int64_t here = row * p.columns + column;
    Vector<T> d[N], level[N], over[N] = {}, above[N] = {};
    for (int n = 0; n < N; n++) level[n] = load<T>(t + here + n * LANES<T>);
    for (int64_t i = 0; i < count; i++) {
      deviation<T, N>(p, samples[i], row, column, d);
      for (int n = 0; n < N; n++) {
        const Vector<T> x = larger(d[n], fill<T>(T(p.floor))) - level[n];
        over[n] += larger(x, fill<T>(0));
        above[n] += x > 0 ? fill<T>(1) : fill<T>(0);
      }
    }
    for (int n = 0; n < N; n++) {
      store<T>(results + here + n * LANES<T>, over[n]);
      store<T>(results + p.out * p.columns + here + n * LANES<T>, above[n]);
    }
  }
};

}  // namespace

#define ENTRY_POINTS(T, suffix)                                                                                        \
  extern "C" void insertion_##suffix(const Problem* p, int64_t first, int64_t last, T* result, int64_t k) {            \
    tiles<T>(*p, first, last, Insertion<T>{*p, k, result, std::vector<Vector<T>>(4 * k)});                             \
  }                                                                                                                    \
  extern "C" void bisection_##suffix(const Problem* p, int64_t first, int64_t last, T* result, int64_t k) {            \
    tiles<T>(*p, first, last, Bisection<T>{*p, k, result, std::vector<Vector<T>>(4 * p->batch)});                      \
  }                                                                                                                    \
  extern "C" void sums_##suffix(const Problem* p, int64_t first, int64_t last, T* result) {                            \
    tiles<T>(*p, first, last, Sums<T>{*p, result});                                                                    \
  }                                                                                                                    \
  extern "C" void moments_##suffix(const Problem* p, int64_t first, int64_t last, T* results) {                        \
    tiles<T>(*p, first, last, Moments<T>{*p, results});                                                                \
  }                                                                                                                    \
  extern "C" void excess_##suffix(const Problem* p, int64_t first, int64_t last, T* results, const T* t) {             \
    tiles<T>(*p, first, last, Excess<T>{*p, t, results});                                                              \
  }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
