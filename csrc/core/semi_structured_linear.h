// Weights of which each four neighbours of a row have at most two that are not zero (2:4), and linear layers
// with them. Such a weight (rows, columns), columns a multiple of 4, is
//   values   int8 (rows, columns / 2): of each four neighbours the two kept, in their order;
//   indices  uint8 (rows, ceil(columns / 8)): which two those are, two bits each, the first of a row in bits 0
//            and 1 of its first byte. Four bits are one group of neighbours: of its two the first has the
//            smaller index. In the last byte's upper half 0 where columns / 4 is odd.
// Read as little-endian words, indices are what sparse tensor cores take as metadata (core/cuda/mma.h); nothing
// in them depends on a device. Where fewer than two are not zero, the first zeros are kept too.
#pragma once

#include <cstdint>

#include "core/int8_batch.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

constexpr int64_t kGroupSize = 4, kGroupKept = 2;

struct SemiStructuredWeight {
  const int8_t* values;
  const uint8_t* indices;
  int64_t rows, columns;

  int64_t groups() const { return columns / kGroupSize; }  // of a row
  int64_t index_bytes() const { return (groups() + 1) / 2; }
};

// Compresses a dense weight (weight.rows, weight.columns) into weight.values and weight.indices. Returns the
// first group, row * groups() + group, that has more than two weights that are not zero, or -1.
int64_t compress_semi_structured(const int8_t* dense, int64_t rows, int64_t columns, int8_t* values,
                                 uint8_t* indices, const Parallel& parallel);
// The first group whose indices are not in order, likewise.
int64_t first_unordered_group(const SemiStructuredWeight& weight, const Parallel& parallel);

// `groups` groups of a row to 4 weights each; the row's first group is group 0.
using ExpandGroupsKernel = void(const int8_t* values, const uint8_t* indices, int64_t groups, int8_t* dense);
PQK_CPU_KERNEL(ExpandGroupsKernel, expand_groups)
// Whether the indices of all groups of these bytes, two in each, are in order.
using OrderedGroupsKernel = bool(const uint8_t* indices, int64_t bytes);
PQK_CPU_KERNEL(OrderedGroupsKernel, ordered_groups)

// y = x W^T with the arithmetic and the bits of int8_conv2d_batch and the dense weight. x is (rows, columns)
// and `residual`, null without one, (rows, weight.rows), dense both; `output` likewise, of codes or floats.
// constants.weight is not used.
void semi_structured_linear(const SemiStructuredWeight& weight, const Conv2dConstants& constants, int64_t rows,
                            const uint8_t* input, const uint8_t* residual, void* output,
                            const Parallel& parallel);

}  // namespace pqk
