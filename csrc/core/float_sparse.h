// The kernel of float_conv2d.h for weights with many zeros: non-zeros alone are stored and multiplied.
//
// Vector lanes are output positions, as in sparse_conv2d.h: each weight is broadcast over positions that lie
// one after the other in a planar copy of the input (the cells), which the kernel makes in scratch memory.
#pragma once

#include "core/float_packing.h"
#include "core/sparse_conv2d.h"

namespace pqk {

struct FloatSparseEntry {
  int32_t cell;  // of position 0, within the group's cells
  float weight;
};

struct FloatSparsePlan {
  Conv2dShape shape;
  SparseLayout layout;
  const int32_t* rows;  // [out_channels + 1]: the entries of each output channel
  const FloatSparseEntry* entries;
  FloatEpilogue epilogue;
};

using FloatSparseKernel = void(const FloatSparsePlan&, const FloatConvImages&, int64_t row_begin,
                               int64_t row_end);
PQK_CPU_KERNEL(FloatSparseKernel, float_sparse_kernel)

}  // namespace pqk
