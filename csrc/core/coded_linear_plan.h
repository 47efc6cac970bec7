// What CodedLinear prepares and the kernels of coded_linear_cpu.cpp read.
#pragma once

#include "core/coded_linear.h"
#include "core/isa.h"

namespace pqk {

constexpr int64_t kDotBytes = 64;  // rows of x go on with zeros up to a multiple of this
constexpr int64_t kDotRows = 4;    // rows of W that are multiplied together

// Up to kDotRows rows of W against all rows of x.
struct Int8Dots {
  const uint8_t* input;  // aligned to kDotBytes, and so is the pitch
  int64_t input_pitch, inputs;
  // Rows of W follow each other without gaps; kDotBytes more can be read behind the last.
  const int8_t* weight;
  int64_t row_size, rows;
  int32_t* sums;  // [inputs][kOutTile], of which the first kDotRows are written
};
// Sums of a tile of output channels to outputs. Row `rows.count` of `sums` holds the sums of the weights
// themselves, where `zero_point` is not 0.
struct Int8LinearTile {
  const int32_t* sums;  // [rows.count, or one more][kOutTile]
  int32_t zero_point;
  int64_t channel, channels;
};

using Int8DotsKernel = void(const Int8Dots&);
using Int8LinearTileKernel = void(const Int8Epilogue&, const Int8LinearRows&, const Int8LinearTile&);
PQK_CPU_KERNEL(Int8DotsKernel, int8_dots)
PQK_CPU_KERNEL(Int8LinearTileKernel, int8_linear_tile)

}  // namespace pqk
