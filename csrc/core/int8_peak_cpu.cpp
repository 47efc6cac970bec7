#include "core/int8_peak.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2
using Vector = __m512i;
inline Vector broadcast(int32_t x) { return _mm512_set1_epi32(x); }
inline Vector load(const uint8_t* p) { return _mm512_load_si512(p); }
inline Vector add(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm512_dpbusd_epi32(sum, x, w); }
inline int32_t total(Vector a) { return _mm512_reduce_add_epi32(a); }
constexpr int64_t kProducts = 64;  // of one multiply_add
#elif PQK_ISA_LEVEL == 1
using Vector = __m256i;
inline Vector broadcast(int32_t x) { return _mm256_set1_epi32(x); }
inline Vector load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline Vector add(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
inline Vector multiply_add(Vector sum, Vector x, Vector w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}
inline int32_t total(Vector a) {
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
  return _mm_cvtsi128_si32(quarter) + _mm_extract_epi32(quarter, 1);
}
constexpr int64_t kProducts = 16;
#elif defined(PQK_X86_64)
using Vector = __m128i;
inline Vector broadcast(int32_t x) { return _mm_set1_epi32(x); }
inline Vector load(const uint8_t* p) { return _mm_load_si128(reinterpret_cast<const __m128i*>(p)); }
inline Vector add(Vector a, Vector b) { return _mm_add_epi32(a, b); }
inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm_add_epi32(sum, _mm_madd_epi16(x, w)); }
inline int32_t total(Vector a) {
  const __m128i half = _mm_add_epi32(a, _mm_unpackhi_epi64(a, a));
  return _mm_cvtsi128_si32(half) + _mm_cvtsi128_si32(_mm_shuffle_epi32(half, 1));
}
constexpr int64_t kProducts = 8;
#else
using Vector = int32_t;
inline Vector broadcast(int32_t x) { return x; }
inline Vector load(const uint8_t* p) { return p[0] | p[1] << 8 | p[2] << 16 | p[3] << 24; }
inline Vector add(Vector a, Vector b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
inline Vector multiply_add(Vector sum, Vector x, Vector w) { return add(sum, static_cast<int8_t>(x) * w); }
inline int32_t total(Vector a) { return a; }
constexpr int64_t kProducts = 1;
#endif

// The compiler must take `x` for changed: else it computes each product once, and none of them in the loop.
inline void forget(Vector& x) {
#if PQK_ISA_LEVEL >= 2
  __asm__ volatile("" : "+v"(x));
#elif defined(PQK_X86_64)
  __asm__ volatile("" : "+x"(x));
#else
  __asm__ volatile("" : "+r"(x));
#endif
}

// Independent sums: enough to hide the latency (of up to 6 cycles, two a cycle), and few enough for 16
// registers.
constexpr int kSums = 12;

}  // namespace

// Variables and no array: gcc keeps an array in memory.
int32_t int8_peak_kernel(int64_t repeats) {
  Vector a = broadcast(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
  Vector x = broadcast(0x010003), w = broadcast(0x020001);
  const auto step = [&](Vector& sum) {
    forget(x);
    sum = multiply_add(sum, x, w);
  };
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    step(a), step(b), step(c), step(d), step(e), step(f);
    step(g), step(h), step(i), step(j), step(k), step(l);
  }
  Vector all = a;
  for (const Vector& sum : {b, c, d, e, f, g, h, i, j, k, l}) all = add(all, sum);
  return total(all);
}

int64_t int8_peak_products() { return kSums * kProducts; }

int32_t read_kernel(const uint8_t* data, int64_t bytes) {
  constexpr int kChains = 4;
  constexpr int64_t kStep = kChains * static_cast<int64_t>(sizeof(Vector));
  static_assert(kReadUnit % kStep == 0);
  Vector sum[kChains];
  for (Vector& chain : sum) chain = broadcast(0);
  for (int64_t at = 0; at < bytes; at += kStep) {
    for (int i = 0; i < kChains; ++i) {
      sum[i] = add(sum[i], load(data + at + i * static_cast<int64_t>(sizeof(Vector))));
    }
  }
  for (int i = 1; i < kChains; ++i) sum[0] = add(sum[0], sum[i]);
  return total(sum[0]);
}

#include "core/isa_end.h"
