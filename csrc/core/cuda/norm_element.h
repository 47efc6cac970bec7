// One element of norm_activation in both directions, and what its kernels share.
#pragma once

#include "core/cuda/norm_activation.h"
#include "core/cuda/norm_cut.h"
#include "core/numerics.h"

namespace pqk::cuda {

// Scratch memory.
struct NormScratch {
  NormScratch(const NormActivationParams& params, const NormCut& cut, void* memory)
      : affine(static_cast<float*>(memory)),
        partial(reinterpret_cast<double*>(affine + floats(params.view.channels))),
        scale_partial(partial + 2 * params.view.channels * cut.parts) {}

  static int64_t bytes(const ChannelView& view, const NormCut& cut) {
    const int64_t doubles = 2 * view.channels * cut.parts + int64_t{cut.grid.x} * cut.grid.y;
    return floats(view.channels) * static_cast<int64_t>(sizeof(float)) +
           doubles * static_cast<int64_t>(sizeof(double));
  }

  float* affine;          // multiplier, shift, slope, offset, mean: [channels] each
  double* partial;        // [parts][channels][2]
  double* scale_partial;  // [blocks]

 private:
  static int64_t floats(int64_t channels) { return (5 * channels + 3) / 4 * 4; }
};

struct NormAffine {
  NormAffine(float* values, int64_t channels)
      : multiplier(values),
        shift(values + channels),
        slope(values + 2 * channels),
        offset(values + 3 * channels),
        mean(values + 4 * channels) {}
  float *multiplier, *shift, *slope, *offset, *mean;
};

// Batch norm as a factor and a summand of a channel, in double until the last step.
struct NormFactors {
  __device__ NormFactors(const NormActivationParams& p, int64_t channel) {
    if (p.mean == nullptr) return;
    inverse = 1.0 / sqrt(static_cast<double>(p.variance[channel]) + p.eps);
    mean = p.mean[channel];
    multiplier =
        static_cast<float>(inverse * (p.weight == nullptr ? 1.0 : static_cast<double>(p.weight[channel])));
    const double summand = p.bias == nullptr ? 0.0 : static_cast<double>(p.bias[channel]);
    shift = static_cast<float>(summand - static_cast<double>(mean) * multiplier);
  }
  double inverse = 1.0;  // of the standard deviation
  float mean = 0.0f, multiplier = 1.0f, shift = 0.0f;
};

class NormElement {
 public:
  explicit __device__ __forceinline__ NormElement(const NormActivationParams& p)
      : low_(p.low), high_(p.high), quant_max_(p.quant_max), quantized_(p.scale != nullptr) {
    scale_ = quantized_ ? *p.scale : 1.0f;
    zero_point_ = quantized_ ? static_cast<float>(*p.zero_point) : 0.0f;
    inv_scale_ = 1.0f / scale_;
  }

  __device__ __forceinline__ float output(float sum) const {
    const float value = clamp_float(sum, low_, high_);
    if (!quantized_) return value;
    return fake_quantize_value(value, scale_, inv_scale_, zero_point_, 0.0f, quant_max_);
  }

  // The gradient of `sum`, given that of the output; that of the scale is added to `scale_sum`.
  __device__ __forceinline__ float gradient(float sum, float grad, float& scale_sum) const {
    if (quantized_) {
      const float scaled = clamp_float(sum, low_, high_) * inv_scale_;
      const float rounded = rintf(scaled);
      const float shifted = rounded + zero_point_;
      const bool in_range = shifted >= 0.0f && quant_max_ >= shifted;
      const float clamped = clamp_float(shifted, 0.0f, quant_max_) - zero_point_;
      const float slope = grad * (in_range ? rounded - scaled : clamped);
      scale_sum += shifted == shifted ? slope : 0.0f;
      grad = in_range ? grad : 0.0f;
    }
    // A NaN sum lets the gradient pass, as torch's ReLU does.
    return low_ >= sum || sum >= high_ ? 0.0f : grad;
  }

 private:
  float low_, high_, quant_max_, scale_, inv_scale_, zero_point_;
  bool quantized_;
};

inline bool is_vector_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline NormCut norm_cut(const NormActivationParams& p, bool aligned) {
  return {p.view, aligned && is_vector_aligned(p.input) && is_vector_aligned(p.residual), p.device};
}

// Calls body.operator()<elements that a thread takes at once>().
template <class Body>
const char* for_vector(const NormCut& cut, const Body& body) {
  return cut.vector == 4 ? body.template operator()<4>() : body.template operator()<1>();
}

}  // namespace pqk::cuda
