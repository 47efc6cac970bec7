#include <array>

#include "core/interleaved_huffman.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

namespace pqk {
namespace {

// By the mask of the lanes that take a word, which word each of 8 lanes takes: a byte a lane.
[[maybe_unused]] constexpr std::array<uint64_t, 256> kExpand = [] {
  std::array<uint64_t, 256> table{};
  for (uint64_t mask = 0; mask < 256; ++mask) {
    uint64_t word = 0;
    for (int lane = 0; lane < 8; ++lane) {
      table[mask] |= word << (8 * lane);
      word += mask >> lane & 1;
    }
  }
  return table;
}();

}  // namespace
}  // namespace pqk

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2

// 8 registers of 16 streams. A stream's position stands in each of its 4 bytes, for one shuffle of bytes gives
// all four what the stream's table entry says; odd streams, which are the upper halves of what vpmultishiftqb
// looks at, have 32 added.
constexpr int kRegisters = kInterleavedStreams / 16;
constexpr int64_t kUpperHalf = 0x2020202000000000;

// 128 bytes, of which each byte of `index` selects one; 64 for short codes, whose second half is the same.
template <bool Short>
struct ByteTable {
  __m512i low, high;

  explicit ByteTable(const std::array<uint8_t, kInterleavedTableSize>& bytes)
      : low(_mm512_load_si512(bytes.data())), high(_mm512_load_si512(bytes.data() + 64)) {}
  __m512i operator()(__m512i index) const {
    return Short ? _mm512_permutexvar_epi8(index, low) : _mm512_permutex2var_epi8(low, index, high);
  }
};

template <int Period, bool Short, bool Wide>
int64_t decode_blocks(const InterleavedTable& table, InterleavedLanes& lanes, const uint8_t* end,
                      int64_t blocks, uint8_t* output) {
  const ByteTable<Short> table_symbol(table.symbol), table_bits(table.bits);
  const ByteTable<Short> table_prefix(table.prefix), table_mask(table.mask);
  const __m512i is_dry = _mm512_set1_epi32(0x10), refilled = _mm512_set1_epi8(0x2f);
  __m512i buffer[kRegisters], position[kRegisters];
  for (int r = 0; r < kRegisters; ++r) {
    buffer[r] = _mm512_load_si512(&lanes.buffer[16 * r]);
    position[r] = _mm512_mullo_epi32(_mm512_load_si512(&lanes.position[16 * r]), _mm512_set1_epi32(0x01010101));
    position[r] = _mm512_or_si512(position[r], _mm512_set1_epi64(kUpperHalf));
  }
  const uint8_t* next = lanes.next;
  int64_t done = 0;
  for (; done < blocks && end - next >= kInterleavedReach; ++done, output += kInterleavedBlock) {
    __m512i symbols[kRegisters];
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) symbols[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int step = 0; step < kInterleavedSteps; ++step) {
      if (step % Period == 0) {
#pragma GCC unroll 8
        for (int r = 0; r < kRegisters; ++r) {
          const __mmask16 dry = _mm512_test_epi32_mask(position[r], is_dry);
          const __m512i words = _mm512_maskz_expand_epi32(
              dry, _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(next))));
          next += 2 * _mm_popcnt_u32(dry);
          buffer[r] = _mm512_mask_shrdi_epi32(buffer[r], dry, buffer[r], words, 16);
          position[r] = _mm512_and_si512(position[r], refilled);
        }
      }
      const __mmask64 place = 0x1111111111111111ull << step;
#pragma GCC unroll 8
      for (int r = 0; r < kRegisters; ++r) {
        const __m512i index = _mm512_multishift_epi64_epi8(position[r], buffer[r]);
        __m512i symbol = table_symbol(index);
        if (Wide) {
          const __m512i behind = _mm512_add_epi8(position[r], table_prefix(index));
          const __m512i plain = _mm512_multishift_epi64_epi8(behind, buffer[r]);
          symbol = _mm512_ternarylogic_epi32(symbol, plain, table_mask(index), 0xf8);  // a | (b & c)
        }
        symbols[r] = _mm512_mask_mov_epi8(symbols[r], place, symbol);
        position[r] = _mm512_add_epi8(position[r], table_bits(index));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) _mm512_storeu_si512(output + 64 * r, symbols[r]);
  }
  for (int r = 0; r < kRegisters; ++r) {
    _mm512_store_si512(&lanes.buffer[16 * r], buffer[r]);
    _mm512_store_si512(&lanes.position[16 * r], _mm512_and_si512(position[r], _mm512_set1_epi32(0x1f)));
  }
  lanes.next = next;
  return done;
}

