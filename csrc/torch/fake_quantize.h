// Argument checks and memory layout of the fake-quantize ops, shared by their CPU and CUDA bindings.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "core/fake_quantize.h"
#include "torch/check.h"

namespace pqk::torch_ops::fake_quantize_detail {

inline constexpr const char* kOp = "pqk::fake_quantize";
// Codes and zero points up to here, and their sums, are exact in float32.
inline constexpr int64_t kCodeLimit = int64_t{1} << 23;

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline Tensor empty_with_strides(const Tensor& like, Sizes sizes, Sizes strides, ScalarType dtype) {
  AtenTensorHandle handle;
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype_code, device_type, device_index,
                                                         &handle));
  return Tensor(handle);
}

// Uninitialised, in `tensor`'s order of dimensions and without gaps (torch's preserve_format).
inline Tensor empty_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) {
    return empty_with_strides(tensor, tensor.sizes(), tensor.strides(), tensor.scalar_type());
  }
  return torch::stable::empty_like(tensor);
}

// Strides of dimensions of size 1 say nothing about the layout.
inline bool same_strides(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), left = a.strides(), right = b.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && left[i] != right[i]) return false;
  }
  return true;
}

// `tensor` itself if its elements lie in memory as those of `dense`, else a copy in which they do.
inline Tensor laid_out_as(const Tensor& tensor, const Tensor& dense) {
  if (tensor.numel() == 0 || same_strides(tensor, dense)) return tensor;
  Tensor copy = empty_with_strides(dense, dense.sizes(), dense.strides(), tensor.scalar_type());
  return torch::stable::copy_(copy, tensor);
}

// Whether elements fill a piece of memory without gaps or overlaps, in any order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.numel() == 0 || tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  std::vector<std::pair<int64_t, int64_t>> dimensions;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1) dimensions.emplace_back(strides[i], sizes[i]);
  }
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Bytes from the first element of a tensor to behind its last.
inline std::pair<uintptr_t, uintptr_t> memory_of(const Tensor& tensor) {
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return {begin, begin};
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) last += (sizes[i] - 1) * strides[i];
  return {begin, begin + (last + 1) * tensor.element_size()};
}

// `out` may be `input` itself, element for element, but share no memory with it or `other` in any other way.
inline void check_no_overlap(const Tensor& out, const Tensor& other, const char* argument, bool may_be_same) {
  const auto [begin, end] = memory_of(out);
  const auto [other_begin, other_end] = memory_of(other);
  if (end <= other_begin || other_end <= begin) return;
  STD_TORCH_CHECK(may_be_same && begin == other_begin && same_strides(out, other), kOp,
                  ": out must not share memory with ", argument,
                  may_be_same ? ", unless it is that tensor itself" : "");
}

inline std::optional<Tensor> mask_laid_out_as(const std::optional<Tensor>& mask, const Tensor& dense) {
  if (!mask.has_value()) return std::nullopt;
  return laid_out_as(*mask, dense);
}

// One bit an element of `input`, in memory order.
inline Tensor new_bits(const Tensor& input) {
  const int64_t size = (input.numel() + 7) / 8, stride = 1;
  return empty_with_strides(input, Sizes(&size, 1), Sizes(&stride, 1), ScalarType::Byte);
}

inline void check_shape(const Tensor& tensor, const Tensor& input, const char* argument) {
  const auto sizes = tensor.sizes(), expected = input.sizes();
  STD_TORCH_CHECK(sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin()),
                  kOp, ": ", argument, " must have the shape of input, ", shape_string(input), ", got ",
                  shape_string(tensor));
}

inline FloatType float_type(const Tensor& input) {
  const ScalarType type = input.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16, kOp,
                  ": input must be Float, Double or BFloat16, got ", torch::headeronly::toString(type));
  if (type == ScalarType::Double) return FloatType::kFloat64;
  return type == ScalarType::Float ? FloatType::kFloat32 : FloatType::kBFloat16;
}

// Everything about the arguments that can be checked without reading a tensor's elements.
struct Arguments {
  Arguments(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t min, int64_t max,
            std::optional<int64_t> axis, const std::optional<Tensor>& mask)
      : type(float_type(input)), quant_min(min), quant_max(max) {
    const ScalarType parameter_type = type == FloatType::kFloat64 ? ScalarType::Double : ScalarType::Float;
    check_dtype(scale, parameter_type, kOp, "scale");
    channel_view(input, scale, axis, kOp);
    zero_point_is_float = zero_point.scalar_type() == parameter_type;
    STD_TORCH_CHECK(zero_point_is_float || zero_point.scalar_type() == ScalarType::Int, kOp,
                    ": zero_point must be Int or ", torch::headeronly::toString(parameter_type), ", got ",
                    torch::headeronly::toString(zero_point.scalar_type()));
    STD_TORCH_CHECK(zero_point.numel() == scale.numel(), kOp,
                    ": zero_point must have as many elements as scale (", scale.numel(), "), got ",
                    zero_point.numel());
    check_quant_range(quant_min, quant_max, -kCodeLimit, kCodeLimit, kOp);
    if (!mask.has_value()) return;
    check_dtype(*mask, ScalarType::Bool, kOp, "mask");
    check_shape(*mask, input, "mask");
  }

