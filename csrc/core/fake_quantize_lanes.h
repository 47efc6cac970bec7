// What the fake-quantize kernels share, once per instruction set: sixteen elements in registers, and how
// elements, parameters and bounds get there. Opens and closes its own region of core/isa_begin.h, so only
// *_cpu.cpp files may include it, above their own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/fake_quantize.h"

#if defined(__GNUC__)
#define PQK_INLINE inline __attribute__((always_inline))
#else
#define PQK_INLINE inline
#endif

#include "core/isa_begin.h"

// Sixteen elements are one step on every instruction set, in 16 / kWidth registers, so that sums have one
// order.
constexpr int kStep = 16;

// One element a register: float64, and CPUs without a path of their own.
template <class T>
struct ScalarLanes {
  using Element = T;
  using V = T;
  using M = bool;
  static constexpr int kWidth = 1;
  static V set(T value) { return value; }
  static V load(const T* at) { return *at; }
  static void store(T* at, V value) { *at = value; }
  static V rint(V value) { return std::rint(value); }
  static void stream(T* at, V value) { *at = value; }
  static M at_least(V a, V b) { return a >= b; }
  static M ordered(V a) { return a == a; }
  static M equal(V a, V b) { return a == b; }
  static M differ(V a, V b) { return a < b || a > b; }
  static M equal(M keep, V a, V b) { return keep && a == b; }
  static M differ(M keep, V a, V b) { return keep && (a < b || a > b); }
  static M both(M a, M b) { return a && b; }
  static M either(M a, M b) { return a || b; }
  static M from_bytes(const uint8_t* at) { return *at != 0; }
  static V select(M keep, V yes, V no) { return keep ? yes : no; }
  static V zero_unless(M keep, V value) { return keep ? value : T(0); }
  static V add_where(M keep, V sum, V value) { return keep ? sum + value : sum; }
  // NaN values pass through, as in numerics.h.
  static V clamp(V v, V low, V high) { return v < low ? low : (v > high ? high : v); }
  static uint32_t bits(M mask) { return mask; }
};

