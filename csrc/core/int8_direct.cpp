#include <algorithm>
#include <cstring>
#include <vector>

#include "core/int8_direct_packing.h"
#include "core/int8_packing.h"

namespace pqk {
namespace {

class DirectConv2d final : public PackedConv2d {
 public:
  DirectConv2d(const Conv2dShape& shape, const Conv2dConstants& constants);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  int64_t panels() const override {
    return plan_.shape.groups == 1 ? (plan_.tiles + plan_.panel - 1) / plan_.panel : 1;
  }
  void run_panels(const Int8ConvImages& images, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                  int64_t panel_end) const override;
  const char* kernel_name() const override { return "direct"; }

 private:
  void pack_weight(const int8_t* weight, WeightFormat format);

  Int8DirectPlan plan_;
  Int8DirectKernel* kernel_;
  AlignedArray<uint8_t> weight_;
  std::unique_ptr<PackedEpilogue> epilogue_;
};

// How many tiles of output channels to compute together. Two fill the registers best; four do so for rows of
// five or six pixels, and give one pixel enough sums.
int64_t panel_tiles(const Int8DirectPlan& plan) {
  const int64_t width = plan.shape.out_width;
  const bool narrow =
      (width == 5 || width == 6) && plan.shape.kernel_height > 1;  // else the epilogue weighs more
  if (narrow || plan.shape.out_height * width == 1) return 4;
  return plan.tiles == 3 ? 3 : 2;
}

void set_border(int32_t zero_point, Int8DirectPlan& plan) {
  const Conv2dShape& s = plan.shape;
  const bool padded = s.pad_top > 0 || s.pad_left > 0 || s.pad_bottom > 0 || s.pad_right > 0;
  const int64_t last = (s.out_width - 1) * s.stride_width - s.pad_left + s.kernel_width - 1;  // tap
  plan.skips_border = zero_point == 0 && padded;
  const bool adjacent = plan.skips_border && s.dilation_width == 1 && s.kernel_width > 1;
  plan.skips_left = adjacent && s.pad_left == 1;
  plan.skips_right = adjacent && last == s.in_width;
}

DirectConv2d::DirectConv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : plan_(int8_direct_plan(shape, constants.input_zero_point)), kernel_(active_int8_direct_kernel()) {
  pack_weight(constants.weight, active_int8_direct_format()().weight);
  epilogue_ = std::make_unique<PackedEpilogue>(constants, shape.groups * plan_.tiles * kOutTile);
  const std::vector<WeightSums> sums = channel_sums(shape, constants.weight);
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    const int64_t group = channel / plan_.group_out;
    epilogue_->set(constants, channel, sums[static_cast<size_t>(channel)],
                   group * plan_.tiles * kOutTile + channel % plan_.group_out);
  }
  plan_.epilogue = epilogue_->get();
}

void DirectConv2d::run_panels(const Int8ConvImages& images, int64_t row_begin, int64_t row_end,
                              int64_t panel_begin, int64_t panel_end) const {
  if (panel_begin == 0 && panel_end == panels()) {
    run(images, row_begin, row_end);
    return;
  }
  const int64_t tile = panel_begin * plan_.panel, channel = tile * kOutTile;
  Int8DirectPlan part = plan_;
  part.tiles = std::min(panel_end * plan_.panel, plan_.tiles) - tile;
  part.group_out = std::min(part.tiles * kOutTile, plan_.group_out - channel);
  part.weight += tile * plan_.tile_bytes;
  part.epilogue.compensation += channel;
  part.epilogue.multiplier += channel;
  part.epilogue.bias += channel;
  Int8Image residual;
  kernel_(part, from_channel(images, channel, &residual), row_begin, row_end);
}

// The blocks of one tap and tile, `block_step` bytes apart, from rows of input channels, one an output channel
// and `row_step` bytes apart.
void pack_quads(const int8_t* rows, int64_t row_step, int64_t quads, WeightFormat format, int64_t block_step,
                uint8_t* blocks) {
  for (int64_t quad = 0; quad < quads; ++quad, blocks += block_step) {
    const int8_t* from = rows + quad * 4;
    for (int64_t lane = 0; lane < kOutTile; ++lane, from += row_step) {
      if (format == WeightFormat::kQuads) {
        std::memcpy(blocks + lane * 4, from, 4);
      } else {
        const int16_t pairs[2][2] = {{from[0], from[2]}, {from[1], from[3]}};
        std::memcpy(blocks + lane * 4, pairs[0], 4);
        std::memcpy(blocks + (kOutTile + lane) * 4, pairs[1], 4);
      }
    }
  }
}

void DirectConv2d::pack_weight(const int8_t* weight, WeightFormat format) {
  const Conv2dShape& s = plan_.shape;
  weight_ = AlignedArray<uint8_t>::uninitialized(s.groups * plan_.tiles * plan_.tile_bytes);
  plan_.weight = weight_.data();
  const Int8DirectPacking packing(s, format);
  std::vector<int8_t> rows(static_cast<size_t>(packing.rows_bytes()));
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t tile = 0; tile < plan_.tiles; ++tile) {
      packing.pack(plan_, weight, group, tile, rows.data(),
                   weight_.data() + group * plan_.tiles * plan_.tile_bytes);
    }
  }
}

}  // namespace

