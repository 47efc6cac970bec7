#include "core/ans_decode.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

constexpr int kStates = 1 << kAnsMaxStatesLog2;

#if PQK_ISA_LEVEL >= 2

// Lane l takes the next word if `state` is too small, in the order of the lanes.
inline __m512i step(const AnsDecodeTable& table, __m512i state, const uint8_t*& word, uint8_t* output) {
  const __m512i slots = _mm512_set1_epi32(kAnsTotal - 1);
  const __m512i entry = _mm512_i32gather_epi32(_mm512_and_si512(state, slots), table.data(), 4);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(output), _mm512_cvtepi32_epi8(entry));
  const __m512i share = _mm512_and_si512(_mm512_srli_epi32(entry, 8), slots);
  const __m512i product = _mm512_mullo_epi32(share, _mm512_srli_epi32(state, kAnsShareBits));
  state = _mm512_add_epi32(product, _mm512_srli_epi32(entry, 20));
  const __mmask16 low = _mm512_cmplt_epu32_mask(state, _mm512_set1_epi32(kAnsLow));
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(word)));
  word += 2 * _mm_popcnt_u32(low);
  return _mm512_mask_or_epi32(state, low, _mm512_slli_epi32(state, 16), _mm512_maskz_expand_epi32(low, words));
}

inline int64_t decode(const AnsDecodeTable& table, AnsLanes& lanes, uint8_t* output, int64_t count) {
  __m512i a = _mm512_loadu_si512(lanes.states), b = _mm512_loadu_si512(lanes.states + 16);
  const uint8_t* word = lanes.next;
  int64_t done = 0;
  for (; count - done >= kStates && lanes.end - word >= 2 * kStates; done += kStates) {
    a = step(table, a, word, output + done);
    b = step(table, b, word, output + done + 16);
  }
  _mm512_storeu_si512(lanes.states, a);
  _mm512_storeu_si512(lanes.states + 16, b);
  lanes.next = word;
  return done;
}

#else

inline int64_t decode(const AnsDecodeTable& table, AnsLanes& lanes, uint8_t* output, int64_t count) {
  const uint8_t* word = lanes.next;
  int64_t done = 0;
  for (; count - done >= kStates && lanes.end - word >= 2 * kStates; done += kStates) {
    for (int i = 0; i < kStates; ++i) {
      const uint32_t state = lanes.states[i], entry = table[state & (kAnsTotal - 1)];
      output[done + i] = static_cast<uint8_t>(entry);
      const uint32_t moved = (entry >> 8 & (kAnsTotal - 1)) * (state >> kAnsShareBits) + (entry >> 20);
      const uint32_t low = moved < kAnsLow;  // no branch: it would be guessed wrong half of the time
      const uint32_t next = word[0] | uint32_t{word[1]} << 8;
      lanes.states[i] = moved << (low << 4) | (next & (0u - low));
      word += low << 1;
    }
  }
  lanes.next = word;
  return done;
}

#endif

}  // namespace

int64_t ans_groups_kernel(const AnsDecodeTable& table, AnsLanes& lanes, uint8_t* output, int64_t count) {
  return decode(table, lanes, output, count);
}

#include "core/isa_end.h"