#if PQK_ISA_LEVEL >= 2
struct FloatLanes {
  using Element = float;
  using V = __m512;
  using M = __mmask16;
  static constexpr int kWidth = 16;
  static V set(float value) { return _mm512_set1_ps(value); }
  static V load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, V value) { _mm512_storeu_ps(at, value); }
  static void stream(float* at, V value) { _mm512_stream_ps(at, value); }
  static V rint(V value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static M at_least(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static M ordered(V a) { return _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q); }
  static M equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static M differ(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_OQ); }
  static M equal(M keep, V a, V b) { return _mm512_mask_cmp_ps_mask(keep, a, b, _CMP_EQ_OQ); }
  static M differ(M keep, V a, V b) { return _mm512_mask_cmp_ps_mask(keep, a, b, _CMP_NEQ_OQ); }
  static M both(M a, M b) { return a & b; }
  static M either(M a, M b) { return a | b; }
  static M from_bytes(const uint8_t* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm_test_epi8_mask(bytes, bytes);
  }
  static V select(M keep, V yes, V no) { return _mm512_mask_blend_ps(keep, no, yes); }
  static V zero_unless(M keep, V value) { return _mm512_maskz_mov_ps(keep, value); }
  static V add_where(M keep, V sum, V value) { return _mm512_mask_add_ps(sum, keep, sum, value); }
  // max and min return their second operand when one is NaN.
  static V clamp(V v, V low, V high) { return _mm512_min_ps(high, _mm512_max_ps(low, v)); }
  static uint32_t bits(M mask) { return mask; }
};
#elif PQK_ISA_LEVEL == 1
struct FloatLanes {
  using Element = float;
  using V = __m256;
  using M = __m256;
  static constexpr int kWidth = 8;
  static V set(float value) { return _mm256_set1_ps(value); }
  static V load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, V value) { _mm256_storeu_ps(at, value); }
  static void stream(float* at, V value) { _mm256_stream_ps(at, value); }
  static V rint(V value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static M at_least(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static M ordered(V a) { return _mm256_cmp_ps(a, a, _CMP_ORD_Q); }
  static M equal(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static M differ(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_OQ); }
  static M equal(M keep, V a, V b) { return both(keep, equal(a, b)); }
  static M differ(M keep, V a, V b) { return both(keep, differ(a, b)); }
  static M both(M a, M b) { return _mm256_and_ps(a, b); }
  static M either(M a, M b) { return _mm256_or_ps(a, b); }
  static M from_bytes(const uint8_t* at) {
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(lanes, _mm256_setzero_si256()));
  }
  static V select(M keep, V yes, V no) { return _mm256_blendv_ps(no, yes, keep); }
  static V zero_unless(M keep, V value) { return _mm256_and_ps(keep, value); }
  static V add_where(M keep, V sum, V value) { return sum + zero_unless(keep, value); }
  static V clamp(V v, V low, V high) { return _mm256_min_ps(high, _mm256_max_ps(low, v)); }
  static uint32_t bits(M mask) { return static_cast<uint32_t>(_mm256_movemask_ps(mask)); }
};
#elif defined(PQK_X86_64)
struct FloatLanes {
  using Element = float;
  using V = __m128;
  using M = __m128;
  static constexpr int kWidth = 4;
  static V set(float value) { return _mm_set1_ps(value); }
  static V load(const float* at) { return _mm_loadu_ps(at); }
  static void store(float* at, V value) { _mm_storeu_ps(at, value); }
  static void stream(float* at, V value) { _mm_stream_ps(at, value); }
  // SSE2 has no rounding instruction: adding and subtracting 2^23 rounds what is smaller, half to even.
  static V rint(V value) {
    const __m128 sign_bit = _mm_set1_ps(-0.0f), limit = _mm_set1_ps(8388608.0f);
    const __m128 magnitude = _mm_andnot_ps(sign_bit, value);
    const __m128 rounded = _mm_sub_ps(_mm_add_ps(magnitude, limit), limit);
    const __m128 is_small = _mm_cmplt_ps(magnitude, limit);
    return select(is_small, _mm_or_ps(rounded, _mm_and_ps(sign_bit, value)), value);
  }
  static M at_least(V a, V b) { return _mm_cmpge_ps(a, b); }
  static M ordered(V a) { return _mm_cmpord_ps(a, a); }
  static M equal(V a, V b) { return _mm_cmpeq_ps(a, b); }
  static M differ(V a, V b) { return _mm_or_ps(_mm_cmplt_ps(a, b), _mm_cmpgt_ps(a, b)); }
  static M equal(M keep, V a, V b) { return both(keep, equal(a, b)); }
  static M differ(M keep, V a, V b) { return both(keep, differ(a, b)); }
  static M both(M a, M b) { return _mm_and_ps(a, b); }
  static M either(M a, M b) { return _mm_or_ps(a, b); }
  static M from_bytes(const uint8_t* at) {
    int32_t four;
    memcpy(&four, at, sizeof four);
    const __m128i zero = _mm_setzero_si128();
    const __m128i lanes = _mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
    return _mm_castsi128_ps(_mm_cmpgt_epi32(lanes, zero));
  }
  static V select(M keep, V yes, V no) { return _mm_or_ps(_mm_and_ps(keep, yes), _mm_andnot_ps(keep, no)); }
  static V zero_unless(M keep, V value) { return _mm_and_ps(keep, value); }
  static V add_where(M keep, V sum, V value) { return sum + zero_unless(keep, value); }
  static V clamp(V v, V low, V high) { return _mm_min_ps(high, _mm_max_ps(low, v)); }
  static uint32_t bits(M mask) { return static_cast<uint32_t>(_mm_movemask_ps(mask)); }
};
#else
using FloatLanes = ScalarLanes<float>;
#endif

struct BFloat16 {
  uint16_t bits;
};

inline void widen(const BFloat16* in, float* out, int count) {
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(in[i].bits) << 16;
    memcpy(&out[i], &bits, sizeof bits);
  }
}

