// Scalar loads: a gather takes more time a lane.
#include "core/coded_tokens.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

constexpr int kGroup = 16;
constexpr int kSums = 8;  // that hide the latency of an addition

inline int64_t sum_of_group(const uint8_t* gaps) {
#if defined(PQK_X86_64)
  const __m128i sums =
      _mm_sad_epu8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(gaps)), _mm_setzero_si128());
  return _mm_cvtsi128_si64(sums) + _mm_cvtsi128_si64(_mm_unpackhi_epi64(sums, sums));
#else
  int64_t sum = 0;
  for (int i = 0; i < kGroup; ++i) sum += gaps[i];
  return sum;
#endif
}

struct Int8Product {
  inline int32_t operator()(int32_t sum, int32_t x, uint8_t value) const {
    return sum + x * static_cast<int8_t>(value);
  }
};

struct FloatProduct {
  const float* table;  // by value as uint8
  inline float operator()(float sum, float x, uint8_t value) const {
#if PQK_ISA_LEVEL >= 1
    return __builtin_fmaf(x, table[value], sum);
#else
    return sum + x * table[value];
#endif
  }
};

template <class T>
inline T total(const T (&sum)[kSums]) {
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

template <class T, class Product>
bool add_products(const WeightTokens& tokens, const Product& product, TokenProducts<T>& p) {
  const uint8_t* const gaps = tokens.gaps;
  const uint8_t* const values = tokens.values;
  const int64_t row_size = p.row_size, count = tokens.count;
  const T* const input = p.input;
  int64_t position = p.position;
  T sum[kSums] = {p.sum};
  for (int64_t t = 0; t < count;) {
    // Groups that end inside of the row.
    while (t + kGroup <= count && position + sum_of_group(gaps + t) + kGroup <= row_size) {
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; ++i) {
        position += gaps[t + i];
        sum[i % kSums] = product(sum[i % kSums], input[position + i], values[t + i]);
      }
      position += kGroup;
      t += kGroup;
    }
    // And the tokens up to the first one of the next row.
    for (bool in_row = true; in_row && t < count; ++t) {
      position += gaps[t];
      for (; position >= row_size; position -= row_size) {
        if (p.row >= p.rows - 1) return false;
        p.sums[p.row++] = total(sum);
        for (T& part : sum) part = 0;
        in_row = false;
      }
      sum[0] = product(sum[0], input[position], values[t]);
      ++position;
    }
  }
  p.position = position;
  p.sum = total(sum);
  return true;
}

}  // namespace

bool int8_tokens(const WeightTokens& tokens, TokenProducts<int32_t>& products) {
  return add_products(tokens, Int8Product{}, products);
}

bool float_tokens(const WeightTokens& tokens, const float* table, TokenProducts<float>& products) {
  float by_byte[256];
  for (int i = 0; i < 256; ++i) by_byte[i] = table[static_cast<int8_t>(i) + 128];
  return add_products(tokens, FloatProduct{by_byte}, products);
}

#include "core/isa_end.h"
