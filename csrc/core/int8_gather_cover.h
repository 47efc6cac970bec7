// How windows cover the non-zeros of a kernel row: the first half of pack_gather.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/int8_gather_plan.h"
#include "core/int8_weights.h"

namespace pqk {

constexpr int64_t kMostGatherLanes = 16;

// The non-zeros of the channels of a panel: for each channel and kernel row in the order of their places, then
// kEnds entries beyond all places, so that a look ahead needs no limit.
class GatherNonZeros {
 public:
  static constexpr int64_t kEnds = 16;

  GatherNonZeros(const Conv2dShape& shape, const Conv2dConstants& constants);

  // Channels [first, first + channels), whose weights have these sums.
  void load(int64_t first, int64_t channels, const WeightSums* sums);

  // Number of a channel's non-zeros under a kernel row.
  int64_t count(int64_t channel, int64_t ky) const {
    const size_t row = row_of(channel, ky);
    return begins_[row + 1] - begins_[row] - kEnds;
  }
  // Index of the first of them; of channel -1, which has none, of an end.
  int64_t begin(int64_t channel, int64_t ky) const { return channel < 0 ? 0 : begins_[row_of(channel, ky)]; }
  // Bytes of the kernel row's input, and weights, by index.
  const int32_t* places() const { return places_.data(); }
  const int8_t* weights() const { return weights_.data(); }

 private:
  size_t row_of(int64_t channel, int64_t ky) const {
    return static_cast<size_t>((channel - first_) * shape_.kernel_height + ky);
  }
  void append_ends();

  const Conv2dShape& shape_;
  const int8_t* weight_;
  ChannelsLast order_;
  ChannelsLastKernel* channels_last_;
  int64_t pitch_;
  std::vector<int8_t> rows_;  // of one channel: [ky][kx][pitch_], zeros after the input channels
  int64_t pixel_stride_, first_ = 0, size_ = 0;
  std::vector<int32_t> places_;
  std::vector<int8_t> weights_;
  std::vector<int64_t> begins_;  // [channel][ky], and the end
};

// A window and what its steps take from every lane.
struct GatherCover {
  GatherWindow place;
  int32_t steps;
  std::array<int32_t, kMostGatherLanes> begin;  // index of the first non-zero
  std::array<uint8_t, kMostGatherLanes> taken;  // how many
};

// Of the lanes that hold these channels (-1: none), the cheapest cover of every kernel row, one after the
// other.
void cover_rows(const Int8GatherFormat& format, const GatherNonZeros& non_zeros, int64_t kernel_height,
                const int64_t* channels, std::vector<GatherCover>& windows);

}  // namespace pqk