#elif PQK_ISA_LEVEL == 1

// A table of 128 bytes as eight of 16, which the 32 bytes of `index` select from; four for short codes.
template <bool Short>
struct ByteTable {
  const uint8_t* bytes;

  explicit ByteTable(const std::array<uint8_t, kInterleavedTableSize>& table) : bytes(table.data()) {}
  __m256i part(int p, __m256i index) const {
    const __m128i sixteen = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * p));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(sixteen), index);
  }
  __m256i half(int h, __m256i index) const {
    const __m256i bit4 = _mm256_slli_epi16(index, 3),
                  bit5 = _mm256_slli_epi16(index, 2);  // blends look at bit 7
    const __m256i low = _mm256_blendv_epi8(part(4 * h, index), part(4 * h + 1, index), bit4);
    const __m256i high = _mm256_blendv_epi8(part(4 * h + 2, index), part(4 * h + 3, index), bit4);
    return _mm256_blendv_epi8(low, high, bit5);
  }
  __m256i operator()(__m256i index) const {
    return Short ? half(0, index)
                 : _mm256_blendv_epi8(half(0, index), half(1, index), _mm256_slli_epi16(index, 1));
  }
};

// The lowest bytes of the 32-bit lanes of four registers, side by side.
inline __m256i gather_bytes(const __m256i (&x)[4]) {
  const __m256i even = _mm256_blend_epi16(x[0], _mm256_slli_epi32(x[2], 16), 0xaa);
  const __m256i odd = _mm256_blend_epi16(x[1], _mm256_slli_epi32(x[3], 16), 0xaa);
  return _mm256_blendv_epi8(even, _mm256_slli_epi16(odd, 8), _mm256_set1_epi16(static_cast<int16_t>(0xff00)));
}

// Adds to the lanes of four registers what gather_bytes would have put side by side.
inline void add_bytes(__m256i (&x)[4], __m256i bytes) {
  const __m256i low = _mm256_set1_epi32(0xff);
  x[0] = _mm256_add_epi32(x[0], _mm256_and_si256(bytes, low));
  x[1] = _mm256_add_epi32(x[1], _mm256_and_si256(_mm256_srli_epi32(bytes, 8), low));
  x[2] = _mm256_add_epi32(x[2], _mm256_and_si256(_mm256_srli_epi32(bytes, 16), low));
  x[3] = _mm256_add_epi32(x[3], _mm256_srli_epi32(bytes, 24));
}

// A 4x4 transpose of the bytes in each 32-bit lane of four registers.
inline void store_transposed(const __m256i (&steps)[kInterleavedSteps], uint8_t* output) {
  const __m256i high8 = _mm256_set1_epi16(static_cast<int16_t>(0xff00));
  const __m256i a =
      _mm256_blendv_epi8(steps[0], _mm256_slli_epi16(steps[1], 8), high8);  // bytes 0, 2 of 0 and 1
  const __m256i b = _mm256_blendv_epi8(_mm256_srli_epi16(steps[0], 8), steps[1], high8);  // bytes 1, 3
  const __m256i c = _mm256_blendv_epi8(steps[2], _mm256_slli_epi16(steps[3], 8), high8);
  const __m256i d = _mm256_blendv_epi8(_mm256_srli_epi16(steps[2], 8), steps[3], high8);
  __m256i* out = reinterpret_cast<__m256i*>(output);
  _mm256_storeu_si256(out, _mm256_blend_epi16(a, _mm256_slli_epi32(c, 16), 0xaa));
  _mm256_storeu_si256(out + 1, _mm256_blend_epi16(b, _mm256_slli_epi32(d, 16), 0xaa));
  _mm256_storeu_si256(out + 2, _mm256_blend_epi16(_mm256_srli_epi32(a, 16), c, 0xaa));
  _mm256_storeu_si256(out + 3, _mm256_blend_epi16(_mm256_srli_epi32(b, 16), d, 0xaa));
}

inline void refill(__m256i& buffer, __m256i& position, const uint8_t*& next) {
  const __m256i dry = _mm256_cmpgt_epi32(position, _mm256_set1_epi32(15));
  const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(dry));
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)));
  const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kExpand[mask])));
  next += 2 * __builtin_popcount(mask);
  const __m256i taken = _mm256_slli_epi32(_mm256_permutevar8x32_epi32(words, order), 16);
  buffer = _mm256_blendv_epi8(buffer, _mm256_or_si256(_mm256_srli_epi32(buffer, 16), taken), dry);
  position = _mm256_and_si256(position, _mm256_set1_epi32(15));
}

