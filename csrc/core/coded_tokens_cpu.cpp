// Scalar loads: a gather takes more time a lane.
#include "core/coded_tokens.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

// Adds the products of a group of tokens and moves the position behind it.
struct Int8Products {
  using X = int16_t;
  using Sum = int32_t;

#if defined(PQK_X86_64)
  __m128i sums = _mm_setzero_si128();

  // Half a group's values of x, each loaded into its place: half the time of sixteen scalar multiplications.
  static inline __m128i load(const uint8_t* gaps, const int16_t* x, int64_t& position) {
    __m128i loaded = _mm_setzero_si128();
#define PQK_LOAD(i)    \
  position += gaps[i]; \
  loaded = _mm_insert_epi16(loaded, x[position + i], i);
    PQK_LOAD(0)
    PQK_LOAD(1)
    PQK_LOAD(2)
    PQK_LOAD(3)
    PQK_LOAD(4)
    PQK_LOAD(5)
    PQK_LOAD(6)
    PQK_LOAD(7)
#undef PQK_LOAD
    return loaded;
  }
  inline void add(const uint8_t* gaps, const uint8_t* values, const int16_t* x, int64_t& position) {
    const __m128i low = load(gaps, x, position), high = load(gaps + 8, x + 8, position);
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    const __m128i zero = _mm_setzero_si128();
    const __m128i v_low = _mm_srai_epi16(_mm_unpacklo_epi8(zero, v), 8),
                  v_high = _mm_srai_epi16(_mm_unpackhi_epi8(zero, v), 8);
    sums = _mm_add_epi32(sums, _mm_add_epi32(_mm_madd_epi16(low, v_low), _mm_madd_epi16(high, v_high)));
    position += kTokenGroup;
  }
  inline int32_t total() const {
    const __m128i pairs = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1)));
  }
#else
  int32_t sum = 0;

  inline void add(const uint8_t* gaps, const uint8_t* values, const int16_t* x, int64_t& position) {
    for (int i = 0; i < kTokenGroup; ++i) {
      position += gaps[i];
      sum += one(x[position++], values[i]);
    }
  }
  inline int32_t total() const { return sum; }
#endif
  inline int32_t one(int16_t x, uint8_t value) const { return int32_t{x} * static_cast<int8_t>(value); }
};

struct FloatProducts {
  using X = float;
  using Sum = float;
  static constexpr int kSums = 8;  // that hide the latency of an addition

  const float* table;  // by value as uint8
  float sums[kSums] = {};

  inline void add(const uint8_t* gaps, const uint8_t* values, const float* x, int64_t& position) {
#pragma GCC unroll 16
    for (int i = 0; i < kTokenGroup; ++i) {
      position += gaps[i];
      float& sum = sums[i % kSums];
#if PQK_ISA_LEVEL >= 1
      sum = __builtin_fmaf(x[position + i], table[values[i]], sum);
#else
      sum += x[position + i] * table[values[i]];
#endif
    }
    position += kTokenGroup;
  }
  inline float total() const {
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }
  inline float one(float x, uint8_t value) const { return x * table[value]; }
};

template <class Products>
using Progress = TokenProducts<typename Products::X, typename Products::Sum>;

// Adds the products of groups of tokens while they end inside of the row, and those of the group that does not.
// Returns where that one begins, or what is left of a group, with the position there.
template <class Products>
__attribute__((noinline)) int64_t add_groups(const WeightTokens& tokens, int64_t first, Products products,
                                             Progress<Products>& p) {
  const uint8_t *gaps = tokens.gaps + first, *values = tokens.values + first;
  const uint8_t* const last = tokens.gaps + tokens.count - kTokenGroup;
  int64_t position = p.position, group = position;
  for (; gaps <= last && position <= p.row_size; gaps += kTokenGroup, values += kTokenGroup) {
    group = position;
    products.add(gaps, values, p.input, position);
  }
  const bool inside = position <= p.row_size;
  p.sum += products.total();
  p.position = inside ? position : group;
  return gaps - tokens.gaps - (inside ? 0 : kTokenGroup);
}

// Ends the rows before the one in which the token lies. False where there is none.
template <class X, class Sum>
bool end_rows(TokenProducts<X, Sum>& p) {
  for (; p.position >= p.row_size; p.position -= p.row_size) {
    if (p.row >= p.rows - 1) return false;
    p.sums[p.row++] = p.sum;
    p.sum = 0;
  }
  return true;
}

template <class Products>
bool add_products(const WeightTokens& tokens, const Products& products, Progress<Products>& p) {
  for (int64_t t = 0; t < tokens.count;) {
    t = add_groups(tokens, t, products, p);
    const bool whole = t + kTokenGroup <= tokens.count;
    // The group that the row ends in has been added; what is left of the tokens has not.
    for (bool in_row = true; in_row && t < tokens.count;) {
      p.position += tokens.gaps[t];
      if (p.position >= p.row_size) {
        if (!end_rows(p)) return false;
        p.position -= tokens.gaps[t];
        in_row = false;
        continue;
      }
      if (!whole) p.sum += products.one(p.input[p.position], tokens.values[t]);
      ++p.position;
      ++t;
    }
  }
  return true;
}

}  // namespace

bool int8_tokens(const WeightTokens& tokens, Int8TokenProducts& products) {
  return add_products(tokens, Int8Products{}, products);
}

bool float_tokens(const WeightTokens& tokens, const float* table, FloatTokenProducts& products) {
  float by_byte[256];
  for (int i = 0; i < 256; ++i) by_byte[i] = table[static_cast<int8_t>(i) + 128];
  return add_products(tokens, FloatProducts{by_byte}, products);
}

#include "core/isa_end.h"
