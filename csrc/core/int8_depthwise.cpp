#include <algorithm>

#include "core/int8_packing.h"

namespace pqk {
namespace {

class DepthwiseConv2d final : public PackedConv2d {
 public:
  DepthwiseConv2d(const Conv2dShape& shape, const Conv2dConstants& constants,
                  const Int8DepthwiseFormat& format);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "depthwise"; }

 private:
  void pack_weight(const int8_t* weight, const Int8DepthwiseFormat& format);

  Int8DepthwisePlan plan_;
  Int8DepthwiseKernel* kernel_;
  AlignedArray<uint8_t> weight_;
  std::unique_ptr<PackedEpilogue> epilogue_;
};

// A channel's place in its block of 4 vectors.
struct Place {
  int64_t block, vector, lane;
};

Place place_of(int64_t channel, int64_t lanes) {
  const int64_t in_block = channel % (lanes * 4);
  return {channel / (lanes * 4), in_block % 16 / 4, in_block / 16 * 4 + in_block % 4};
}

DepthwiseConv2d::DepthwiseConv2d(const Conv2dShape& shape, const Conv2dConstants& constants,
                                 const Int8DepthwiseFormat& format)
    : plan_{}, kernel_(active_int8_depthwise_kernel()) {
  plan_.shape = shape;
  plan_.blocks = (shape.out_channels + format.lanes * 4 - 1) / (format.lanes * 4);
  // A second output pays when it needs no window of its own.
  const bool neighbours = shape.stride_width == 1 && shape.dilation_width == 1 && shape.kernel_width % 4 != 0;
  plan_.outputs = neighbours && !constants.has_residual ? format.max_outputs : 1;
  plan_.span = shape.kernel_width + plan_.outputs - 1;
  plan_.windows = (plan_.span + 3) / 4;
  pack_weight(constants.weight, format);
  epilogue_ = std::make_unique<PackedEpilogue>(constants, plan_.blocks * format.lanes * 4);
  const std::vector<WeightSums> sums = channel_sums(shape, constants.weight);
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    const Place place = place_of(channel, format.lanes);
    epilogue_->set(constants, channel, sums[static_cast<size_t>(channel)],
                   (place.block * 4 + place.vector) * format.lanes + place.lane);
  }
  plan_.epilogue = epilogue_->get();
}

void DepthwiseConv2d::pack_weight(const int8_t* weight, const Int8DepthwiseFormat& format) {
  const Conv2dShape& s = plan_.shape;
  const int64_t vector_bytes = format.lanes * 4 * weight_bytes(format.weight);
  const int64_t window_bytes = plan_.outputs * 4 * vector_bytes;
  weight_ = AlignedArray<uint8_t>(plan_.blocks * s.kernel_height * plan_.windows * window_bytes);
  plan_.weight = weight_.data();
  for (int64_t channel = 0; channel < s.out_channels; ++channel) {
    const Place place = place_of(channel, format.lanes);
    for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
      for (int64_t output = 0; output < plan_.outputs; ++output) {
        for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
          const int64_t pixel = kx + output;  // of the span
          const int64_t window = (place.block * s.kernel_height + ky) * plan_.windows + pixel / 4;
          store_weight(weight_.data() + window * window_bytes + (output * 4 + place.vector) * vector_bytes,
                       format.weight, format.lanes, place.lane, pixel % 4,
                       weight[(channel * s.kernel_height + ky) * s.kernel_width + kx]);
        }
      }
    }
  }
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_depthwise(const Conv2dShape& shape, const Conv2dConstants& constants) {
  const Int8DepthwiseFormat format = active_int8_depthwise_format()();
  const bool depthwise = shape.groups == shape.in_channels && shape.groups == shape.out_channels;
  if (!depthwise || shape.groups == 1 || format.lanes == 0 || constants.float_output) return nullptr;
  return std::make_unique<DepthwiseConv2d>(shape, constants, format);
}

}  // namespace pqk
