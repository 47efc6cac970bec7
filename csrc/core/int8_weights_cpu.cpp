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
  int64_t begin = 0;
#if PQK_ISA_LEVEL >= 2
  const __m512i ones = _mm512_set1_epi8(1), least = _mm512_set1_epi8(INT8_MIN);
  while (begin + 64 <= count) {
    const int64_t end = count < begin + kPiece ? count : begin + kPiece;
    __m512i sum = _mm512_setzero_si512(), magnitude = sum;
    for (; begin + 64 <= end; begin += 64) {
      const __m512i values = _mm512_loadu_si512(weight + begin);
      sum = _mm512_dpbusd_epi32(sum, ones, values);
      magnitude = _mm512_dpbusd_epi32(magnitude, _mm512_abs_epi8(values), ones);
      sums.nonzero += __builtin_popcountll(_mm512_test_epi8_mask(values, values));
      sums.lowest |= _mm512_cmpeq_epi8_mask(values, least) != 0;
    }
    sums.sum += _mm512_reduce_add_epi32(sum);
    sums.magnitude += _mm512_reduce_add_epi32(magnitude);
  }
#endif
  while (begin < count) {
    const int64_t end = count < begin + kPiece ? count : begin + kPiece;
    int32_t sum = 0, magnitude = 0, nonzero = 0, lowest = 0;
    for (; begin < end; ++begin) {
      const int32_t value = weight[begin];
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

#if PQK_ISA_LEVEL >= 2
int64_t append_nonzeros(const int8_t* row, int64_t count, int32_t place, int32_t* places, int8_t* weights) {
  alignas(64) uint8_t order[64];
  for (int i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i);
  const __m512i all = _mm512_load_si512(order);
  int64_t size = 0;
  for (int64_t begin = 0; begin < count; begin += kRowUnit, place += kRowUnit) {
    const __m512i values = _mm512_loadu_si512(row + begin);
    const __mmask64 nonzero = _mm512_test_epi8_mask(values, values);
    const int64_t found = __builtin_popcountll(nonzero);
    _mm512_storeu_si512(weights + size, _mm512_maskz_compress_epi8(nonzero, values));
    alignas(64) uint8_t kept[64];
    _mm512_store_si512(kept, _mm512_maskz_compress_epi8(nonzero, all));
    for (int64_t i = 0; i < found; i += 16) {
      const __m512i index = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(kept + i)));
      _mm512_storeu_si512(places + size + i, _mm512_add_epi32(index, _mm512_set1_epi32(place)));
    }
    size += found;
  }
  return size;
}
#else
int64_t append_nonzeros(const int8_t* row, int64_t count, int32_t place, int32_t* places, int8_t* weights) {
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i) {
    // Written in any case and kept if not zero: no branch could be predicted.
    places[size] = place + static_cast<int32_t>(i);
    weights[size] = row[i];
    size += row[i] != 0;
  }
  return size;
}
#endif

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
