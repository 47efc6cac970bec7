// Products of float32 rows with a coded weight whose codes stand for entries of a codebook, in device memory: y
// = x W^T + b (core/codebook_linear.h). Sums are float32 in one order, with fused multiply-adds, and do not
// depend on the device.
#pragma once

#include "core/cuda/coded_plan.h"

namespace pqk::cuda {

struct CodebookLinearJob {
  const float* input;     // [count][row size], dense
  const float* codebook;  // [codebook_size]
  const float* bias;      // [weight rows], or nullptr
  float* output;          // [count][weight rows], dense
  int64_t count;
  int codebook_size, zero;  // entries; the one that code 0 stands for
};

// Bytes of scratch memory: for many rows of x the weight is decoded once, for all of them.
int64_t codebook_linear_scratch(const CodedPayload& payload, int64_t count);

// The weight has at least one element. Outputs are NaN where the payload is not whole, and for rows of the
// weight with a code outside of the codebook. `plan` is scratch, of coded_plan_bytes(). Returns nullptr or
// CUDA's words for what went wrong with the launch.
const char* codebook_linear(const CodedPayload& payload, CodedPlan* plan, void* scratch,
                            const CodebookLinearJob& job);

}  // namespace pqk::cuda
