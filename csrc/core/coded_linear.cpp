#include "core/coded_linear.h"

#include <algorithm>
#include <cstring>

#include "core/coded_linear_plan.h"
#include "core/coded_tokens.h"

namespace pqk {
namespace {

constexpr int64_t kDecodedBytes = 16 << 10;  // of weights at once: half of a first-level cache

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The codes of one row of x in the order of W's columns.
void load_row(const Int8LinearRows& rows, const uint8_t* data, uint8_t* to) {
  const int64_t pixels = rows.height * rows.width;
  if (pixels == 1) {
    std::memcpy(to, data, static_cast<size_t>(rows.channels));
    return;
  }
  for (int64_t y = 0; y < rows.height; ++y) {
    for (int64_t x = 0; x < rows.width; ++x, ++to) {
      const uint8_t* pixel = data + y * rows.input.row_stride + x * rows.input.pixel_stride;
      for (int64_t c = 0; c < rows.channels; ++c) to[c * pixels] = pixel[c];
    }
  }
}

}  // namespace

void CodedRows::next(int64_t rows, int8_t* output) {
  while (rows > 0) {
    if (left_in_chunk_ == 0) {
      const int64_t in_chunk = weight_.rows_per_chunk();
      cursor_ = weight_.open(next_row_ / in_chunk);
      left_in_chunk_ = std::min(in_chunk, shape_.rows - next_row_);
    }
    const int64_t now = std::min(rows, left_in_chunk_);
    cursor_->next(now, output);
    output += now * shape_.row_size();
    rows -= now;
    next_row_ += now;
    left_in_chunk_ -= now;
  }
}

int64_t coded_panel_rows(const CodedWeight& weight, WeightShape shape, int64_t rows) {
  return round_up(std::max<int64_t>(1, std::min(rows, shape.rows)), weight.rows_per_chunk());
}

CodedLinear::CodedLinear(std::shared_ptr<const CodedWeight> weight, WeightShape shape,
                         const Conv2dConstants& constants)
    : weight_(std::move(weight)),
      shape_(shape),
      multiplier_(shape.rows + kOutTile),
      bias_(shape.rows + kOutTile),
      epilogue_{nullptr,
                multiplier_.data(),
                bias_.data(),
                constants.quant_min,
                constants.quant_max,
                constants.float_output,
                constants.has_residual,
                constants.residual_multiplier,
                constants.residual_zero_point,
                true},  // clamping where it is not needed changes nothing
      input_zero_point_(constants.input_zero_point),
      panel_rows_(coded_panel_rows(*weight_, shape, kOutTile)),
      rows_at_once_(std::clamp<int64_t>(
          kDecodedBytes / std::max<int64_t>(1, shape.row_size()) / kDotRows * kDotRows, kDotRows, kOutTile)),
      pitch_(round_up(shape.row_size(), kDotBytes)),
      tokens_(dynamic_cast<const TokenSource*>(weight_.get())) {
  std::copy_n(constants.multiplier, shape.rows, multiplier_.data());
  std::copy_n(constants.bias, shape.rows, bias_.data());
}

// What a run keeps in its scratch memory.
struct CodedLinear::Work {
  int64_t inputs;  // rows of x, and a row of ones where the sums of the weights are asked for
  uint8_t* input;
  int8_t* weight;
  int32_t* sums;
  int64_t bytes;
};

CodedLinear::Work CodedLinear::arrange(uint8_t* scratch, int64_t count) const {
  Work work{};
  work.inputs = count + (input_zero_point_ != 0);
  const int64_t input_bytes = work.inputs * pitch_;
  const int64_t weight_bytes = round_up(rows_at_once_ * shape_.row_size() + kDotBytes, kDotBytes);
  work.input = scratch;
  work.weight = reinterpret_cast<int8_t*>(scratch + input_bytes);
  work.sums = reinterpret_cast<int32_t*>(scratch + input_bytes + weight_bytes);
  work.bytes = input_bytes + weight_bytes + work.inputs * kOutTile * static_cast<int64_t>(sizeof(int32_t));
  return work;
}

int64_t CodedLinear::scratch_bytes(int64_t count) const {
  const int64_t tokens =
      tokens_ != nullptr ? (2 * (2 * pitch_ + kTokenSlack) + 4 * (weight_->rows_per_chunk() + kOutTile)) : 0;
  return std::max(arrange(nullptr, count).bytes, tokens);
}

// One row of x, with the zero point subtracted. Behind it and its zeros, the row as it was.
void CodedLinear::run_tokens(const Int8LinearRows& rows, int64_t panel_begin, int64_t panel_end,
                             uint8_t* scratch) const {
  Int8TokensKernel* const add = active_int8_tokens();
  Int8LinearTileKernel* const tile = active_int8_linear_tile();
  const int64_t row_size = shape_.row_size(), in_chunk = weight_->rows_per_chunk();
  int16_t* const input = reinterpret_cast<int16_t*>(scratch);
  uint8_t* const codes = reinterpret_cast<uint8_t*>(input + pitch_ + kTokenSlack);
  int32_t* const sums = reinterpret_cast<int32_t*>(input + 2 * pitch_ + kTokenSlack);
  load_row(rows, rows.input.data, codes);
  for (int64_t i = 0; i < row_size; ++i) input[i] = static_cast<int16_t>(codes[i] - input_zero_point_);
  std::fill_n(input + row_size, kTokenSlack, int16_t{0});
  const int64_t last = std::min(panel_end * panel_rows_, shape_.rows);
  for (int64_t first = panel_begin * panel_rows_; first < last; first += in_chunk) {
    const int64_t in_this = std::min(in_chunk, last - first);
    std::fill_n(sums, in_this + kOutTile, 0);
    Int8TokenProducts products{input, row_size, in_this, sums};
    for_each_token(*tokens_, first / in_chunk,
                   [&](const WeightTokens& tokens) { return add(tokens, products); });
    products.finish();
    for (int64_t row = 0; row < in_this; row += kOutTile) {
      tile(epilogue_, rows, {sums + row, 0, first + row, std::min(kOutTile, in_this - row)});
    }
  }
}

void CodedLinear::load_inputs(const Int8LinearRows& rows, const Work& work) const {
  const size_t size = static_cast<size_t>(shape_.row_size()), rest = static_cast<size_t>(pitch_) - size;
  for (int64_t i = 0; i < work.inputs; ++i) {
    uint8_t* to = work.input + i * pitch_;
    i < rows.count ? load_row(rows, rows.input.data + i * rows.input_step, to)
                   : static_cast<void>(std::memset(to, 1, size));
    std::memset(to + size, 0, rest);
  }
}

void CodedLinear::run(const Int8LinearRows& rows, int64_t panel_begin, int64_t panel_end,
                      uint8_t* scratch) const {
  if (rows.count == 1 && tokens_ != nullptr) return run_tokens(rows, panel_begin, panel_end, scratch);
  Int8DotsKernel* const dots = active_int8_dots();
  Int8LinearTileKernel* const tile = active_int8_linear_tile();
  const Work work = arrange(scratch, rows.count);
  load_inputs(rows, work);
  const int64_t last = std::min(panel_end * panel_rows_, shape_.rows), row_size = shape_.row_size();
  CodedRows weight(*weight_, shape_, panel_begin * panel_rows_);
  for (int64_t channel = panel_begin * panel_rows_; channel < last; channel += kOutTile) {
    const int64_t channels = std::min(kOutTile, last - channel);
    for (int64_t first = 0; first < channels; first += rows_at_once_) {
      const int64_t decoded = std::min(rows_at_once_, channels - first);
      weight.next(decoded, work.weight);
      for (int64_t row = 0; row < decoded; row += kDotRows) {
        dots({work.input, pitch_, work.inputs, work.weight + row * row_size, row_size,
              std::min(kDotRows, decoded - row), work.sums + first + row});
      }
    }
    tile(epilogue_, rows, {work.sums, input_zero_point_, channel, channels});
  }
}

}  // namespace pqk
