// Coded weights to int8 in device memory.
#pragma once

#include "core/cuda/coded_plan.h"

namespace pqk::cuda {

// Writes payload.shape.count weights; what a payload that is not whole gives is of no meaning, and the plan's
// status then is not kWhole. `plan` is scratch, of coded_plan_bytes(). Returns nullptr or CUDA's words for what
// went wrong with the launch.
const char* decode_weight(const CodedPayload& payload, CodedPlan* plan, int8_t* output);

}  // namespace pqk::cuda
