// How weights are put in the order of the direct kernel, a tile of output channels at a time.
#pragma once

#include "core/int8_conv2d_plan.h"
#include "core/int8_weights.h"

namespace pqk {

// Everything but the weights and the epilogue.
Int8DirectPlan int8_direct_plan(const Conv2dShape& shape, int32_t input_zero_point);

class Int8DirectPacking {
 public:
  Int8DirectPacking(const Conv2dShape& shape, WeightFormat format);
  // Memory that packing works in.
  int64_t rows_bytes() const { return kOutTile * order_.taps * pitch_; }
  // `blocks` are those of the group; `weight` is that of all groups.
  void pack(const Int8DirectPlan& plan, const int8_t* weight, int64_t group, int64_t tile, int8_t* rows,
            uint8_t* blocks) const;

 private:
  static constexpr int64_t kRowsOfTile =
      2048;  // bytes of an output channel's rows, where its taps are that few

  WeightFormat format_;
  ChannelsLast order_;
  ChannelsLastKernel* channels_last_;
  int64_t channels_, pitch_;  // input channels that are packed together, and bytes from tap to tap
};

}  // namespace pqk
