// A weight under a pruning mask: dense with exact zeros, or the CSR matrix of what is kept.
#pragma once

#include <cstdint>
#include <vector>

#include "core/csr.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

// out[i] = mask[i] != 0 ? weight[i] : 0 for elements of 2, 4 or 8 bytes; also where the weight is not finite.
struct MaskParams {
  const void* weight;
  const uint8_t* mask;
  void* output;  // may be `weight`
  int64_t count;
  int64_t element_bytes;
};

using MaskKernel = void(const MaskParams&, int64_t begin, int64_t end);
// Appends the positions of the non-zero bytes of mask[0, count) to `positions`; returns how many.
using MaskPositionsKernel = int64_t(const uint8_t* mask, int64_t count, int32_t* positions);
using MaskCountKernel = int64_t(const uint8_t* mask, int64_t count);
PQK_CPU_KERNEL(MaskKernel, mask_kernel)
PQK_CPU_KERNEL(MaskPositionsKernel, mask_positions_kernel)
PQK_CPU_KERNEL(MaskCountKernel, mask_count_kernel)

void mask_weight(const MaskParams& params, const Parallel& parallel);

int64_t count_kept(const uint8_t* mask, int64_t count, const Parallel& parallel);

// The kept weights of a row-major matrix, `kept` of them, zeros among them included.
template <class Value>
CsrMatrix<Value> csr_from_mask(const Value* weight, const uint8_t* mask, int64_t rows, int64_t cols,
                               int64_t kept);

}  // namespace pqk
