// From int32 accumulators to codes or floats: the formulas of numerics.h on vectors. Only for int8_*_cpu.cpp;
// everything here is local to the including file and its instruction set.
#pragma once

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include <cstring>

#include "core/int8_conv2d_plan.h"
#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

// One output pixel: where a tile's first channel lies in the residual image, if there is one, and in the
// output, codes or floats.
struct OutputPixel {
  const uint8_t* residual;
  uint8_t* output;
};

#if PQK_ISA_LEVEL >= 2
using Ints = __m512i;
using Floats = __m512;
inline Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
inline Ints load_codes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints set_ints(int32_t x) { return _mm512_set1_epi32(x); }
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
  for (int i = 0; i < kOutTile; ++i) result.code[i] = static_cast<uint8_t>(a.vector[i] < 0 ? 0 : a.vector[i]);
  return result;
}
#endif

// The constants of one tile of channels in registers: the compiler must take every store of codes for a change
// of whatever lies in memory.
template <bool HasResidual>
struct TileConstants {
  Floats multiplier[kVectors], bias[kVectors], high, residual_multiplier;
  Ints residual_zero_point;

  TileConstants(const Int8ConvPlan& plan, int64_t constants)
      : high(set_floats(plan.quant_max)),
        residual_multiplier(set_floats(plan.residual_multiplier)),
        residual_zero_point(set_ints(plan.residual_zero_point)) {
    for (int i = 0; i < kVectors; ++i) {
      multiplier[i] = load_floats(plan.multiplier + constants + i * kLanes);
      bias[i] = load_floats(plan.bias + constants + i * kLanes);
    }
  }

  // rescale and rescale_residual of numerics.h for vector `i` of the tile.
  Floats real(const int32_t* sums, int i, const OutputPixel& pixel, int64_t offset) const {
    Floats value = multiply(to_floats(load_ints(sums + i * kLanes)), multiplier[i]);
    if constexpr (HasResidual) {
      const Ints difference = subtract(load_codes(pixel.residual + offset + i * kLanes), residual_zero_point);
      value = add(value, multiply(to_floats(difference), residual_multiplier));
    }
    return add(value, bias[i]);
  }

  // Codes before the clamp to quant_min. quant_max is clamped before the conversion; a value below the range of
  // int32 converts to INT32_MIN, which the saturating pack takes to 0.
  TileAccumulator code_ints(const int32_t* sums, const OutputPixel& pixel, int64_t offset) const {
    TileAccumulator codes;
    for (int i = 0; i < kVectors; ++i) {
      codes.vector[i] = round_to_ints(minimum(real(sums, i, pixel, offset), high));
    }
    return codes;
  }
};

// One tile of channels of several pixels.
struct TileSums {
  const int32_t* sums;
  int64_t step;  // from a pixel's sums to the next's
  int64_t pixels;
  int64_t offset;  // of the tile's first channel from the output pixel's
  int64_t channels;
};

template <bool HasResidual>
void store_floats(const TileConstants<HasResidual>& constants, const TileSums& t, const OutputPixel* output) {
  for (int64_t m = 0; m < t.pixels; ++m) {
    float values[kOutTile];
    for (int i = 0; i < kVectors; ++i) {
      store_floats(values + i * kLanes, constants.real(t.sums + m * t.step, i, output[m], t.offset));
    }
    memcpy(reinterpret_cast<float*>(output[m].output) + t.offset, values, t.channels * sizeof(float));
  }
}

template <bool HasResidual>
void store_codes(const TileConstants<HasResidual>& constants, Codes low, const TileSums& t,
                 const OutputPixel* output) {
  int64_t m = 0;
#if PQK_ISA_LEVEL >= 2
  // Four pixels at a time: the packs leave 4 codes of each pixel in every 128-bit lane, one permutation puts
  // each pixel's 16 codes together.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i lows = _mm512_broadcast_i32x4(low);
  for (; t.channels == kOutTile && m + 4 <= t.pixels; m += 4) {
    const OutputPixel* out = output + m;
    const int32_t* sums = t.sums + m * t.step;
    const __m512i code0 = constants.code_ints(sums, out[0], t.offset).vector[0];
    const __m512i code1 = constants.code_ints(sums + t.step, out[1], t.offset).vector[0];
    const __m512i code2 = constants.code_ints(sums + 2 * t.step, out[2], t.offset).vector[0];
    const __m512i code3 = constants.code_ints(sums + 3 * t.step, out[3], t.offset).vector[0];
    const __m512i bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(code0, code1), _mm512_packs_epi32(code2, code3));
    const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_max_epu8(bytes, lows));
    store_codes(out[0].output + t.offset, _mm512_castsi512_si128(codes));
    store_codes(out[1].output + t.offset, _mm512_extracti32x4_epi32(codes, 1));
    store_codes(out[2].output + t.offset, _mm512_extracti32x4_epi32(codes, 2));
    store_codes(out[3].output + t.offset, _mm512_extracti32x4_epi32(codes, 3));
  }
#endif
  for (; m < t.pixels; ++m) {
    const int32_t* sums = t.sums + m * t.step;
    const Codes codes = maximum(pack(constants.code_ints(sums, output[m], t.offset)), low);
    if (t.channels == kOutTile) {
      store_codes(output[m].output + t.offset, codes);
    } else {
      uint8_t bytes[kOutTile];
      store_codes(bytes, codes);
      memcpy(output[m].output + t.offset, bytes, t.channels);
    }
  }
}

template <bool HasResidual>
void requantize_tile(const Int8ConvPlan& plan, int64_t constants, const TileSums& t,
                     const OutputPixel* output) {
  const TileConstants<HasResidual> in_registers(plan, constants);
  if (plan.float_output) {
    store_floats(in_registers, t, output);
  } else {
    store_codes(in_registers, set_codes(static_cast<uint8_t>(plan.quant_min)), t, output);
  }
}

// The sums of `pixels` pixels x `panel` tiles of channels, [pixel][tile][16], whose packed constants begin at
// `constants`; only `channels` of these channels exist.
inline void requantize(const Int8ConvPlan& plan, const int32_t* sums, int64_t pixels, int64_t panel,
                       int64_t constants, int64_t channels, const OutputPixel* output) {
  for (int64_t tile = 0; tile < panel; ++tile) {
    const int64_t first = tile * kOutTile;
    const int64_t exist = channels - first < kOutTile ? channels - first : kOutTile;
    const TileSums t{sums + first, panel * kOutTile, pixels, first, exist};
    plan.has_residual ? requantize_tile<true>(plan, constants + first, t, output)
                      : requantize_tile<false>(plan, constants + first, t, output);
  }
}

}  // namespace

#include "core/isa_end.h"
