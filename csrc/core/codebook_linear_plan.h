// What CodebookLinear prepares and the kernels of codebook_linear_cpu.cpp read.
#pragma once

#include "core/codebook_linear.h"
#include "core/isa.h"

namespace pqk {

constexpr int64_t kFloatDotStep = 64;  // rows of x go on with zeros up to a multiple of this
constexpr int64_t kFloatDotRows = 4;   // rows of W that are multiplied together

// kFloatDotRows rows of W against all rows of x.
struct FloatDots {
  const float* input;  // aligned to 64 bytes, in the order that codebook_order gave
  int64_t input_pitch, inputs;
  // Codes of the rows of W, without gaps; kFloatDotStep more can be read behind the last. Where there are fewer
  // rows, the first stands for the others.
  const int8_t* codes;
  int64_t row_size, rows;
  const float* table;  // by code + 128, 64-byte aligned
  int least, largest;  // codes of the codebook
  float* weight;       // [kFloatDotRows][input_pitch], to work in
  float* sums;         // [inputs][kFloatDotRows]
};
// Puts a row of x, which is a multiple of kFloatDotStep, in the order in which the kernel reads it.
struct CodebookOrder {
  int least, largest;
  float* row;
  int64_t size;
};
// Whether any code is outside of least..largest.
struct CodeRange {
  const int8_t* codes;
  int64_t count;
  int least, largest;
};

using FloatDotsKernel = void(const FloatDots&);
using CodebookOrderKernel = void(const CodebookOrder&);
using CodeRangeKernel = bool(const CodeRange&);
PQK_CPU_KERNEL(FloatDotsKernel, codebook_dots)
PQK_CPU_KERNEL(CodebookOrderKernel, codebook_order)
PQK_CPU_KERNEL(CodeRangeKernel, codes_in_range)

}  // namespace pqk
