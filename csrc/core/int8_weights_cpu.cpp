#include "core/int8_weights.h"

#include <cstring>
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

// Sums of so many fit int32.
constexpr int64_t kPiece = 1 << 16;

void transpose(const int8_t* weight, int64_t channels, int64_t taps, int64_t pitch, int8_t* rows) {
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int8_t* from = weight + tap;
    int8_t* to = rows + tap * pitch;
    for (int64_t channel = 0; channel < channels; ++channel) to[channel] = from[channel * taps];
  }
}

#if PQK_ISA_LEVEL >= 2
// kChannels channels. Byte c of a row is byte c * taps + tap of the weights: its place within a vector is the
// same whichever vector holds it, so that one permutation serves all of them.
void transpose_vectors(const ChannelsLast& order, const int8_t* weight, int64_t pitch, int8_t* rows) {
  alignas(64) uint8_t first[64];
  for (int i = 0; i < 64; ++i) first[i] = static_cast<uint8_t>(i * order.taps);
  __m512i place = _mm512_load_si512(first);
  const uint64_t* mask = order.masks.data();
  for (int64_t tap = 0; tap < order.taps; ++tap) {
    __m512i row = _mm512_setzero_si512();
    for (int64_t i = 0; i < order.taps; ++i) {
      row = _mm512_mask_permutexvar_epi8(row, *mask++, place, _mm512_loadu_si512(weight + i * 64));
    }
    _mm512_storeu_si512(rows + tap * pitch, row);
    place = _mm512_add_epi8(place, _mm512_set1_epi8(1));
  }
}
#endif

}  // namespace

WeightSums weight_sums(const int8_t* weight, int64_t count) {
  WeightSums sums;
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t end = count < begin + kPiece ? count : begin + kPiece;
    int32_t sum = 0, magnitude = 0, nonzero = 0, lowest = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t value = weight[i];
      sum += value;
      magnitude += value < 0 ? -value : value;
      nonzero += value != 0;
      lowest |= value == INT8_MIN;
    }
    sums.sum += sum;
    sums.magnitude += magnitude;
    sums.nonzero += nonzero;
    sums.lowest |= lowest != 0;
  }
  return sums;
}

void channels_last(const ChannelsLast& order, const int8_t* weight, int64_t channels, int64_t pitch,
                   int8_t* rows) {
  const int64_t taps = order.taps;
  if (taps == 1) {
    memcpy(rows, weight, static_cast<size_t>(channels));
    return;
  }
  int64_t done = 0;
#if PQK_ISA_LEVEL >= 2
  if (!order.masks.empty()) {
    for (; done + ChannelsLast::kChannels <= channels; done += ChannelsLast::kChannels) {
      transpose_vectors(order, weight + done * taps, pitch, rows + done);
    }
  }
#endif
  weight += done * taps;
  if (taps == 9) {
    transpose(weight, channels - done, 9, pitch, rows + done);
  } else {
    transpose(weight, channels - done, taps, pitch, rows + done);
  }
}

#include "core/isa_end.h"
