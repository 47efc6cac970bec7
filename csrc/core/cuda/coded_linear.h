// Products of rows of codes with a weight that stays coded, in device memory: the arithmetic and the bits of
// core/coded_linear.h. Weights are decoded in registers, multiplied there and forgotten.
#pragma once

#include "core/cuda/coded_plan.h"

namespace pqk::cuda {

struct CodedLinearJob {
  const uint8_t* input;     // [count][row size], dense
  const uint8_t* residual;  // [count][weight rows], dense, or nullptr
  const float* multiplier;  // [weight rows]
  const float* bias;        // [weight rows]
  uint8_t* output;          // [count][weight rows], dense, of codes; or nullptr
  float* float_output;      // of a float32 layer
  int64_t count;
  int32_t input_zero_point;
  float quant_min, quant_max;
  float residual_multiplier;
  int32_t residual_zero_point;
};

// Up to so many rows of x are multiplied while weights are decoded. More are worth decoding the weight first,
// and the tensor cores.
inline constexpr int64_t kMostCodedRows = 8;
// For those: replaces the outputs as below where `plan` says that the payload was not whole.
const char* spoil_unless_whole(const CodedPayload& payload, const CodedPlan* plan, const CodedLinearJob& job);

// The weight has at least one element. Where a payload is not whole, outputs are quant_min, or NaN, and the
// plan's status says so. `plan` is scratch, of coded_plan_bytes(). Returns nullptr or CUDA's words for what
// went wrong with the launch.
const char* coded_linear(const CodedPayload& payload, CodedPlan* plan, const CodedLinearJob& job);

}  // namespace pqk::cuda
