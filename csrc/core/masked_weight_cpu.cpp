#include <cstring>

#include "core/masked_weight.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

template <class Bits>
void mask_elements(const MaskParams& p, int64_t begin, int64_t end) {
  const uint8_t* mask = p.mask;
  const Bits* weight = static_cast<const Bits*>(p.weight);
  Bits* out = static_cast<Bits*>(p.output);
// An output may be its own input, element for element, and nothing else.
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    const Bits keep = static_cast<Bits>(Bits{0} - static_cast<Bits>(mask[i] != 0));
    out[i] = static_cast<Bits>(weight[i] & keep);
  }
}

// Bit i tells whether byte i of 64 is not zero.
uint64_t nonzero_bits(const uint8_t* bytes) {
#if PQK_ISA_LEVEL >= 2
  const __m512i block = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(block, block);
#elif PQK_ISA_LEVEL == 1
  uint64_t zeros = 0;
  for (int i = 0; i < 2; ++i) {
    const __m256i block = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32 * i));
    const int equal = _mm256_movemask_epi8(_mm256_cmpeq_epi8(block, _mm256_setzero_si256()));
    zeros |= static_cast<uint64_t>(static_cast<uint32_t>(equal)) << (32 * i);
  }
  return ~zeros;
#elif defined(PQK_X86_64)
  uint64_t zeros = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * i));
    const int equal = _mm_movemask_epi8(_mm_cmpeq_epi8(block, _mm_setzero_si128()));
    zeros |= static_cast<uint64_t>(static_cast<uint32_t>(equal)) << (16 * i);
  }
  return ~zeros;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(bytes[i] != 0) << i;
  return bits;
#endif
}

uint64_t nonzero_bits_of_tail(const uint8_t* bytes, int64_t count) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint64_t>(bytes[i] != 0) << i;
  return bits;
}

}  // namespace

void mask_kernel(const MaskParams& p, int64_t begin, int64_t end) {
  switch (p.element_bytes) {
    case 2:
      return mask_elements<uint16_t>(p, begin, end);
    case 4:
      return mask_elements<uint32_t>(p, begin, end);
    default:
      return mask_elements<uint64_t>(p, begin, end);
  }
}

int64_t mask_positions_kernel(const uint8_t* mask, int64_t count, int32_t* positions) {
  int32_t* out = positions;
  for (int64_t i = 0; i < count; i += 64) {
    uint64_t bits = count - i >= 64 ? nonzero_bits(mask + i) : nonzero_bits_of_tail(mask + i, count - i);
    for (; bits != 0; bits &= bits - 1) *out++ = static_cast<int32_t>(i) + __builtin_ctzll(bits);
  }
  return out - positions;
}

int64_t mask_count_kernel(const uint8_t* mask, int64_t count) {
  int64_t kept = 0;
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) kept += __builtin_popcountll(nonzero_bits(mask + i));
  return kept + __builtin_popcountll(nonzero_bits_of_tail(mask + i, count - i));
}

#include "core/isa_end.h"