inline void narrow(const float* in, BFloat16* out, int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, &in[i], sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out[i].bits = static_cast<uint16_t>(in[i] != in[i] ? 0x7fc0 : rounded);
  }
}

// Gives sixteen elements at `at` as float or double: in place when it can, else through `buffer`, zero-padded.
template <class Element, class Storage>
PQK_INLINE const Element* fetch(const Storage* at, Element* buffer, int count) {
  if constexpr (std::is_same_v<Element, Storage>) {
    if (count == kStep) return at;
    memset(buffer, 0, kStep * sizeof(Element));
    memcpy(buffer, at, count * sizeof(Element));
  } else {
    if (count < kStep) memset(buffer, 0, kStep * sizeof(Element));
    widen(at, buffer, count);
  }
  return buffer;
}

template <class Element, class Storage>
PQK_INLINE Element* target(Storage* at, Element* buffer, int count) {
  if constexpr (std::is_same_v<Element, Storage>) {
    if (count == kStep) return at;
  }
  return buffer;
}

template <class Element, class Storage>
PQK_INLINE void flush(Storage* at, const Element* buffer, int count) {
  if constexpr (std::is_same_v<Element, Storage>) {
    if (count < kStep) memcpy(at, buffer, count * sizeof(Element));
  } else {
    narrow(buffer, at, count);
  }
}

// The bounds of codes less the zero point, which clamp rint(x / scale): quant_min - zero_point and the like are
// exact, and a rounded sum with the zero point could only differ where both forms clamp.
template <class Lanes>
struct Bounds {
  explicit Bounds(const FakeQuantizeParams& p)
      : low(Lanes::set(static_cast<typename Lanes::Element>(p.quant_min))),
        high(Lanes::set(static_cast<typename Lanes::Element>(p.quant_max))) {}
  typename Lanes::V low, high;
};

// The parameters of one channel, in registers.
template <class Lanes>
struct Constants {
  using E = typename Lanes::Element;
  using V = typename Lanes::V;
  Constants(const FakeQuantizeParams& p, const Bounds<Lanes>& bounds, const FakeQuantizeTables&, int64_t row,
            int64_t)
      : Constants(bounds, static_cast<const E*>(p.scale)[row % p.view.channels],
                  static_cast<const E*>(p.zero_point)[row % p.view.channels]) {}
  Constants(const Bounds<Lanes>& bounds, E scale_value, E zero_point)
      : s(Lanes::set(scale_value)),
        inv(Lanes::set(E(1) / scale_value)),
        l(bounds.low - Lanes::set(zero_point)),
        h(bounds.high - Lanes::set(zero_point)) {}
  V scale(int64_t) const { return s; }
  V inv_scale(int64_t) const { return inv; }
  V low(int64_t) const { return l; }
  V high(int64_t) const { return h; }
  V s, inv, l, h;
};

// One parameter an element of the row, from `column` on.
template <class Lanes>
struct Tables {
  using E = typename Lanes::Element;
  using V = typename Lanes::V;
  Tables(const FakeQuantizeParams&, const Bounds<Lanes>& b, const FakeQuantizeTables& t, int64_t,
         int64_t column)
      : s(static_cast<const E*>(t.scale) + column),
        inv(static_cast<const E*>(t.inv_scale) + column),
        z(static_cast<const E*>(t.zero_point) + column),
        bounds(b) {}
  V scale(int64_t i) const { return Lanes::load(s + i); }
  V inv_scale(int64_t i) const { return Lanes::load(inv + i); }
  V low(int64_t i) const { return bounds.low - Lanes::load(z + i); }
  V high(int64_t i) const { return bounds.high - Lanes::load(z + i); }
  const E *s, *inv, *z;
  Bounds<Lanes> bounds;
};

template <bool kStream, class Lanes>
PQK_INLINE void put(typename Lanes::Element* at, typename Lanes::V value) {
  kStream ? Lanes::stream(at, value) : Lanes::store(at, value);
}

// Streamed stores are ordered with what follows them only by a fence.
inline void end_of_stream() {
#if defined(PQK_X86_64)
  _mm_sfence();
#endif
}

#include "core/isa_end.h"
