// Operators of float codebooks.
#include "core/cuda/engine/program_builder.h"
#include "core/engine/steps.h"

namespace pqk::engine::device {

void ProgramBuilder::add_float() {
  const Attributes& a = node().attributes;
  const Extent items = extent(out(), 1);
  if (node().op == Op::kFloatAdd) {
    add(FloatAdd{in_float_image(0), in_float_image(1), out_floats(), items, a.clamp_min, a.clamp_max},
        "float_add");
  } else if (node().op == Op::kFloatAffine) {
    add(FloatAffine{in_float_image(), out_floats(), items, constant(node().multiplier, out().channels),
                    constant(node().bias, out().channels), a.clamp_min, a.clamp_max},
        "float_affine");
  } else {
    add(FloatMapStep{in_float_image(), out_floats(), items, a.function}, "float_map");
  }
}

void ProgramBuilder::add_float_conv() {
  const int source = layout_.source(node().inputs[0]);
  const Value& image = graph_.value(source);
  const Conv2dShape s = node().op == Op::kFloatConv2d ? conv_shape(image, node()) : linear_shape(image, node());
  const int64_t group_in = s.in_channels / s.groups, taps = s.kernel_height * s.kernel_width;
  const float* codebook = node().codebook + node().attributes.zero;
  std::vector<float> weight(static_cast<size_t>(s.out_channels * group_in * taps));
  for (int64_t o = 0; o < s.out_channels; ++o) {
    for (int64_t i = 0; i < group_in; ++i) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        weight[static_cast<size_t>((tap * group_in + i) * s.out_channels + o)] =
            codebook[node().weight[(o * group_in + i) * taps + tap]];
      }
    }
  }
  const Floats input = floats(layout_.float_image(source));
  const bool residual = node().inputs.size() == 2;
  add(FloatConv{input, residual ? in_float_image(1) : Floats{}, out_floats(),
                constant(weight.data(), static_cast<int64_t>(weight.size())),
                constant(node().multiplier, s.out_channels), constant(node().bias, s.out_channels),
                extent(out(), 1), static_cast<int>(s.kernel_height), static_cast<int>(s.kernel_width),
                step_of_axis(s.kernel_height, s.dilation_height, input.row_stride),
                step_of_axis(s.kernel_width, s.dilation_width, input.pixel_stride),
                step_of_axis(s.out_height, s.stride_height, input.row_stride),
                step_of_axis(s.out_width, s.stride_width, input.pixel_stride),
                static_cast<int>(-s.pad_top * input.row_stride - s.pad_left * input.pixel_stride),
                static_cast<int>(group_in), Divisor::of(s.out_channels / s.groups), residual,
                node().attributes.clamp_min, node().attributes.clamp_max},
      "float_conv");
  program_.weight_bytes += 4 * static_cast<int64_t>(weight.size());
  program_.products += out().numel() * group_in * taps;
}

}  // namespace pqk::engine::device
