// A convolution whose weight stays coded: some output channels are decoded and packed into memory that stays in
// a core's cache, computed by the direct kernel, and forgotten.
#pragma once

#include <memory>

#include "core/coded_linear.h"
#include "core/int8_direct_packing.h"

namespace pqk {

class CodedConv2d final : public PackedConv2d {
 public:
  // One group. constants.weight is the decoded weight, used here only.
  CodedConv2d(std::shared_ptr<const CodedWeight> weight, const Conv2dShape& shape,
              const Conv2dConstants& constants);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    run_panels(images, row_begin, row_end, 0, panels());
  }
  int64_t panels() const override { return (plan_.group_out + panel_rows_ - 1) / panel_rows_; }
  void run_panels(const Int8ConvImages& images, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                  int64_t panel_end) const override;
  const char* kernel_name() const override { return "coded"; }
  int64_t scratch_bytes() const override;

 private:
  int64_t tile_channels() const { return plan_.panel * kOutTile; }  // that are decoded together
  int64_t fan_in() const { return weight_shape_.row_size(); }

  std::shared_ptr<const CodedWeight> weight_;
  WeightShape weight_shape_;
  Int8DirectPlan plan_;
  Int8DirectKernel* kernel_;
  Int8DirectPacking packing_;
  PackedEpilogue epilogue_;
  int64_t panel_rows_;
};

}  // namespace pqk
