// Codes to entries of a codebook, and dot products with them. The 32-bit entries come from tables in registers:
// two registers hold 32 of them; of more, a byte each of 64 or 128.
#include "core/codebook_linear_plan.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

constexpr int kSmallCodebook = 32;

#if PQK_ISA_LEVEL >= 2

constexpr int kGroups = 4;  // registers of floats that 64 codes give

struct Floats64 {
  __m512 group[kGroups];
};

// Up to 32 entries, each where the lowest five bits of its code say.
class SmallTable {
 public:
  explicit SmallTable(const FloatDots& d) {
    alignas(64) float entries[kSmallCodebook] = {};
    for (int code = d.least; code <= d.largest; ++code)
      entries[code & (kSmallCodebook - 1)] = d.table[code + 128];
    low_ = _mm512_load_ps(entries);
    high_ = _mm512_load_ps(entries + 16);
  }
  Floats64 operator()(const int8_t* codes) const {
    Floats64 floats;
#pragma GCC unroll 4
    for (int q = 0; q < kGroups; ++q) {
      const __m512i code =
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * q)));
      floats.group[q] = _mm512_permutex2var_ps(low_, code, high_);
    }
    return floats;
  }

 private:
  __m512 low_, high_;
};

// Any: the bytes of the entries apart, then put together.
class ByteTables {
 public:
  explicit ByteTables(const FloatDots& d) {
    alignas(64) uint8_t bytes[4][256];
    for (int code = 0; code < 256; ++code) {
      uint8_t entry[4];
      __builtin_memcpy(entry, d.table + code, 4);
      for (int b = 0; b < 4; ++b) bytes[b][code] = entry[b];
    }
    for (int b = 0; b < 4; ++b) {
      for (int part = 0; part < 4; ++part) table_[b][part] = _mm512_load_si512(bytes[b] + 64 * part);
    }
  }
  Floats64 operator()(const int8_t* codes) const {
    const __m512i code = _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(static_cast<char>(0x80)));
    const __mmask64 high = _mm512_movepi8_mask(code);
    __m512i byte[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      byte[b] = _mm512_mask_blend_epi8(high, _mm512_permutex2var_epi8(table_[b][0], code, table_[b][1]),
                                       _mm512_permutex2var_epi8(table_[b][2], code, table_[b][3]));
    }
    const __m512i low01 = _mm512_unpacklo_epi8(byte[0], byte[1]),
                  high01 = _mm512_unpackhi_epi8(byte[0], byte[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(byte[2], byte[3]),
                  high23 = _mm512_unpackhi_epi8(byte[2], byte[3]);
    return {{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23)),
             _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23)),
             _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23)),
             _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23))}};
  }

 private:
  __m512i table_[4][4];
};

inline float sum_lanes(__m512 v) { return _mm512_reduce_add_ps(v); }

// One row of x: entries go from the table into the sums.
template <class Table>
void multiply_row(const FloatDots& d, const Table& table, const int8_t* const* codes) {
  __m512 sum[kFloatDotRows][2];
#pragma GCC unroll 8
  for (int j = 0; j < 2 * kFloatDotRows; ++j) sum[j / 2][j % 2] = _mm512_setzero_ps();
  for (int64_t k = 0; k < d.row_size; k += kFloatDotStep) {
    __m512 x[kGroups];
#pragma GCC unroll 4
    for (int q = 0; q < kGroups; ++q) x[q] = _mm512_load_ps(d.input + k + 16 * q);
#pragma GCC unroll 4
    for (int j = 0; j < kFloatDotRows; ++j) {
      const Floats64 w = table(codes[j] + k);
#pragma GCC unroll 4
      for (int q = 0; q < kGroups; ++q) sum[j][q % 2] = _mm512_fmadd_ps(x[q], w.group[q], sum[j][q % 2]);
    }
  }
  for (int j = 0; j < kFloatDotRows; ++j) d.sums[j] = sum_lanes(_mm512_add_ps(sum[j][0], sum[j][1]));
}

template <class Table>
void decode_rows(const FloatDots& d, const Table& table, const int8_t* const* codes) {
  for (int j = 0; j < kFloatDotRows; ++j) {
    float* const to = d.weight + j * d.input_pitch;
    for (int64_t k = 0; k < d.row_size; k += kFloatDotStep) {
      const Floats64 w = table(codes[j] + k);
#pragma GCC unroll 4
      for (int q = 0; q < kGroups; ++q) _mm512_store_ps(to + k + 16 * q, w.group[q]);
    }
  }
}

