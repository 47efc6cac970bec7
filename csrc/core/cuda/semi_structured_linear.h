// Linear layers with 2:4 weights on CUDA, on sparse tensor cores: the layers, the arithmetic and the bits of
// core/semi_structured_linear.h.
#pragma once

#include "core/cuda/int8_conv2d.h"
#include "core/semi_structured_linear.h"

namespace pqk::cuda {

// Indices are not checked: what those give that are not in order is of no meaning.
struct SemiStructuredLinear {
  Int8Conv2d layer;  // a linear layer, but for its weight; `input` has dense rows of features
  SemiStructuredWeight weight;
};

// Bytes of device memory, 256-byte aligned, that semi_structured_linear works in; depends on shapes and
// alignment alone.
int64_t semi_structured_workspace(const SemiStructuredLinear& job);

// Returns nullptr or what went wrong with a launch.
const char* semi_structured_linear(const SemiStructuredLinear& job, void* workspace);

}  // namespace pqk::cuda
