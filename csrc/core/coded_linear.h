// Products with a weight that stays coded: y = x W^T for a few rows of x at a time. Every thread decodes some
// rows of W into memory that stays in a core's cache, multiplies them with all rows of x, and forgets them. No
// packing: weights are used in the order of the file, and the sums of a dot product are added up at its end.
#pragma once

#include <cstdint>
#include <memory>

#include "core/codec.h"
#include "core/int8_conv2d.h"
#include "core/int8_packing.h"

namespace pqk {

class TokenSource;

// Reads rows from the first one of a chunk on, through the chunks that follow.
class CodedRows {
 public:
  CodedRows(const CodedWeight& weight, WeightShape shape, int64_t first_row)
      : weight_(weight), shape_(shape), next_row_(first_row) {}
  // No more than the weight has left.
  void next(int64_t rows, int8_t* output);

 private:
  const CodedWeight& weight_;
  WeightShape shape_;
  int64_t next_row_, left_in_chunk_ = 0;
  std::unique_ptr<RowCursor> cursor_;
};

// Fewest whole chunks that have `rows` rows: what threads may share out.
int64_t coded_panel_rows(const CodedWeight& weight, WeightShape shape, int64_t rows);

// Rows of codes x and what becomes of their products. A row is an image whose pixels hold `channels` codes; W's
// columns are in the order channels, rows, columns of it.
struct Int8LinearRows {
  Int8Image input;
  int64_t channels, height, width;
  int64_t input_step;                 // bytes from a row of x to the next
  const uint8_t* residual = nullptr;  // null without one
  int64_t residual_step = 0;
  uint8_t* output = nullptr;  // of codes
  int64_t output_step = 0;
  float* float_output = nullptr;  // of a float32 layer
  int64_t float_step = 0;
  int64_t count = 1;
};

// Equal bits to every kernel of conv2d_kernels(), on any instruction set. Immutable, safe to share by threads.
class CodedLinear {
 public:
  // constants.weight is not used.
  CodedLinear(std::shared_ptr<const CodedWeight> weight, WeightShape shape, const Conv2dConstants& constants);
  // The outputs come in panels that can be computed apart.
  int64_t panels() const { return (shape_.rows + panel_rows_ - 1) / panel_rows_; }
  // Memory, 64-byte aligned, that a run for so many rows of x needs to work in.
  int64_t scratch_bytes(int64_t count) const;
  void run(const Int8LinearRows& rows, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) const;

 private:
  struct Work;

  Work arrange(uint8_t* scratch, int64_t count) const;
  void load_inputs(const Int8LinearRows& rows, const Work& work) const;
  void run_tokens(const Int8LinearRows& rows, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) const;

  std::shared_ptr<const CodedWeight> weight_;
  WeightShape shape_;
  AlignedArray<float> multiplier_, bias_;
  Int8Epilogue epilogue_;
  int32_t input_zero_point_;
  int64_t panel_rows_, rows_at_once_, pitch_;
  const TokenSource* tokens_;  // of the weight, or null
};

}  // namespace pqk
