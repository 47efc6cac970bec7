#include "core/int8_conv2d.h"

#include <algorithm>

#include "core/int8_conv2d_plan.h"

namespace pqk {
namespace {

class DirectConv2d final : public PackedConv2d {
 public:
  DirectConv2d(const Conv2dShape& shape, const Conv2dConstants& constants);
  void run(const Int8Image& input, const Int8Image* residual, const Int8Image& output, float* float_output,
           int64_t row_begin, int64_t row_end) const override {
    kernel_(plan_, input, residual, output, float_output, row_begin, row_end);
  }
  const char* kernel_name() const override { return "direct"; }

 private:
  void pack_weight(const int8_t* weight, WeightFormat format);
  void pack_constants(const Conv2dConstants& constants);

  Int8ConvPlan plan_;
  Int8ConvKernel* kernel_;
  AlignedArray<uint8_t> weight_;
  AlignedArray<int32_t> compensation_;
  AlignedArray<float> multiplier_, bias_;
};

// Where the weight of (output channel lane, input channel i of its quad) lies in the block of one quad.
void store_weight(uint8_t* block, WeightFormat format, int64_t lane, int64_t i, int8_t value) {
  if (format == WeightFormat::kQuads) {
    reinterpret_cast<int8_t*>(block)[lane * 4 + i] = value;
  } else {
    reinterpret_cast<int16_t*>(block)[(i % 2 * kOutTile + lane) * 2 + i / 2] = value;
  }
}

// How many tiles of output channels to compute together. Two fill the registers best; four read each weight
// less often when there are few pixels to share it.
int64_t panel_tiles(const Int8ConvPlan& plan) {
  return plan.shape.out_height * plan.shape.out_width <= 6 ? 4 : plan.tiles == 3 ? 3 : 2;
}

DirectConv2d::DirectConv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : plan_{}, kernel_(active_int8_direct_kernel()) {
  plan_.shape = shape;
  plan_.group_in = shape.in_channels / shape.groups;
  plan_.group_out = shape.out_channels / shape.groups;
  plan_.tiles = (plan_.group_out + kOutTile - 1) / kOutTile;
  plan_.tap_quads = (plan_.group_in + 3) / 4;
  plan_.quant_min = static_cast<float>(constants.quant_min);
  plan_.quant_max = static_cast<float>(constants.quant_max);
  plan_.float_output = constants.float_output;
  plan_.has_residual = constants.has_residual;
  plan_.residual_multiplier = constants.residual_multiplier;
  plan_.residual_zero_point = constants.residual_zero_point;
  const Int8DirectFormat format = active_int8_direct_format()();
  plan_.panel = std::min(format.max_panel, panel_tiles(plan_));
  pack_weight(constants.weight, format.weight);
  pack_constants(constants);
}

void DirectConv2d::pack_weight(const int8_t* weight, WeightFormat format) {
  const Conv2dShape& s = plan_.shape;
  const int64_t taps = s.kernel_height * s.kernel_width;
  const int64_t block_bytes = kOutTile * 4 * (format == WeightFormat::kQuads ? 1 : 2);
  plan_.tile_bytes = taps * plan_.tap_quads * block_bytes;
  weight_ = AlignedArray<uint8_t>(s.groups * plan_.tiles * plan_.tile_bytes);
  plan_.weight = weight_.data();
  for (int64_t channel = 0; channel < s.out_channels; ++channel) {
    const int64_t group = channel / plan_.group_out, in_group = channel % plan_.group_out;
    const int64_t tile = in_group / kOutTile, first = tile / plan_.panel * plan_.panel;
    const int64_t panel = std::min(plan_.panel, plan_.tiles - first);
    uint8_t* base = weight_.data() + (group * plan_.tiles + first) * plan_.tile_bytes;
    for (int64_t c = 0; c < plan_.group_in; ++c) {
      const int8_t* source = weight + (channel * plan_.group_in + c) * taps;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t block = (tap * plan_.tap_quads + c / 4) * panel + tile - first;
        store_weight(base + block * block_bytes, format, in_group % kOutTile, c % 4, source[tap]);
      }
    }
  }
}

void DirectConv2d::pack_constants(const Conv2dConstants& constants) {
  const Conv2dShape& s = plan_.shape;
  const int64_t padded = s.groups * plan_.tiles * kOutTile;
  const int64_t fan_in = plan_.group_in * s.kernel_height * s.kernel_width;
  compensation_ = AlignedArray<int32_t>(padded);
  multiplier_ = AlignedArray<float>(padded);
  bias_ = AlignedArray<float>(padded);
  for (int64_t channel = 0; channel < s.out_channels; ++channel) {
    const int64_t at = channel / plan_.group_out * plan_.tiles * kOutTile + channel % plan_.group_out;
    int64_t sum = 0;
    for (int64_t i = 0; i < fan_in; ++i) sum += constants.weight[channel * fan_in + i];
    compensation_.data()[at] = static_cast<int32_t>(-constants.input_zero_point * sum);
    multiplier_.data()[at] = constants.multiplier[channel];
    bias_.data()[at] = constants.bias[channel];
  }
  plan_.compensation = compensation_.data();
  plan_.multiplier = multiplier_.data();
  plan_.bias = bias_.data();
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_conv2d(const Conv2dShape& shape, const Conv2dConstants& constants) {
  return std::make_unique<DirectConv2d>(shape, constants);
}

}  // namespace pqk
