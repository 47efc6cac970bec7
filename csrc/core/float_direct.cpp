#include "core/float_direct.h"

#include <algorithm>

namespace pqk {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

class FloatDirectConv2d final : public PackedFloatConv2d {
 public:
  FloatDirectConv2d(const Conv2dShape& shape, const FloatConv2dConstants& constants)
      : epilogue_(constants, shape.out_channels), kernel_(active_float_direct_kernel()) {
    const auto [lanes, panel] = active_float_direct_format()();
    const int64_t fan_in = shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
    plan_.shape = shape;
    plan_.group_in = shape.in_channels / shape.groups;
    plan_.group_out = shape.out_channels / shape.groups;
    plan_.group_panels = (plan_.group_out + panel - 1) / panel;
    plan_.group_floats = round_up(plan_.group_out, lanes) * fan_in;
    plan_.epilogue = epilogue_.get();
    weight_ = AlignedArray<float>(shape.groups * plan_.group_floats);
    plan_.weight = weight_.data();
    for (int64_t group = 0; group < shape.groups; ++group) {
      const int8_t* from = constants.weight + group * plan_.group_out * fan_in;
      float* to = weight_.data() + group * plan_.group_floats;
      for (int64_t begin = 0; begin < plan_.group_out; begin += panel) {
        const int64_t end = std::min(begin + panel, plan_.group_out);
        pack_float_panel(shape, from, constants.codebook, begin, end, round_up(end - begin, lanes),
                         to + begin * fan_in);
      }
    }
  }

  void run(const FloatConvImages& images, int64_t row_begin, int64_t row_end, int64_t panel_begin,
           int64_t panel_end) const override {
    kernel_(plan_, images, row_begin, row_end, panel_begin, panel_end);
  }
  int64_t panels() const override { return plan_.shape.groups * plan_.group_panels; }
  const char* kernel_name() const override { return "float_direct"; }

 private:
  FloatDirectPlan plan_;
  PackedFloatEpilogue epilogue_;
  AlignedArray<float> weight_;
  FloatDirectKernel* kernel_;
};

}  // namespace

void pack_float_panel(const Conv2dShape& shape, const int8_t* group_weight, const float* codebook,
                      int64_t begin, int64_t end, int64_t width, float* panel) {
  const int64_t inputs = shape.in_channels / shape.groups, taps = shape.kernel_height * shape.kernel_width;
  for (int64_t channel = begin; channel < begin + width; ++channel) {
    float* to = panel + channel - begin;
    const int8_t* from = group_weight + channel * inputs * taps;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t input = 0; input < inputs; ++input, to += width) {
        *to = channel < end ? codebook[from[input * taps + tap]] : 0.0f;
      }
    }
  }
}

std::unique_ptr<PackedFloatConv2d> pack_float_direct(const Conv2dShape& shape,
                                                     const FloatConv2dConstants& constants) {
  return std::make_unique<FloatDirectConv2d>(shape, constants);
}

}  // namespace pqk