Int8DirectPlan int8_direct_plan(const Conv2dShape& shape, int32_t input_zero_point) {
  const Int8DirectFormat format = active_int8_direct_format()();
  Int8DirectPlan plan{};
  plan.shape = shape;
  plan.group_in = shape.in_channels / shape.groups;
  plan.group_out = shape.out_channels / shape.groups;
  plan.tiles = (plan.group_out + kOutTile - 1) / kOutTile;
  plan.tap_quads = (plan.group_in + 3) / 4;
  plan.row_quads = shape.kernel_width * plan.tap_quads;
  set_border(input_zero_point, plan);
  plan.panel = std::min(format.max_panel, panel_tiles(plan));
  plan.tile_bytes = shape.kernel_height * plan.row_quads * kOutTile * 4 * weight_bytes(format.weight);
  return plan;
}

Int8DirectPacking::Int8DirectPacking(const Conv2dShape& shape, WeightFormat format)
    : format_(format),
      order_(shape.kernel_height * shape.kernel_width),
      channels_last_(active_channels_last()),
      channels_(std::clamp<int64_t>(kRowsOfTile / order_.taps / 4 * 4, 4, ChannelsLast::kChannels)),
      pitch_(std::min(channels_, (shape.in_channels / shape.groups + 3) / 4 * 4)) {}

void Int8DirectPacking::pack(const Int8DirectPlan& plan, const int8_t* weight, int64_t group, int64_t tile,
                             int8_t* rows, uint8_t* blocks) const {
  const int64_t first = tile / plan.panel * plan.panel;
  const int64_t panel = std::min(plan.panel, plan.tiles - first);
  const int64_t block_bytes = kOutTile * 4 * weight_bytes(format_);
  const int64_t lanes = std::min(kOutTile, plan.group_out - tile * kOutTile);
  const int64_t taps = order_.taps, fan_in = plan.group_in * taps;
  weight += (group * plan.group_out + tile * kOutTile) * fan_in;
  blocks += first * plan.tile_bytes + (tile - first) * block_bytes;
  for (int64_t begin = 0; begin < plan.group_in; begin += channels_) {
    const int64_t channels = std::min(channels_, plan.group_in - begin);
    if (lanes < kOutTile || channels < pitch_) std::memset(rows, 0, static_cast<size_t>(rows_bytes()));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      channels_last_(order_, weight + lane * fan_in + begin * taps, channels, pitch_,
                     rows + lane * taps * pitch_);
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      pack_quads(rows + tap * pitch_, taps * pitch_, (channels + 3) / 4, format_, panel * block_bytes,
                 blocks + (tap * plan.tap_quads + begin / 4) * panel * block_bytes);
    }
  }
}

std::unique_ptr<PackedConv2d> pack_direct(const Conv2dShape& shape, const Conv2dConstants& constants) {
  return std::make_unique<DirectConv2d>(shape, constants);
}

}  // namespace pqk
