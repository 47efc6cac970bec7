// Dot products of rows of codes with rows of weights, both in their natural order.
#include <algorithm>

#include "core/coded_linear_plan.h"
#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2
constexpr int kStep = 64, kMaxInputs = 4;  // bytes of a step; rows of x that are multiplied together
using Bytes = __m512i;
inline Bytes load_weights(const int8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes load_inputs(const uint8_t* p) { return _mm512_load_si512(p); }
inline Ints add_dot(Ints sum, Bytes x, Bytes w) { return _mm512_dpbusd_epi32(sum, x, w); }
#elif PQK_ISA_LEVEL == 1
// As 16-bit numbers: nothing saturates as it would in the 8-bit multiply-add.
constexpr int kStep = 16, kMaxInputs = 2;
using Bytes = __m256i;
inline Bytes load_weights(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes load_inputs(const uint8_t* p) {
  return _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints add_dot(Ints sum, Bytes x, Bytes w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
#elif defined(PQK_X86_64)
constexpr int kStep = 8, kMaxInputs = 2;
using Bytes = __m128i;
inline Bytes load_weights(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
}
inline Bytes load_inputs(const uint8_t* p) {
  return _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
}
inline Ints add_dot(Ints sum, Bytes x, Bytes w) { return _mm_add_epi32(sum, _mm_madd_epi16(x, w)); }
#else
constexpr int kStep = 1, kMaxInputs = 1;
using Bytes = int32_t;
inline Bytes load_weights(const int8_t* p) { return *p; }
inline Bytes load_inputs(const uint8_t* p) { return *p; }
inline Ints add_dot(Ints sum, Bytes x, Bytes w) { return sum + x * w; }
#endif

#if defined(PQK_X86_64)
// The sums over all lanes of four vectors.
inline __m128i fold(__m128i sum) { return sum; }
#if PQK_ISA_LEVEL >= 1
inline __m128i fold(__m256i sum) {
  return _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}
inline Ints low_pairs(Ints a, Ints b) {
#if PQK_ISA_LEVEL >= 2
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
#else
  return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
#endif
}
inline Ints add_halves(Ints a, Ints b) {
#if PQK_ISA_LEVEL >= 2
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
#else
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
#endif
}
#else
inline Ints low_pairs(Ints a, Ints b) {
  return _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
}
inline Ints add_halves(Ints a, Ints b) {
  return _mm_add_epi32(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
}
#endif
#if PQK_ISA_LEVEL >= 2
inline __m128i fold(__m512i sum) {
  return fold(_mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1)));
}
#endif
inline void store_sums(int32_t* p, const Ints (&sum)[kDotRows]) {
  const Ints four = add_halves(low_pairs(sum[0], sum[1]), low_pairs(sum[2], sum[3]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), fold(four));
}
#else
inline void store_sums(int32_t* p, const Ints (&sum)[kDotRows]) { memcpy(p, sum, sizeof(sum)); }
#endif

// `Inputs` rows of x from `input` on.
template <int Inputs>
void multiply_rows(const Int8Dots& d, const uint8_t* input, int32_t* sums) {
  Ints sum[Inputs][kDotRows];
#pragma GCC unroll 16
  for (int m = 0; m < Inputs * kDotRows; ++m) sum[m / kDotRows][m % kDotRows] = set_ints(0);
  const int8_t* weight[kDotRows];
  for (int j = 0; j < kDotRows; ++j) weight[j] = d.weight + (j < d.rows ? j : 0) * d.row_size;
  const int64_t pitch = d.input_pitch;
  for (int64_t k = 0; k < d.row_size; k += kStep) {
    Bytes x[Inputs];
#pragma GCC unroll 4
    for (int i = 0; i < Inputs; ++i) x[i] = load_inputs(input + i * pitch + k);
#pragma GCC unroll 4
    for (int j = 0; j < kDotRows; ++j) {
      const Bytes w = load_weights(weight[j] + k);
#pragma GCC unroll 4
      for (int i = 0; i < Inputs; ++i) {
        sum[i][j] = add_dot(sum[i][j], x[i], w);
#if PQK_ISA_LEVEL == 1
        // Else gcc has the products of all rows in registers at once, and sums on the stack.
        asm volatile("" : "+x"(sum[i][j]));
#endif
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Inputs; ++i) store_sums(sums + i * kOutTile, sum[i]);
}

}  // namespace

void int8_dots(const Int8Dots& d) {
  int64_t i = 0;
  for (; i + kMaxInputs <= d.inputs; i += kMaxInputs) {
    multiply_rows<kMaxInputs>(d, d.input + i * d.input_pitch, d.sums + i * kOutTile);
  }
  const uint8_t* input = d.input + i * d.input_pitch;
  int32_t* sums = d.sums + i * kOutTile;
  switch (d.inputs - i) {
    case 1:
      return multiply_rows<1>(d, input, sums);
#if PQK_ISA_LEVEL >= 2
    case 2:
      return multiply_rows<2>(d, input, sums);
    case 3:
      return multiply_rows<3>(d, input, sums);
#endif
    default:
      return;
  }
}

void int8_linear_tile(const Int8Epilogue& epilogue, const Int8LinearRows& rows, const Int8LinearTile& t) {
  constexpr int64_t kTogether = 16;
  alignas(64) int32_t sums[kTogether * kOutTile];
  uint8_t residual[kTogether * kOutTile] = {};
  OutputPixel pixels[kTogether];
  const int32_t* weight_sums = t.sums + rows.count * kOutTile;
  for (int64_t first = 0; first < rows.count; first += kTogether) {
    const int64_t count = rows.count - first < kTogether ? rows.count - first : kTogether;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i;
      for (int64_t c = 0; c < kOutTile; ++c) {
        const int32_t compensation = t.zero_point == 0 ? 0 : t.zero_point * weight_sums[c];
        sums[i * kOutTile + c] = t.sums[row * kOutTile + c] - compensation;
      }
      if (rows.residual != nullptr) {  // a copy, as a whole tile of it is read
        memcpy(residual + i * kOutTile, rows.residual + row * rows.residual_step + t.channel, t.channels);
      }
      pixels[i] = {residual + i * kOutTile,
                   epilogue.float_output
                       ? reinterpret_cast<uint8_t*>(rows.float_output + row * rows.float_step + t.channel)
                       : rows.output + row * rows.output_step + t.channel};
    }
    requantize(epilogue, sums, count, 1, t.channel, t.channels, pixels);
  }
}

#include "core/isa_end.h"
