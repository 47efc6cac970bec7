#include "core/masked_conv2d.h"

namespace pqk {
namespace {

constexpr int64_t kLeastImages = 16;  // as many as a vector has lanes

// Cycles of one core, fitted to measurements (benchmarks/training/bench_sparse_training.py).
constexpr double kSum = 2.1, kGradientSum = 3.4;  // one kept weight and 16 images at one output
constexpr double kMove = 35, kMovePlanar = 50;    // 16 images' values of one pixel and channel, once in or out
constexpr double kIndex = 50, kGradientIndex = 90;  // to find a kept weight; also to reduce its gradient
constexpr double kDenseSum = 1.05, kDenseMove = 20, kDenseWeight = 2;
constexpr double kMargin = 1.1;  // in doubt dense

}  // namespace

bool masked_conv2d_wins(MaskedStep step, const Conv2dShape& s, int64_t images, int64_t kept,
                        bool channels_last) {
  if (images < kLeastImages) return false;
  // Of contiguous images with a stride each column would move by itself.
  if (!channels_last && s.stride_width > 1) return false;
  const int64_t blocks = (images + kImageLanes - 1) / kImageLanes;
  const double outputs = static_cast<double>(blocks * s.out_height * s.out_width);
  const double inputs = static_cast<double>(blocks * s.in_height * s.in_width);
  const double moved =
      inputs * static_cast<double>(s.in_channels) + outputs * static_cast<double>(s.out_channels);
  const double weights = static_cast<double>(s.out_channels * s.in_channels * s.kernel_height * s.kernel_width);
  const bool is_gradient = step == MaskedStep::kGradWeight;
  const double per_kept =
      (is_gradient ? kGradientSum : kSum) * outputs + (is_gradient ? kGradientIndex : kIndex);
  const double sparse = static_cast<double>(kept) * per_kept + (channels_last ? kMove : kMovePlanar) * moved;
  const double dense = weights * (kDenseSum * outputs + kDenseWeight) + kDenseMove * moved;
  return kMargin * sparse < dense;
}

}  // namespace pqk