// A quarter of the streams at a time, 4 registers of 8; their state is in the first-level cache.
template <int Period, bool Short, bool Wide>
int64_t decode_blocks(const InterleavedTable& table, InterleavedLanes& lanes, const uint8_t* end,
                      int64_t blocks, uint8_t* output) {
  constexpr int kQuarters = kInterleavedStreams / 32;
  const ByteTable<Short> table_symbol(table.symbol), table_bits(table.bits);
  const ByteTable<Short> table_prefix(table.prefix), table_mask(table.mask);
  const __m256i index_mask = _mm256_set1_epi8(kInterleavedTableSize - 1);
  const uint8_t* next = lanes.next;
  int64_t done = 0;
  for (; done < blocks && end - next >= kInterleavedReach; ++done) {
    __m256i symbols[kQuarters][kInterleavedSteps];
    for (int first = 0; first < kInterleavedSteps; first += Period) {
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        __m256i* const saved_buffer = reinterpret_cast<__m256i*>(&lanes.buffer[32 * quarter]);
        __m256i* const saved_position = reinterpret_cast<__m256i*>(&lanes.position[32 * quarter]);
        __m256i buffer[4], position[4], window[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          buffer[r] = _mm256_load_si256(saved_buffer + r);
          position[r] = _mm256_load_si256(saved_position + r);
          refill(buffer[r], position[r], next);
        }
#pragma GCC unroll 4
        for (int step = first; step < first + Period; ++step) {
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) window[r] = _mm256_srlv_epi32(buffer[r], position[r]);
          const __m256i index = _mm256_and_si256(gather_bytes(window), index_mask);
          __m256i symbol = table_symbol(index);
          if (Wide) {
            __m256i behind[4] = {position[0], position[1], position[2], position[3]};
            add_bytes(behind, table_prefix(index));
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) window[r] = _mm256_srlv_epi32(buffer[r], behind[r]);
            symbol = _mm256_or_si256(symbol, _mm256_and_si256(gather_bytes(window), table_mask(index)));
          }
          symbols[quarter][step] = symbol;
          add_bytes(position, table_bits(index));
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          _mm256_store_si256(saved_buffer + r, buffer[r]);
          _mm256_store_si256(saved_position + r, position[r]);
        }
      }
    }
    for (int quarter = 0; quarter < kQuarters; ++quarter, output += 32 * kInterleavedSteps) {
      store_transposed(symbols[quarter], output);
    }
  }
  lanes.next = next;
  return done;
}

#else

template <int Period, bool Short, bool Wide>
int64_t decode_blocks(const InterleavedTable& table, InterleavedLanes& lanes, const uint8_t* end,
                      int64_t blocks, uint8_t* output) {
  const uint8_t* next = lanes.next;
  int64_t done = 0;
  for (; done < blocks && end - next >= kInterleavedReach; ++done, output += kInterleavedBlock) {
    for (int first = 0; first < kInterleavedSteps; first += Period) {
      for (int s = 0; s < kInterleavedStreams; ++s) {
        uint32_t buffer = lanes.buffer[s], position = lanes.position[s];
        const uint32_t dry = position / 16;
        const uint32_t word = next[0] | static_cast<uint32_t>(next[1]) << 8;
        // Dryness is random, so a branch would be mispredicted often.
        buffer = dry ? buffer >> 16 | word << 16 : buffer;
        next += 2 * dry;
        position %= 16;
        for (int step = first; step < first + Period; ++step) {
          const uint32_t window = buffer >> position, index = window % kInterleavedTableSize;
          const uint32_t plain = Wide ? window >> table.prefix[index] & table.mask[index] : 0;
          output[s * kInterleavedSteps + step] = static_cast<uint8_t>(table.symbol[index] | plain);
          position += table.bits[index];
        }
        lanes.buffer[s] = buffer;
        lanes.position[s] = position;
      }
    }
  }
  lanes.next = next;
  return done;
}

#endif

// Codes without plain bits have at most 7 bits, those with them are seldom short.
InterleavedKernel* kernel_for(const InterleavedTable& table) {
  if (table.wide) return table.period == 1 ? decode_blocks<1, false, true> : decode_blocks<2, false, true>;
  if (table.period == 4) return decode_blocks<4, true, false>;
  return table.is_short ? decode_blocks<2, true, false> : decode_blocks<2, false, false>;
}

}  // namespace

int64_t interleaved_kernel(const InterleavedTable& table, InterleavedLanes& lanes, const uint8_t* end,
                           int64_t blocks, uint8_t* output) {
  return kernel_for(table)(table, lanes, end, blocks, output);
}

#include "core/isa_end.h"
