// Blocks of codes as vectors of floats and back, for the *_cpu.cpp files that map codes. A block is as many
// codes as one register has bytes. Its floats are in the order that interleaving gives: vector i (of 4), lane l
// is code l / 4 * 16 + i * 4 + l % 4; packing brings the codes back into theirs.
#pragma once

#include "core/int8_vector_cpu.h"

#include "core/isa_begin.h"

#if defined(PQK_X86_64)

namespace {

constexpr int64_t kBlock = kLanes * 4;  // codes

#if PQK_ISA_LEVEL >= 2
inline Ints load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(uint8_t* p, Ints a) { _mm512_storeu_si512(p, a); }
inline void store_bytes(uint8_t* p, Ints a, int64_t count) {
  _mm512_mask_storeu_epi8(p, (uint64_t{1} << count) - 1, a);
}
inline Ints low_bytes(Ints a, Ints b) { return _mm512_unpacklo_epi8(a, b); }
inline Ints high_bytes(Ints a, Ints b) { return _mm512_unpackhi_epi8(a, b); }
inline Ints low_words(Ints a, Ints b) { return _mm512_unpacklo_epi16(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm512_unpackhi_epi16(a, b); }
inline Ints pack_words(Ints a, Ints b) { return _mm512_packs_epi32(a, b); }
inline Ints pack_bytes(Ints a, Ints b) { return _mm512_packus_epi16(a, b); }
inline Ints maximum_bytes(Ints a, Ints b) { return _mm512_max_epu8(a, b); }
inline Ints minimum_bytes(Ints a, Ints b) { return _mm512_min_epu8(a, b); }
inline Ints set_bytes(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline Ints set_words(int16_t x) { return _mm512_set1_epi16(x); }
inline Ints add_words(Ints a, Ints b) { return _mm512_add_epi16(a, b); }
inline Floats as_floats(Ints a) { return _mm512_castsi512_ps(a); }
// Four floats at p, at p + 16, and so on.
inline Floats load_fours(const float* p) {
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 16), 1);
  const __m256 high =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 32)), _mm_loadu_ps(p + 48), 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
