#include "core/float_depthwise.h"

namespace pqk {
namespace {

class FloatDepthwiseConv2d final : public PackedFloatConv2d {
 public:
  FloatDepthwiseConv2d(const Conv2dShape& shape, const FloatConv2dConstants& constants)
      : epilogue_(constants, shape.out_channels), kernel_(active_float_depthwise_kernel()) {
    const int64_t taps = shape.kernel_height * shape.kernel_width;
    const int64_t row_floats = (shape.out_channels + 15) / 16 * 16;
    weight_ = AlignedArray<float>(taps * row_floats);
    for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        weight_.data()[tap * row_floats + channel] = constants.codebook[constants.weight[channel * taps + tap]];
      }
    }
    plan_ = {shape, weight_.data(), row_floats, epilogue_.get()};
  }

  void run(const FloatConvImages& images, int64_t row_begin, int64_t row_end, int64_t, int64_t) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "float_depthwise"; }

 private:
  FloatDepthwisePlan plan_;
  PackedFloatEpilogue epilogue_;
  AlignedArray<float> weight_;
  FloatDepthwiseKernel* kernel_;
};

}  // namespace

std::unique_ptr<PackedFloatConv2d> pack_float_depthwise(const Conv2dShape& shape,
                                                        const FloatConv2dConstants& constants) {
  if (shape.groups == 1 || shape.in_channels != shape.groups || shape.out_channels != shape.groups)
    return nullptr;
  return std::make_unique<FloatDepthwiseConv2d>(shape, constants);
}

}  // namespace pqk
