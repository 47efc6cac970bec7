#include "core/float_sparse.h"

#include <algorithm>
#include <stdexcept>

namespace pqk {
namespace {

constexpr int64_t kLanes = 16;  // of the widest vectors, for estimates
constexpr int64_t kMostImages = 16;
// Of one non-zero weight and a vector of positions against a vector of multiply-adds of the dense kernel: the
// load of the positions crosses cache lines.
constexpr double kEntryCost = 2.0;

int64_t vectors(int64_t count) { return (count + kLanes - 1) / kLanes; }

class FloatSparseConv2d final : public PackedFloatConv2d {
 public:
  FloatSparseConv2d(const Conv2dShape& shape, const FloatConv2dConstants& constants)
      : epilogue_(constants, shape.out_channels), kernel_(active_float_sparse_kernel()) {
    plan_.shape = shape;
    plan_.layout = sparse_layout(SparseType::kFloat, shape, kMostImages);
    const int64_t fan_in = shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
    rows_.push_back(0);
    for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
      for (int64_t i = 0; i < fan_in; ++i) {
        const float weight = constants.codebook[constants.weight[channel * fan_in + i]];
        if (weight != 0) entries_.push_back({plan_.layout.offset[static_cast<size_t>(i)], weight});
      }
      rows_.push_back(static_cast<int32_t>(entries_.size()));
    }
    plan_.layout.offset.clear();
    plan_.rows = rows_.data();
    plan_.entries = entries_.data();
    plan_.epilogue = epilogue_.get();
    const int64_t weights = shape.out_channels * fan_in;
    share_ = static_cast<double>(entries_.size()) / static_cast<double>(std::max<int64_t>(1, weights));
  }

  void run(const FloatConvImages& images, int64_t row_begin, int64_t row_end, int64_t, int64_t) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "float_sparse"; }
  double share() const override { return share_; }
  int64_t scratch_bytes() const override { return plan_.layout.cells * static_cast<int64_t>(sizeof(float)); }

 private:
  FloatSparsePlan plan_;
  PackedFloatEpilogue epilogue_;
  std::vector<int32_t> rows_;
  std::vector<FloatSparseEntry> entries_;
  double share_;
  FloatSparseKernel* kernel_;
};

}  // namespace

// Both counted in vectors of multiply-adds; for the images of the layer that are computed together.
bool float_sparse_wins(const Conv2dShape& s, const FloatConv2dConstants& constants) {
  const int64_t fan_in = s.in_channels / s.groups * s.kernel_height * s.kernel_width;
  const int64_t weights = s.out_channels * fan_in;
  int64_t nonzeros = 0;
  for (int64_t i = 0; i < weights; ++i) nonzeros += constants.codebook[constants.weight[i]] != 0;
  const int64_t pixels = s.out_height * s.out_width;
  const int64_t columns = s.out_width + (s.kernel_width - 1) * s.dilation_width / s.stride_width;
  const double dense = static_cast<double>(s.groups * vectors(s.out_channels / s.groups) * fan_in * pixels);
  const double sparse = kEntryCost * static_cast<double>(nonzeros * vectors(s.out_height * columns));
  // The planar copy, and the results back in NHWC order.
  const double moves = static_cast<double>((s.in_channels + s.out_channels) * pixels) / 4;
  return sparse + moves < dense;
}

std::unique_ptr<PackedFloatConv2d> pack_float_sparse(const Conv2dShape& shape,
                                                     const FloatConv2dConstants& constants) {
  const int64_t weights =
      shape.out_channels * (shape.in_channels / shape.groups) * shape.kernel_height * shape.kernel_width;
  if (weights > INT32_MAX) return nullptr;
  try {
    return std::make_unique<FloatSparseConv2d>(shape, constants);
  } catch (const std::length_error&) {
    return nullptr;  // an image too large for 32-bit offsets
  }
}

}  // namespace pqk