  FloatType type;
  int64_t quant_min;
  int64_t quant_max;
  bool zero_point_is_float = false;
};

inline void check_out(const Tensor& out, const Tensor& input, const std::optional<Tensor>& mask) {
  check_shape(out, input, "out");
  check_dtype(out, input.scalar_type(), kOp, "out");
  check_no_overlap(out, input, "input", true);
  if (mask.has_value()) check_no_overlap(out, *mask, "mask", false);
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input) {
  check_shape(grad_output, input, "grad_output");
  check_dtype(grad_output, input.scalar_type(), kOp, "grad_output");
}

// Uninitialised gradients of scale and, if it is learned, of zero_point (else with no elements).
struct ParameterGradients {
  ParameterGradients(const Arguments& arguments, const Tensor& scale_like, const Tensor& zero_point_like)
      : learns_zero_point(arguments.zero_point_is_float),
        scale(torch::stable::new_empty(scale_like, scale_like.sizes())),
        zero_point(learns_zero_point ? torch::stable::new_empty(zero_point_like, zero_point_like.sizes())
                                     : torch::stable::new_empty(scale_like, {0})) {}
  void* zero_point_data() const { return learns_zero_point ? zero_point.mutable_data_ptr() : nullptr; }

  bool learns_zero_point;
  Tensor scale, zero_point;
};

// The view of a dense tensor in memory order: what follows the channel in memory is as long as its stride.
inline ChannelView memory_view(const Tensor& dense, std::optional<int64_t> axis) {
  const int64_t numel = dense.numel();
  if (!axis.has_value()) return {1, 1, numel};
  const int64_t dimension = *axis < 0 ? *axis + dense.dim() : *axis;
  const int64_t channels = dense.size(dimension);
  if (numel == 0) return {0, channels, 0};
  if (channels == 1) return {1, 1, numel};
  const int64_t inner = dense.stride(dimension);
  return {numel / (channels * inner), channels, inner};
}

// Scale and zero point of every channel as values on the host, checked.
class ChannelParameters {
 public:
  ChannelParameters(const Arguments& arguments, const Tensor& scale, const Tensor& zero_point) {
    const Tensor scales = torch::stable::contiguous(scale), zero_points = torch::stable::contiguous(zero_point);
    arguments.type == FloatType::kFloat64 ? fill<double>(doubles_, arguments, scales, zero_points)
                                          : fill<float>(floats_, arguments, scales, zero_points);
  }

  FakeQuantizeParams params(const Arguments& arguments, const Tensor& dense, std::optional<int64_t> axis,
                            const std::optional<Tensor>& mask) const {
    const bool is_double = arguments.type == FloatType::kFloat64;
    const void* scale = is_double ? static_cast<const void*>(doubles_.data()) : floats_.data();
    const size_t count = is_double ? doubles_.size() / 2 : floats_.size() / 2;
    const void* zero_point =
        is_double ? static_cast<const void*>(doubles_.data() + count) : floats_.data() + count;
    return {arguments.type,
            memory_view(dense, axis),
            scale,
            zero_point,
            static_cast<double>(arguments.quant_min),
            static_cast<double>(arguments.quant_max),
            mask.has_value() ? static_cast<const uint8_t*>(mask->const_data_ptr()) : nullptr};
  }

 private:
  template <class T>
  static void fill(std::vector<T>& values, const Arguments& arguments, const Tensor& scales,
                   const Tensor& zero_points) {
    const int64_t count = scales.numel();
    values.resize(2 * count);
    const T* scale = static_cast<const T*>(scales.const_data_ptr());
    const void* zero_point = zero_points.const_data_ptr();
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(std::isnormal(scale[i]) && scale[i] > 0, kOp,
                      ": scale must be finite, positive and normal, got ", scale[i], " at index ", i);
      values[i] = scale[i];
      const T value = arguments.zero_point_is_float
                          ? std::rint(static_cast<const T*>(zero_point)[i])
                          : static_cast<T>(static_cast<const int32_t*>(zero_point)[i]);
      STD_TORCH_CHECK(std::abs(value) <= static_cast<T>(kCodeLimit), kOp, ": zero_point must be within +-",
                      kCodeLimit, ", got ", value, " at index ", i);
      values[count + i] = value;
    }
  }

  std::vector<float> floats_;
  std::vector<double> doubles_;
};

inline void check_straight_through(const Tensor& grad_output, const Tensor& in_range,
                                   const Tensor& grad_input) {
  float_type(grad_output);
  check_dtype(in_range, ScalarType::Byte, kOp, "in_range");
  STD_TORCH_CHECK(in_range.is_contiguous() && in_range.numel() == (grad_output.numel() + 7) / 8, kOp,
                  ": in_range must be contiguous with one bit an element of grad_output, ",
                  (grad_output.numel() + 7) / 8, " bytes, got ", in_range.numel());
  STD_TORCH_CHECK(same_strides(grad_output, grad_input), kOp,
                  ": grad_output must be laid out in memory as the forward output, without gaps");
}

}  // namespace pqk::torch_ops::fake_quantize_detail
