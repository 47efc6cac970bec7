#include "core/codebook_linear.h"

#include <algorithm>
#include <cstring>

#include "core/codebook_linear_plan.h"
#include "core/coded_tokens.h"

namespace pqk {
namespace {

constexpr int64_t kPanelRows = 16;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

CodebookLinear::CodebookLinear(std::shared_ptr<const CodedWeight> weight, WeightShape shape,
                               const float* codebook, int64_t codebook_size, int64_t zero, const float* bias)
    : weight_(std::move(weight)),
      shape_(shape),
      table_(256),
      least_(static_cast<int>(std::max<int64_t>(-128, -zero))),
      largest_(static_cast<int>(std::min<int64_t>(127, codebook_size - 1 - zero))),
      bias_(bias),
      panel_rows_(coded_panel_rows(*weight_, shape, kPanelRows)),
      pitch_(round_up(shape.row_size(), kFloatDotStep)),
      tokens_(codebook[zero] == 0.0f ? dynamic_cast<const TokenSource*>(weight_.get()) : nullptr) {
  for (int code = least_; code <= largest_; ++code) table_.data()[code + 128] = codebook[code + zero];
}

// What a run keeps in its scratch memory.
struct CodebookLinear::Work {
  float *input, *weight, *sums;
  int8_t* codes;
  int64_t bytes;
};

CodebookLinear::Work CodebookLinear::arrange(uint8_t* scratch, int64_t count) const {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t input_bytes = count * pitch_ * kFloat, weight_bytes = kFloatDotRows * pitch_ * kFloat;
  const int64_t sum_bytes = round_up(count * kFloatDotRows * kFloat, 64);
  Work work{};
  work.input = reinterpret_cast<float*>(scratch);
  work.weight = reinterpret_cast<float*>(scratch + input_bytes);
  work.sums = reinterpret_cast<float*>(scratch + input_bytes + weight_bytes);
  work.codes = reinterpret_cast<int8_t*>(scratch + input_bytes + weight_bytes + sum_bytes);
  work.bytes = input_bytes + weight_bytes + sum_bytes + kFloatDotRows * shape_.row_size() + kFloatDotStep;
  return work;
}

int64_t CodebookLinear::scratch_bytes(int64_t count) const {
  const int64_t tokens = tokens_ == nullptr ? 0
                                            : (weight_->rows_per_chunk() + shape_.row_size() + kTokenSlack) *
                                                  static_cast<int64_t>(sizeof(float));
  return std::max(arrange(nullptr, count).bytes, tokens);
}

// One row of x.
void CodebookLinear::run_tokens(const FloatLinearRows& rows, int64_t panel_begin, int64_t panel_end,
                                uint8_t* scratch) const {
  FloatTokensKernel* const add = active_float_tokens();
  const int64_t in_chunk = weight_->rows_per_chunk(), last = std::min(panel_end * panel_rows_, shape_.rows);
  const int64_t row_size = shape_.row_size();
  float* const input = reinterpret_cast<float*>(scratch);
  float* const sums = input + row_size + kTokenSlack;
  std::copy_n(rows.input, row_size, input);
  std::fill_n(input + row_size, kTokenSlack, 0.0f);
  for (int64_t first = panel_begin * panel_rows_; first < last; first += in_chunk) {
    const int64_t in_this = std::min(in_chunk, last - first);
    std::fill_n(sums, in_this, 0.0f);
    FloatTokenProducts products{input, row_size, in_this, sums};
    for_each_token(*tokens_, first / in_chunk, [&](const WeightTokens& tokens) {
      check_codes(reinterpret_cast<const int8_t*>(tokens.values), tokens.count);
      return add(tokens, table_.data(), products);
    });
    products.finish();
    for (int64_t row = 0; row < in_this; ++row) {
      rows.output[first + row] = sums[row] + (bias_ != nullptr ? bias_[first + row] : 0.0f);
    }
  }
}

void CodebookLinear::check_codes(const int8_t* codes, int64_t count) const {
  if (active_codes_in_range()({codes, count, least_, largest_})) return;
  throw FormatError("E_VALUE_RANGE", "payload", -1,
                    "codes from " + std::to_string(least_) + " to " + std::to_string(largest_), "another");
}

void CodebookLinear::run(const FloatLinearRows& rows, int64_t panel_begin, int64_t panel_end,
                         uint8_t* scratch) const {
  if (rows.count == 1 && tokens_ != nullptr) return run_tokens(rows, panel_begin, panel_end, scratch);
  FloatDotsKernel* const dots = active_codebook_dots();
  const Work work = arrange(scratch, rows.count);
  const int64_t row_size = shape_.row_size();
  for (int64_t i = 0; i < rows.count; ++i) {
    float* const to = work.input + i * pitch_;
    std::copy_n(rows.input + i * row_size, row_size, to);
    std::fill(to + row_size, to + pitch_, 0.0f);
    active_codebook_order()({least_, largest_, to, pitch_});
  }
  std::memset(work.codes, 0, static_cast<size_t>(kFloatDotRows * row_size + kFloatDotStep));
  const int64_t first = panel_begin * panel_rows_, last = std::min(panel_end * panel_rows_, shape_.rows);
  CodedRows weight(*weight_, shape_, first);
  for (int64_t row = first; row < last; row += kFloatDotRows) {
    const int64_t decoded = std::min(kFloatDotRows, last - row);
    weight.next(decoded, work.codes);
    check_codes(work.codes, decoded * row_size);
    dots({work.input, pitch_, rows.count, work.codes, row_size, decoded, table_.data(), least_, largest_,
          work.weight, work.sums});
    for (int64_t i = 0; i < rows.count; ++i) {
      float* const to = rows.output + i * shape_.rows + row;
      for (int64_t j = 0; j < decoded; ++j) {
        to[j] = work.sums[i * kFloatDotRows + j] + (bias_ != nullptr ? bias_[row + j] : 0.0f);
      }
    }
  }
}

}  // namespace pqk
