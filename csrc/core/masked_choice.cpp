#include <algorithm>

#include "core/masked_conv2d.h"

namespace pqk {
namespace {

constexpr int64_t kLeastImages = 16;

int64_t lanes(int64_t images) { return (images + kImageLanes - 1) / kImageLanes; }

}  // namespace

// Cycles of one core, from measurements.
bool masked_conv2d_wins(MaskedStep step, const Conv2dShape& s, int64_t images, int64_t kept,
                        bool channels_last) {
  if (images < kLeastImages) return false;
  const double weights = static_cast<double>(s.out_channels * s.in_channels * s.kernel_height * s.kernel_width);
  const double outputs = static_cast<double>(lanes(images) * s.out_height * s.out_width);
  const double inputs = static_cast<double>(lanes(images) * s.in_height * s.in_width);
  const double moved = inputs * static_cast<double>(s.in_channels) + outputs * static_cast<double>(s.out_channels);
  const double per_entry = step == MaskedStep::kGradWeight ? 4.5 : 4.0;
  const double sparse = per_entry * static_cast<double>(kept) * outputs + (channels_last ? 20.0 : 40.0) * moved;
  const double dense = 1.2 * weights * outputs;
  return sparse < dense;
}

}  // namespace pqk
