// What masked_linear and masked_conv2d share: the mask's checks, the masked weight for torch's dense kernels,
// and what the kernels of kept weights (core/masked_conv2d.h) want to know.
#pragma once

#include <stdexcept>

#include "core/masked_conv2d.h"
#include "core/masked_weight.h"
#include "torch/check.h"

namespace pqk::torch_ops {

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) > 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

// All but the device.
inline void check_mask_fits(const Tensor& weight, const Tensor& mask, const char* op) {
  check_dtype(mask, ScalarType::Bool, op, "mask");
  const ScalarType dtype = weight.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
                  op, ": weight must be Float, Double or BFloat16, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(shape_string(weight) == shape_string(mask), op, ": mask must have weight's shape ",
                  shape_string(weight), ", got ", shape_string(mask));
}

inline void check_mask(const Tensor& weight, const Tensor& mask, const char* op) {
  check_cpu(weight, op, "weight");
  check_cpu(mask, op, "mask");
  check_mask_fits(weight, mask, op);
}

// Tensors of a masking step in one layout; strides are kept where weight and mask share a dense one.
struct Masking {
  Masking(const Tensor& weight, const Tensor& mask)
      : weights(weight), masks(mask), output(torch::stable::empty_like(weight)) {
    if (same_strides(weight, mask) && same_strides(weight, output)) return;
    weights = torch::stable::contiguous(weight);
    masks = torch::stable::contiguous(mask);
    output = torch::stable::new_empty(weights, weights.sizes());
  }
  MaskParams params() const {
    return {weights.const_data_ptr(), static_cast<const uint8_t*>(masks.const_data_ptr()),
            output.mutable_data_ptr(), weights.numel(), static_cast<int64_t>(weights.element_size())};
  }

  Tensor weights, masks, output;
};

// The weight with exact zeros where the mask is false.
inline Tensor masked_weight(const Tensor& weight, const Tensor& mask) {
  const Masking masking(weight, mask);
  mask_weight(masking.params(), TorchParallel());
  return masking.output;
}

enum class KernelChoice { kAuto, kDense, kSparse };

inline KernelChoice check_kernel(const std::string& kernel, const char* op) {
  if (kernel == "auto") return KernelChoice::kAuto;
  if (kernel == "dense") return KernelChoice::kDense;
  STD_TORCH_CHECK(kernel == "sparse", op, ": kernel must be auto, dense or sparse, got ", kernel);
  return KernelChoice::kSparse;
}

inline bool is_float(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float;
}

inline bool fits_bias(const std::optional<Tensor>& bias, int64_t channels) {
  return !bias.has_value() || (is_float(*bias) && bias->dim() == 1 && bias->size(0) == channels);
}

// As torch decides whether a tensor of 4 dimensions is to be treated as channels_last.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int axis : {1, 3, 2, 0}) {
    if (tensor.size(axis) == 0 || tensor.stride(axis) < least) return false;
    if (axis == 0 && least == tensor.stride(1)) return false;
    least = tensor.stride(axis) * std::max<int64_t>(tensor.size(axis), 1);
  }
  return true;
}

inline torch::headeronly::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                       : torch::headeronly::MemoryFormat::Contiguous;
}

// A weight whose rows kernels can read, with its mask; both in one layout.
struct WeightArguments {
  WeightArguments(const Tensor& weight, const Tensor& mask)
      : channels_last(is_channels_last(weight)),
        weight(torch::stable::contiguous(weight, memory_format(channels_last))),
        mask(torch::stable::contiguous(mask, memory_format(channels_last))) {}

  MaskedWeight get() const {
    return {weight.const_data_ptr<float>(), static_cast<const uint8_t*>(mask.const_data_ptr()), channels_last};
  }

  bool channels_last;
  Tensor weight, mask;
};

// Which of the steps run on the kept weights; `possible` says whether the arguments allow it.
class Planner {
 public:
  Planner(KernelChoice choice, bool possible, const Conv2dShape& shape, int64_t images, const Tensor& mask,
          bool channels_last, const char* op)
      : choice_(choice), possible_(possible), shape_(shape), images_(images), channels_last_(channels_last) {
    STD_TORCH_CHECK(choice != KernelChoice::kSparse || possible, op,
                    ": kernel sparse is for float32 on the CPU, without groups, and not for empty tensors");
    if (choice == KernelChoice::kAuto && possible) {
      const Tensor masks = torch::stable::contiguous(mask, memory_format(is_channels_last(mask)));
      kept_ = count_kept(static_cast<const uint8_t*>(masks.const_data_ptr()), masks.numel(), TorchParallel());
    }
  }

  bool sparse(MaskedStep step) const {
    if (choice_ != KernelChoice::kAuto || !possible_) return choice_ == KernelChoice::kSparse;
    return masked_conv2d_wins(step, shape_, images_, kept_, channels_last_);
  }

 private:
  KernelChoice choice_;
  bool possible_;
  Conv2dShape shape_;
  int64_t images_;
  bool channels_last_;
  int64_t kept_ = 0;
};

// Runs a kernel; an image that is too large for it is an error that names the op.
template <class Body>
void run_masked(const char* op, const Body& body) {
  try {
    body();
  } catch (const std::length_error& error) {
    STD_TORCH_CHECK(false, op, ": ", error.what());
  }
}

}  // namespace pqk::torch_ops
