// Products of float32 rows with a weight that stays coded, its codes standing for entries of a codebook: y = x
// W^T + b, W[o, i] = codebook[code[o, i] + zero]. HAM and sHAM of Marino et al. 2020 with their product.
//
// Sums are float32, in an order of the kernel's own and with fused multiply-adds where the CPU has them. They
// do not depend on threads. Products with weights of 0 may be left out.
#pragma once

#include <array>
#include <memory>

#include "core/codec.h"
#include "core/coded_linear.h"
#include "core/int8_packing.h"

namespace pqk {

class TokenSource;

struct FloatLinearRows {
  const float* input;  // [count][row size], dense
  float* output;       // [count][weight rows], dense
  int64_t count;
};

class CodebookLinear {
 public:
  // `bias` is null or one for each row of the weight, and must outlive this.
  CodebookLinear(std::shared_ptr<const CodedWeight> weight, WeightShape shape, const float* codebook,
                 int64_t codebook_size, int64_t zero, const float* bias);
  // The outputs come in panels that can be computed apart.
  int64_t panels() const { return (shape_.rows + panel_rows_ - 1) / panel_rows_; }
  // Memory, 64-byte aligned, that a run for so many rows of x needs to work in.
  int64_t scratch_bytes(int64_t count) const;
  // Throws FormatError for a payload that is not whole, and E_VALUE_RANGE for a code outside of the codebook.
  void run(const FloatLinearRows& rows, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) const;

 private:
  struct Work;

  Work arrange(uint8_t* scratch, int64_t count) const;
  void check_codes(const int8_t* codes, int64_t count) const;
  void run_tokens(const FloatLinearRows& rows, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) const;

  std::shared_ptr<const CodedWeight> weight_;
  WeightShape shape_;
  AlignedArray<float> table_;  // by code + 128
  int least_, largest_;        // codes
  const float* bias_;
  int64_t panel_rows_, pitch_;
  const TokenSource* tokens_;  // of the weight, where zeros are 0.0
};

}  // namespace pqk
