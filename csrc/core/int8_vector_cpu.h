// Vectors of one instruction set for int8_*_cpu.cpp, each named by what it does. Everything is local to the
// including file and its instruction set.
#pragma once

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/int8_conv2d_plan.h"

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2
using Ints = __m512i;
using Floats = __m512;
inline Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
inline Ints load_codes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints set_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints round_to_ints(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline Floats set_floats(float x) { return _mm512_set1_ps(x); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline void store_ints(int32_t* p, Ints a) { _mm512_storeu_si512(p, a); }
#elif PQK_ISA_LEVEL == 1
using Ints = __m256i;
using Floats = __m256;
inline Ints load_ints(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Ints load_codes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Ints set_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints round_to_ints(Floats a) { return _mm256_cvtps_epi32(a); }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline Floats set_floats(float x) { return _mm256_set1_ps(x); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline void store_ints(int32_t* p, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
#elif defined(PQK_X86_64)
using Ints = __m128i;
using Floats = __m128;
inline Ints load_ints(const int32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Ints load_codes(const uint8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  const __m128i zero = _mm_setzero_si128();
  return _mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
}
inline Ints set_ints(int32_t x) { return _mm_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm_add_epi32(a, b); }
inline Ints subtract(Ints a, Ints b) { return _mm_sub_epi32(a, b); }
inline Ints round_to_ints(Floats a) { return _mm_cvtps_epi32(a); }
inline Floats to_floats(Ints a) { return _mm_cvtepi32_ps(a); }
inline Floats load_floats(const float* p) { return _mm_loadu_ps(p); }
inline Floats set_floats(float x) { return _mm_set1_ps(x); }
inline Floats multiply(Floats a, Floats b) { return _mm_mul_ps(a, b); }
inline Floats add(Floats a, Floats b) { return _mm_add_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm_min_ps(a, b); }
inline void store_floats(float* p, Floats a) { _mm_storeu_ps(p, a); }
inline void store_ints(int32_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }
#else
// One lane: for processors without vectors of their own here, and as the plainest statement of the kernels.
using Ints = int32_t;
using Floats = float;
inline Ints load_ints(const int32_t* p) { return *p; }
inline Ints load_codes(const uint8_t* p) { return *p; }
inline Ints set_ints(int32_t x) { return x; }
inline Ints add_ints(Ints a, Ints b) { return a + b; }
inline Ints subtract(Ints a, Ints b) { return a - b; }
inline Ints round_to_ints(Floats a) { return static_cast<int32_t>(rintf(a < -1.0f ? -1.0f : a)); }
inline Floats to_floats(Ints a) { return static_cast<float>(a); }
inline Floats load_floats(const float* p) { return *p; }
inline Floats set_floats(float x) { return x; }
inline Floats multiply(Floats a, Floats b) { return a * b; }
inline Floats add(Floats a, Floats b) { return a + b; }
inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
inline void store_floats(float* p, Floats a) { *p = a; }
inline void store_ints(int32_t* p, Ints a) { *p = a; }
#endif

constexpr int kLanes = sizeof(Ints) / sizeof(int32_t);
constexpr int kVectors = kOutTile / kLanes;  // of one tile of output channels

struct TileAccumulator {
  Ints vector[kVectors];
};

#if defined(PQK_X86_64)
using Codes = __m128i;  // 16 codes
inline Codes set_codes(uint8_t x) { return _mm_set1_epi8(static_cast<char>(x)); }
inline Codes maximum(Codes a, Codes b) { return _mm_max_epu8(a, b); }
inline void store_codes(uint8_t* p, Codes a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }

// Saturates to 0..255.
inline Codes pack(const TileAccumulator& a) {
#if PQK_ISA_LEVEL >= 2
  return _mm512_cvtusepi32_epi8(_mm512_max_epi32(a.vector[0], _mm512_setzero_si512()));
#elif PQK_ISA_LEVEL == 1
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packs_epi32(a.vector[0], a.vector[1]), _MM_SHUFFLE(3, 1, 2, 0));
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
  return _mm_packus_epi16(_mm_packs_epi32(a.vector[0], a.vector[1]), _mm_packs_epi32(a.vector[2], a.vector[3]));
#endif
}
#else
struct Codes {
  uint8_t code[kOutTile];
};
inline Codes set_codes(uint8_t x) {
  Codes result;
  memset(result.code, x, kOutTile);
  return result;
}
inline Codes maximum(Codes a, const Codes& b) {
  for (int i = 0; i < kOutTile; ++i) a.code[i] = a.code[i] < b.code[i] ? b.code[i] : a.code[i];
  return a;
}
inline void store_codes(uint8_t* p, const Codes& a) { memcpy(p, a.code, kOutTile); }
inline Codes pack(const TileAccumulator& a) {
  Codes result;
  for (int i = 0; i < kOutTile; ++i)
    result.code[i] = static_cast<uint8_t>(a.vector[i] < 0 ? 0 : a.vector[i] > 255 ? 255 : a.vector[i]);
  return result;
}
#endif

// The first `count` codes; writes nothing behind them.
[[gnu::noinline]] inline void store_codes(uint8_t* p, const Codes& codes, int64_t count) {
  if (count == kOutTile) {
    store_codes(p, codes);
    return;
  }
  uint8_t bytes[kOutTile];
  store_codes(bytes, codes);
  const uint8_t* from = bytes;
  const auto copy = [&](auto size) {
    if ((count & size) == 0) return;
    memcpy(p, from, size);
    p += size;
    from += size;
  };
  copy(std::integral_constant<int64_t, 8>());
  copy(std::integral_constant<int64_t, 4>());
  copy(std::integral_constant<int64_t, 2>());
  copy(std::integral_constant<int64_t, 1>());
}

// Sums of products of four neighbouring codes (a quad, one int32 lane) with four weights, exact on every set.
#if PQK_ISA_LEVEL >= 2

using Quads = Ints;
constexpr WeightFormat kWeightFormat = WeightFormat::kQuads;

inline Quads split_quads(Ints bytes) { return bytes; }
inline Ints add_products(Ints sum, Quads x, const uint8_t* weight, int64_t) {
  return _mm512_dpbusd_epi32(sum, x, _mm512_load_si512(weight));
}

#elif defined(PQK_X86_64)

// As 16-bit numbers: codes 0 and 2, and 1 and 3. Two products of u8 and s8 fit the 32 bits of the multiply-add,
// so nothing saturates as it would in the 8-bit multiply-add.
struct Quads {
  Ints even, odd;
};
constexpr WeightFormat kWeightFormat = WeightFormat::kPairs;

#if PQK_ISA_LEVEL == 1
inline Quads split_quads(Ints bytes) {
  return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
}
inline Ints add_pairs(Ints sum, Ints x, const uint8_t* weight) {
  const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}
#else
inline Quads split_quads(Ints bytes) {
  return {_mm_and_si128(bytes, _mm_set1_epi16(0xff)), _mm_srli_epi16(bytes, 8)};
}
inline Ints add_pairs(Ints sum, Ints x, const uint8_t* weight) {
  const __m128i w = _mm_load_si128(reinterpret_cast<const __m128i*>(weight));
  return _mm_add_epi32(sum, _mm_madd_epi16(x, w));
}
#endif

// The weights of codes 1 and 3 lie `odd` bytes behind those of 0 and 2.
inline Ints add_products(Ints sum, const Quads& x, const uint8_t* weight, int64_t odd) {
  return add_pairs(add_pairs(sum, x.even, weight), x.odd, weight + odd);
}

#else

using Quads = Ints;
constexpr WeightFormat kWeightFormat = WeightFormat::kQuads;

inline Quads split_quads(Ints bytes) { return bytes; }
inline Ints add_products(Ints sum, Quads x, const uint8_t* weight, int64_t) {
  uint8_t codes[4];
  memcpy(codes, &x, 4);
  for (int i = 0; i < 4; ++i) sum += codes[i] * static_cast<int8_t>(weight[i]);
  return sum;
}

#endif

inline Quads broadcast_quad(const uint8_t* codes) {
  int32_t quad;
  memcpy(&quad, codes, 4);
  return split_quads(set_ints(quad));
}

// Bytes of the packed weights of one vector of quads.
constexpr int64_t kVectorWeights = kLanes * (kWeightFormat == WeightFormat::kQuads ? 4 : 8);

}  // namespace

#include "core/isa_end.h"
