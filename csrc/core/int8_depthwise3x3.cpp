#include <algorithm>

#include "core/int8_packing.h"
#include "core/numerics.h"

namespace pqk {
namespace {

constexpr int64_t kLanes = 16, kVectors = 2, kHalf = kLanes * kVectors, kBlock = 2 * kHalf;
constexpr int64_t kTaps = 3, kVectorBytes = kLanes * 4;

class Depthwise3x3Conv2d final : public PackedConv2d {
 public:
  Depthwise3x3Conv2d(const Conv2dShape& shape, const Conv2dConstants& constants);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "depthwise3x3"; }

 private:
  Int8Depthwise3x3Plan plan_;
  Int8Depthwise3x3Kernel* kernel_;
  AlignedArray<uint8_t> weight_;
  std::unique_ptr<PackedEpilogue> epilogue_;
};

// A channel's place; see Int8Depthwise3x3Plan.
struct Place {
  int64_t half, vector, lane;
};

Place place_of(int64_t channel, int64_t channels) {
  const int64_t block = channel / kBlock, c = channel % kBlock;
  if (channels - block * kBlock <= kHalf) return {2 * block, c % 8 / 4, c / 8 * 4 + c % 4};
  return {2 * block + c % 16 / 8, c % 8 / 4, c / 16 * 4 + c % 4};
}

Depthwise3x3Conv2d::Depthwise3x3Conv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : plan_{}, kernel_(active_int8_depthwise3x3_kernel()) {
  const int64_t channels = shape.out_channels, last = channels % kBlock;
  plan_.shape = shape;
  plan_.halves = (channels + kBlock - 1) / kBlock * 2;
  plan_.spread = last > 0 && last <= kHalf;
  if (plan_.spread) --plan_.halves;
  const int64_t rows = shape.stride_height == 1 ? 2 : 1, half_bytes = kTaps * rows * kVectors * kVectorBytes;
  weight_ = AlignedArray<uint8_t>(plan_.halves * half_bytes);
  plan_.weight = weight_.data();
  epilogue_ = std::make_unique<PackedEpilogue>(constants, plan_.halves * kHalf);
  const std::vector<WeightSums> sums = channel_sums(shape, constants.weight);
  for (int64_t channel = 0; channel < channels; ++channel) {
    const Place place = place_of(channel, channels);
    epilogue_->set(constants, channel, sums[static_cast<size_t>(channel)],
                   (place.half * kVectors + place.vector) * kLanes + place.lane);
    for (int64_t kx = 0; kx < kTaps; ++kx) {
      for (int64_t row = 0; row < rows; ++row) {
        uint8_t* vector = weight_.data() + place.half * half_bytes +
                          ((kx * rows + row) * kVectors + place.vector) * kVectorBytes;
        for (int64_t ky = 0; ky < kTaps; ++ky) {
          store_weight(vector, WeightFormat::kQuads, kLanes, place.lane, ky + row,
                       constants.weight[(channel * kTaps + ky) * kTaps + kx]);
        }
      }
    }
  }
  plan_.epilogue = epilogue_->get();
}

// The kernel clamps after it has converted to int32, which every value must fit.
bool all_fit_int32(const Conv2dShape& shape, const Conv2dConstants& constants) {
  constexpr double kSum = kTaps * kTaps * 255 * 128;
  for (int64_t c = 0; c < shape.out_channels; ++c) {
    if (!fits_int32(kSum, double{constants.multiplier[c]}, double{constants.bias[c]})) return false;
  }
  return true;
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_depthwise3x3(const Conv2dShape& shape, const Conv2dConstants& constants) {
  const bool depthwise =
      shape.groups > 1 && shape.groups == shape.in_channels && shape.groups == shape.out_channels;
  const bool window = shape.kernel_height == kTaps && shape.kernel_width == kTaps &&
                      shape.dilation_height == 1 && shape.dilation_width == 1 &&
                      shape.stride_height == shape.stride_width && shape.stride_height <= 2;
  if (!depthwise || !window || constants.float_output || constants.has_residual ||
      active_int8_depthwise3x3_lanes()() != kLanes || !all_fit_int32(shape, constants)) {
    return nullptr;
  }
  return std::make_unique<Depthwise3x3Conv2d>(shape, constants);
}

}  // namespace pqk