// `Inputs` rows of x, in the order of multiply_row.
template <int Inputs>
void multiply_rows(const FloatDots& d, int64_t first) {
  __m512 sum[Inputs][kFloatDotRows][2];
#pragma GCC unroll 32
  for (int j = 0; j < Inputs * 2 * kFloatDotRows; ++j) {
    sum[j / (2 * kFloatDotRows)][j / 2 % kFloatDotRows][j % 2] = _mm512_setzero_ps();
  }
  const float *input = d.input + first * d.input_pitch, *weight = d.weight;
  const int64_t pitch = d.input_pitch;
  for (int64_t k = 0; k < pitch; k += 32) {  // to the end: the order of a row's last columns is mixed
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      __m512 w[kFloatDotRows];
#pragma GCC unroll 4
      for (int j = 0; j < kFloatDotRows; ++j) w[j] = _mm512_load_ps(weight + j * pitch + k + 16 * q);
#pragma GCC unroll 4
      for (int i = 0; i < Inputs; ++i) {
        const __m512 x = _mm512_load_ps(input + i * pitch + k + 16 * q);
#pragma GCC unroll 4
        for (int j = 0; j < kFloatDotRows; ++j) sum[i][j][q] = _mm512_fmadd_ps(x, w[j], sum[i][j][q]);
      }
    }
  }
  for (int i = 0; i < Inputs; ++i) {
    for (int j = 0; j < kFloatDotRows; ++j) {
      d.sums[(first + i) * kFloatDotRows + j] = sum_lanes(_mm512_add_ps(sum[i][j][0], sum[i][j][1]));
    }
  }
}

template <class Table>
void multiply(const FloatDots& d, const int8_t* const* codes) {
  const Table table(d);
  if (d.inputs == 1) return multiply_row(d, table, codes);
  decode_rows(d, table, codes);
  int64_t i = 0;
  for (; i + 3 <= d.inputs; i += 3) multiply_rows<3>(d, i);
  if (d.inputs - i == 2) multiply_rows<2>(d, i);
  if (d.inputs - i == 1) multiply_rows<1>(d, i);
}

#else

constexpr int kSums = 16;

void multiply(const FloatDots& d, const int8_t* const* codes) {
  for (int j = 0; j < kFloatDotRows; ++j) {
    float* const to = d.weight + j * d.input_pitch;
    for (int64_t k = 0; k < d.row_size; ++k) to[k] = d.table[codes[j][k] + 128];
    for (int64_t k = d.row_size; k < d.input_pitch; ++k) to[k] = 0.0f;
  }
  for (int64_t i = 0; i < d.inputs; ++i) {
    const float* const x = d.input + i * d.input_pitch;
    for (int j = 0; j < kFloatDotRows; ++j) {
      const float* const w = d.weight + j * d.input_pitch;
      float sum[kSums] = {};
      for (int64_t k = 0; k < d.input_pitch; k += kSums) {
        for (int lane = 0; lane < kSums; ++lane) sum[lane] += x[k + lane] * w[k + lane];
      }
      for (int half = kSums / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
      }
      d.sums[i * kFloatDotRows + j] = sum[0];
    }
  }
}

#endif

}  // namespace

void codebook_dots(const FloatDots& d) {
  const int8_t* codes[kFloatDotRows];
  for (int j = 0; j < kFloatDotRows; ++j) codes[j] = d.codes + (j < d.rows ? j : 0) * d.row_size;
#if PQK_ISA_LEVEL >= 2
  if (d.largest - d.least < kSmallCodebook) return multiply<SmallTable>(d, codes);
  return multiply<ByteTables>(d, codes);
#else
  multiply(d, codes);
#endif
}

void codebook_order(const CodebookOrder& o) {
#if PQK_ISA_LEVEL >= 2
  if (o.largest - o.least < kSmallCodebook) return;
  // ByteTables gives 16 x lane + 4 x group + i of 64 codes at 4 x lane + i of a group.
  for (int64_t k = 0; k < o.size; k += kFloatDotStep) {
    alignas(64) float ordered[kFloatDotStep];
    for (int q = 0; q < kGroups; ++q) {
      for (int lane = 0; lane < 4; ++lane) {
        for (int i = 0; i < 4; ++i) ordered[16 * q + 4 * lane + i] = o.row[k + 16 * lane + 4 * q + i];
      }
    }
    __builtin_memcpy(o.row + k, ordered, sizeof(ordered));
  }
#else
  static_cast<void>(o);
#endif
}

bool codes_in_range(const CodeRange& r) {
  int8_t least = 127, largest = -128;
  for (int64_t i = 0; i < r.count; ++i) {
    least = r.codes[i] < least ? r.codes[i] : least;
    largest = r.codes[i] > largest ? r.codes[i] : largest;
  }
  return r.count == 0 || (least >= r.least && largest <= r.largest);
}

#include "core/isa_end.h"
