// What checks and packers want to know of int8 weights, and the order in which packers read them: each weight
// is looked at a few times while a file is loaded, so these are kernels of their own.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"

namespace pqk {

struct WeightSums {
  int64_t sum = 0;
  int64_t magnitude = 0;  // sum of absolute values
  int64_t nonzero = 0;    // how many are not 0
  bool lowest = false;    // whether one is -128
};

// The masks by which vectors put the input channels innermost, for a kernel of `taps` taps.
struct ChannelsLast {
  static constexpr int64_t kMostTaps = 16, kChannels = 64;

  explicit ChannelsLast(int64_t taps);

  int64_t taps;
  // [tap][i]: which of kChannels channels have the weight of this tap among bytes [64 i, 64 i + 64) of
  // [channel][tap]. Empty where vectors do not pay.
  std::vector<uint64_t> masks;
};

// Of `count` weights.
using WeightSumsKernel = WeightSums(const int8_t* weight, int64_t count);
// One output channel's weights [channels][taps] as [taps][channels], a row every `pitch` bytes. Bytes between
// the rows stay as they are.
using ChannelsLastKernel = void(const ChannelsLast& order, const int8_t* weight, int64_t channels,
                                int64_t pitch, int8_t* rows);
// Appends the weights of a row of `count` (a multiple of kRowUnit, zeros at the end if need be) that are not 0,
// and their places, `place` being the first's. Returns their number. May write kRowUnit entries beyond them.
constexpr int64_t kRowUnit = 64;
using AppendNonZeros = int64_t(const int8_t* row, int64_t count, int32_t place, int32_t* places,
                               int8_t* weights);
PQK_CPU_KERNEL(WeightSumsKernel, weight_sums)
PQK_CPU_KERNEL(AppendNonZeros, append_nonzeros)
PQK_CPU_KERNEL(ChannelsLastKernel, channels_last)

}  // namespace pqk
