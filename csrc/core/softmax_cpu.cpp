#include "core/softmax.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

void softmax_kernel(const float* input, float* output, int64_t channels) {
  float largest = input[0];
  for (int64_t c = 1; c < channels; ++c) largest = input[c] > largest ? input[c] : largest;
  for (int64_t c = 0; c < channels; ++c) output[c] = exp_nonpositive(input[c] - largest);
  float sum = 0.0f;
  for (int64_t c = 0; c < channels; ++c) sum = sum + output[c];
  for (int64_t c = 0; c < channels; ++c) output[c] = output[c] / sum;
}

#include "core/isa_end.h"
