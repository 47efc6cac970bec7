// Argument checks and tensor access shared by all ops of this library. Everything here uses torch's stable ABI,
// so that one binary serves every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "core/quantize.h"

namespace pqk::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Torch's own intra-op pool, which torch.set_num_threads governs.
class TorchParallel final : public Parallel {
 public:
  void run(int64_t count, int64_t grain, Range range, void* context) const override {
    torch::stable::parallel_for(0, count, grain,
                                [=](int64_t begin, int64_t end) { range(context, begin, end); });
  }
  int num_threads() const override { return static_cast<int>(torch::stable::get_num_threads()); }
};

inline std::string shape_string(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + "]";
}

inline void check_dtype(const Tensor& tensor, ScalarType expected, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", argument, " must be ",
                  torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_cpu(const Tensor& tensor, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", argument, " must be on the CPU");
}

// How `channel_params` (scale, zero_point) lie over `input`: one entry is per tensor; otherwise there is one
// for each index of dimension `axis`.
inline ChannelView channel_view(const Tensor& input, const Tensor& scale, std::optional<int64_t> axis,
                                const char* op) {
  if (!axis.has_value()) {
    STD_TORCH_CHECK(scale.numel() == 1, op, ": without axis, scale must have 1 element, got ", scale.numel());
    return {1, 1, input.numel()};
  }
  const int64_t dim = input.dim();
  STD_TORCH_CHECK(*axis >= -dim && *axis < dim, op, ": axis must be in [", -dim, ", ", dim - 1,
                  "] for input of shape ", shape_string(input), ", got ", *axis);
  const int64_t channel_axis = *axis < 0 ? *axis + dim : *axis;
  STD_TORCH_CHECK(scale.dim() == 1 && scale.size(0) == input.size(channel_axis), op,
                  ": scale must have shape [", input.size(channel_axis), "] for axis ", *axis,
                  " of input of shape ", shape_string(input), ", got ", shape_string(scale));
  ChannelView view{1, input.size(channel_axis), 1};
  for (int64_t i = 0; i < channel_axis; ++i) view.outer *= input.size(i);
  for (int64_t i = channel_axis + 1; i < dim; ++i) view.inner *= input.size(i);
  return view;
}

// Of a linear layer: that of `input` with `features` for its last size.
struct LinearOutput {
  LinearOutput(const Tensor& input, int64_t features) {
    for (int64_t i = 0; i + 1 < input.dim(); ++i) {
      shape.push_back(input.size(i));
      rows *= input.size(i);
    }
    shape.push_back(features);
  }

  std::vector<int64_t> shape;
  int64_t rows = 1;
};

inline void check_scale(const Tensor& scale, const char* op) {
  check_dtype(scale, ScalarType::Float, op, "scale");
  const float* values = scale.const_data_ptr<float>();
  for (int64_t i = 0; i < scale.numel(); ++i) {
    STD_TORCH_CHECK(std::isnormal(values[i]) && values[i] > 0.0f, op,
                    ": scale must be finite, positive and normal, got ", values[i], " at index ", i);
  }
}

inline void check_quant_range(int64_t quant_min, int64_t quant_max, int64_t low, int64_t high, const char* op) {
  STD_TORCH_CHECK(low <= quant_min && quant_min <= quant_max && quant_max <= high, op, ": expected ", low,
                  " <= quant_min <= quant_max <= ", high, ", got quant_min ", quant_min, " and quant_max ",
                  quant_max);
}

}  // namespace pqk::torch_ops
