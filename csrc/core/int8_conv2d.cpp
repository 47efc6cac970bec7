#include "core/int8_conv2d.h"

#include <cmath>
#include <cstdlib>

#include "core/int8_packing.h"

namespace pqk {

namespace {

constexpr double kSurelyInt32 = 1 << 30;  // below it float32 rounding cannot lead out of the range of int32

// Of a channel's values before they are rounded.
double largest_value(const Conv2dConstants& constants, int64_t channel, const WeightSums& sums) {
  return 255.0 * static_cast<double>(sums.magnitude) * std::abs(constants.multiplier[channel]) +
         std::abs(constants.bias[channel]) +
         (constants.has_residual ? 255.0 * std::abs(constants.residual_multiplier) : 0.0);
}

}  // namespace

PackedEpilogue::PackedEpilogue(const Conv2dConstants& constants, int64_t slots)
    : compensation_(slots), multiplier_(slots), bias_(slots) {
  epilogue_ = {compensation_.data(),
               multiplier_.data(),
               bias_.data(),
               constants.quant_min,
               constants.quant_max,
               constants.float_output,
               constants.has_residual,
               constants.residual_multiplier,
               constants.residual_zero_point,
               constants.quant_max != 255};
}

void PackedEpilogue::set(const Conv2dConstants& constants, int64_t channel, const WeightSums& sums,
                         int64_t slot) {
  compensation_.data()[slot] = static_cast<int32_t>(-constants.input_zero_point * sums.sum);
  multiplier_.data()[slot] = constants.multiplier[channel];
  bias_.data()[slot] = constants.bias[channel];
  if (!(largest_value(constants, channel, sums) < kSurelyInt32)) epilogue_.clamps_high = true;
}

std::vector<WeightSums> channel_sums(const Conv2dShape& shape, const int8_t* weight) {
  const int64_t fan_in = shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
  std::vector<WeightSums> sums;
  sums.reserve(static_cast<size_t>(shape.out_channels));
  WeightSumsKernel* const weight_sums = active_weight_sums();
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    sums.push_back(weight_sums(weight + channel * fan_in, fan_in));
  }
  return sums;
}

bool values_fit_int32(const Conv2dConstants& constants, const std::vector<WeightSums>& sums) {
  for (size_t channel = 0; channel < sums.size(); ++channel) {
    if (!(largest_value(constants, static_cast<int64_t>(channel), sums[channel]) < kSurelyInt32)) return false;
  }
  return true;
}

std::vector<int8_t> taps_to_channels(const int8_t* weight, Conv2dShape& shape) {
  const int64_t rows = shape.kernel_height, taps = shape.kernel_width;
  if (shape.in_channels != 1 || shape.dilation_width != 1 || taps == 1) return {};
  std::vector<int8_t> reordered(static_cast<size_t>(shape.out_channels * rows * taps));
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < taps; ++x) {
        reordered[static_cast<size_t>((o * taps + x) * rows + y)] = weight[(o * rows + y) * taps + x];
      }
    }
  }
  shape.in_channels = taps;
  shape.kernel_width = 1;
  return reordered;
}

const std::vector<Conv2dKernel>& conv2d_kernels() {
  static const std::vector<Conv2dKernel> kernels{{"depthwise3x3", pack_depthwise3x3},
                                                 {"depthwise", pack_depthwise},
                                                 {"direct", pack_direct},
                                                 {"gather", pack_gather},
                                                 {"blocks", pack_blocks}};
  return kernels;
}

std::unique_ptr<PackedConv2d> pack_conv2d(const Conv2dShape& shape, const Conv2dConstants& constants) {
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    if (std::unique_ptr<PackedConv2d> packed = kernel.pack(shape, constants)) return packed;
  }
  return nullptr;  // not reached: the direct kernel takes every layer
}

}  // namespace pqk