#elif PQK_ISA_LEVEL == 1
inline Ints load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_bytes(uint8_t* p, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline Ints low_bytes(Ints a, Ints b) { return _mm256_unpacklo_epi8(a, b); }
inline Ints high_bytes(Ints a, Ints b) { return _mm256_unpackhi_epi8(a, b); }
inline Ints low_words(Ints a, Ints b) { return _mm256_unpacklo_epi16(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm256_unpackhi_epi16(a, b); }
inline Ints pack_words(Ints a, Ints b) { return _mm256_packs_epi32(a, b); }
inline Ints pack_bytes(Ints a, Ints b) { return _mm256_packus_epi16(a, b); }
inline Ints maximum_bytes(Ints a, Ints b) { return _mm256_max_epu8(a, b); }
inline Ints minimum_bytes(Ints a, Ints b) { return _mm256_min_epu8(a, b); }
inline Ints set_bytes(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline Ints set_words(int16_t x) { return _mm256_set1_epi16(x); }
inline Ints add_words(Ints a, Ints b) { return _mm256_add_epi16(a, b); }
inline Floats as_floats(Ints a) { return _mm256_castsi256_ps(a); }
inline Floats load_fours(const float* p) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 16), 1);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
#else
inline Ints load_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store_bytes(uint8_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }
inline Ints low_bytes(Ints a, Ints b) { return _mm_unpacklo_epi8(a, b); }
inline Ints high_bytes(Ints a, Ints b) { return _mm_unpackhi_epi8(a, b); }
inline Ints low_words(Ints a, Ints b) { return _mm_unpacklo_epi16(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm_unpackhi_epi16(a, b); }
inline Ints pack_words(Ints a, Ints b) { return _mm_packs_epi32(a, b); }
inline Ints pack_bytes(Ints a, Ints b) { return _mm_packus_epi16(a, b); }
inline Ints maximum_bytes(Ints a, Ints b) { return _mm_max_epu8(a, b); }
inline Ints minimum_bytes(Ints a, Ints b) { return _mm_min_epu8(a, b); }
inline Ints set_bytes(uint8_t x) { return _mm_set1_epi8(static_cast<char>(x)); }
inline Ints set_words(int16_t x) { return _mm_set1_epi16(x); }
inline Ints add_words(Ints a, Ints b) { return _mm_add_epi16(a, b); }
inline Floats as_floats(Ints a) { return _mm_castsi128_ps(a); }
inline Floats load_fours(const float* p) { return _mm_loadu_ps(p); }
#endif

#if PQK_ISA_LEVEL < 2
inline void store_bytes(uint8_t* p, Ints a, int64_t count) {
  uint8_t bytes[sizeof(Ints)];
  store_bytes(bytes, a);
  memcpy(p, bytes, static_cast<size_t>(count));
}
#endif

// a + b, bit for bit, in the units that multiply: the others are busy with conversions.
inline Floats add_by_product(Floats a, Floats b) {
#if PQK_ISA_LEVEL >= 1
  return multiply_add(a, set_floats(1.0f), b);
#else
  return add(a, b);
#endif
}

// The first `count` bytes, all of them at most.
inline void store_first(uint8_t* p, Ints a, int64_t count) {
  count >= kBlock ? store_bytes(p, a) : store_bytes(p, a, count);
}

struct IntBlock {
  Ints vector[4];
};
struct FloatBlock {
  Floats vector[4];
};

// A code as the low bits of a float with this value's exponent is kFloatBias + code, without a conversion; less
// kFloatBias + zero_point (plus unbias(zero_point)) it is the exact difference.
constexpr float kFloatBias = 8388608.0f;  // 2^23, 0x4b000000

inline float unbias(int32_t zero_point) { return -(kFloatBias + static_cast<float>(zero_point)); }

inline FloatBlock biased_floats(Ints codes) {
  const Ints zero = set_ints(0), exponent = set_words(0x4b00);
  const Ints low = low_bytes(codes, zero), high = high_bytes(codes, zero);
  return {{as_floats(low_words(low, exponent)), as_floats(high_words(low, exponent)),
           as_floats(low_words(high, exponent)), as_floats(high_words(high, exponent))}};
}

// `count` constants of a block's codes, in the block's order; zeros behind them.
inline FloatBlock load_constants(const float* constants, int64_t count) {
  float padded[kBlock];
  if (count < kBlock) {
    memset(padded, 0, sizeof padded);
    memcpy(padded, constants, static_cast<size_t>(count) * sizeof(float));
    constants = padded;
  }
  FloatBlock block;
  for (int i = 0; i < 4; ++i) block.vector[i] = load_fours(constants + i * 4);
  return block;
}

// to_code of numerics.h. The packs saturate to 0..255. Where values may not fit int32, `clamps_early`,
// quant_max is clamped before the conversion; a value below the range then converts to INT32_MIN, which packs
// to 0.
struct CodeRange {
  Floats early_max;
  Ints quant_min, quant_max;

  CodeRange(int32_t low, int32_t high)
      : early_max(set_floats(static_cast<float>(high))),
        quant_min(set_bytes(static_cast<uint8_t>(low))),
        quant_max(set_bytes(static_cast<uint8_t>(high))) {}

  template <bool clamps_early>
  Ints codes(const FloatBlock& values) const {
    Ints ints[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      ints[i] = round_to_ints(clamps_early ? minimum(values.vector[i], early_max) : values.vector[i]);
    }
    const Ints bytes = pack_bytes(pack_words(ints[0], ints[1]), pack_words(ints[2], ints[3]));
    return maximum_bytes(minimum_bytes(bytes, quant_max), quant_min);
  }
};

}  // namespace

#endif

#include "core/isa_end.h"
