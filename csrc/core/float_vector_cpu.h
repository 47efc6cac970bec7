// Vectors of floats for the instruction set of the region that includes this file.

namespace {

#if PQK_ISA_LEVEL >= 2
constexpr int kLanes = 16;
#elif PQK_ISA_LEVEL == 1
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

inline Floats load_floats(const float* p) {
  Floats x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void store_floats(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof x); }
inline Floats broadcast(float x) { return Floats{} + x; }

// a * b + sum.
inline Floats multiply_add(Floats a, Floats b, Floats sum) {
#if PQK_ISA_LEVEL >= 2
  return _mm512_fmadd_ps(a, b, sum);
#elif PQK_ISA_LEVEL == 1
  return _mm256_fmadd_ps(a, b, sum);
#else
  return a * b + sum;
#endif
}

// A NaN stays one.
inline Floats clamp(Floats x, Floats low, Floats high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// The first `count` of a vector; reads and writes nothing behind them.
inline Floats load_some(const float* p, int64_t count) {
  Floats x = {};
  __builtin_memcpy(&x, p, static_cast<size_t>(count) * sizeof(float));
  return x;
}
inline void store_some(float* p, Floats x, int64_t count) {
  if (count >= kLanes) {
    store_floats(p, x);
  } else {
    __builtin_memcpy(p, &x, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace
