#include "core/coded_conv2d.h"

#include <algorithm>

namespace pqk {
namespace {

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

WeightShape weight_shape(const Conv2dShape& s) {
  return {s.out_channels * s.in_channels * s.kernel_height * s.kernel_width, s.out_channels};
}

}  // namespace

CodedConv2d::CodedConv2d(std::shared_ptr<const CodedWeight> weight, const Conv2dShape& shape,
                         const Conv2dConstants& constants)
    : weight_(std::move(weight)),
      weight_shape_(weight_shape(shape)),
      plan_(int8_direct_plan(shape, constants.input_zero_point)),
      kernel_(active_int8_direct_kernel()),
      packing_(shape, active_int8_direct_format()().weight),
      epilogue_(constants, plan_.tiles * kOutTile),
      panel_rows_(coded_panel_rows(*weight_, weight_shape_, tile_channels())) {
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    epilogue_.set(constants, channel, active_weight_sums()(constants.weight + channel * fan_in(), fan_in()),
                  channel);
  }
  plan_.epilogue = epilogue_.get();
}

int64_t CodedConv2d::scratch_bytes() const {
  return round_up(plan_.panel * plan_.tile_bytes) + round_up(packing_.rows_bytes()) +
         tile_channels() * fan_in();
}

void CodedConv2d::run_panels(const Int8ConvImages& images, int64_t row_begin, int64_t row_end,
                             int64_t panel_begin, int64_t panel_end) const {
  uint8_t* const blocks = images.scratch;
  int8_t* const rows = reinterpret_cast<int8_t*>(blocks + round_up(plan_.panel * plan_.tile_bytes));
  int8_t* const decoded = rows + round_up(packing_.rows_bytes());
  const int64_t last = std::min(panel_end * panel_rows_, plan_.group_out);
  CodedRows weight(*weight_, weight_shape_, panel_begin * panel_rows_);
  for (int64_t channel = panel_begin * panel_rows_; channel < last; channel += tile_channels()) {
    Int8DirectPlan part = plan_;
    part.group_out = std::min(tile_channels(), last - channel);
    part.tiles = (part.group_out + kOutTile - 1) / kOutTile;
    part.weight = blocks;
    part.epilogue.compensation += channel;
    part.epilogue.multiplier += channel;
    part.epilogue.bias += channel;
    weight.next(part.group_out, decoded);
    for (int64_t tile = 0; tile < part.tiles; ++tile) packing_.pack(part, decoded, 0, tile, rows, blocks);
    Int8Image residual;
    kernel_(part, from_channel(images, channel, &residual), row_begin, row_end);
  }
}

}  // namespace pqk
