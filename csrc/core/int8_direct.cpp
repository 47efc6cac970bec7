#include <algorithm>

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
  void set_border(int32_t zero_point);
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

DirectConv2d::DirectConv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : plan_{}, kernel_(active_int8_direct_kernel()) {
  const Int8DirectFormat format = active_int8_direct_format()();
  plan_.shape = shape;
  plan_.group_in = shape.in_channels / shape.groups;
  plan_.group_out = shape.out_channels / shape.groups;
  plan_.tiles = (plan_.group_out + kOutTile - 1) / kOutTile;
  plan_.tap_quads = (plan_.group_in + 3) / 4;
  plan_.row_quads = shape.kernel_width * plan_.tap_quads;
  set_border(constants.input_zero_point);
  plan_.panel = std::min(format.max_panel, panel_tiles(plan_));
  pack_weight(constants.weight, format.weight);
  epilogue_ = std::make_unique<PackedEpilogue>(constants, shape.groups * plan_.tiles * kOutTile);
  const int64_t fan_in = plan_.group_in * shape.kernel_height * shape.kernel_width;
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    const int64_t group = channel / plan_.group_out;
    epilogue_->set(constants, channel, fan_in, group * plan_.tiles * kOutTile + channel % plan_.group_out);
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

void DirectConv2d::set_border(int32_t zero_point) {
  const Conv2dShape& s = plan_.shape;
  const bool padded = s.pad_top > 0 || s.pad_left > 0 || s.pad_bottom > 0 || s.pad_right > 0;
  const int64_t last = (s.out_width - 1) * s.stride_width - s.pad_left + s.kernel_width - 1;  // tap
  plan_.skips_border = zero_point == 0 && padded;
  const bool adjacent = plan_.skips_border && s.dilation_width == 1 && s.kernel_width > 1;
  plan_.skips_left = adjacent && s.pad_left == 1;
  plan_.skips_right = adjacent && last == s.in_width;
}

// Where the weights of the four codes of a quad lie among one output channel's weights; -1 where a code has
// none.
struct QuadSource {
  int64_t offset[4];
};

QuadSource quad_source(const Int8DirectPlan& plan, int64_t ky, int64_t quad) {
  const Conv2dShape& s = plan.shape;
  const int64_t kx = quad / plan.tap_quads, first = quad % plan.tap_quads * 4;
  QuadSource source;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t c = first + i;
    source.offset[i] = c < plan.group_in ? (c * s.kernel_height + ky) * s.kernel_width + kx : -1;
  }
  return source;
}

void DirectConv2d::pack_weight(const int8_t* weight, WeightFormat format) {
  const Conv2dShape& s = plan_.shape;
  const int64_t fan_in = plan_.group_in * s.kernel_height * s.kernel_width;
  const int64_t block_bytes = kOutTile * 4 * weight_bytes(format);
  plan_.tile_bytes = s.kernel_height * plan_.row_quads * block_bytes;
  weight_ = AlignedArray<uint8_t>(s.groups * plan_.tiles * plan_.tile_bytes);
  plan_.weight = weight_.data();
  for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
    for (int64_t quad = 0; quad < plan_.row_quads; ++quad) {
      const QuadSource source = quad_source(plan_, ky, quad);
      for (int64_t tile = 0; tile < s.groups * plan_.tiles; ++tile) {
        const int64_t group = tile / plan_.tiles, in_group = tile % plan_.tiles;
        const int64_t first = in_group / plan_.panel * plan_.panel;
        const int64_t panel = std::min(plan_.panel, plan_.tiles - first);
        const int64_t place = (ky * plan_.row_quads + quad) * panel + in_group - first;
        uint8_t* block =
            weight_.data() + (group * plan_.tiles + first) * plan_.tile_bytes + place * block_bytes;
        const int64_t channel = group * plan_.group_out + in_group * kOutTile;
        const int64_t channels = std::min(kOutTile, plan_.group_out - in_group * kOutTile);
        for (int64_t i = 0; i < 4; ++i) {
          if (source.offset[i] < 0) continue;
          const int8_t* from = weight + channel * fan_in + source.offset[i];
          for (int64_t lane = 0; lane < channels; ++lane) {
            store_weight(block, format, kOutTile, lane, i, from[lane * fan_in]);
          }
        }
      }
    }
  }
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_direct(const Conv2dShape& shape, const Conv2dConstants& constants) {
  return std::make_unique<DirectConv2d>(shape, constants);
}

}  // namespace pqk
