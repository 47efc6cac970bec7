// What this machine can do at most: the ceilings that measured kernels are compared with.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace pqk {

// Multiplies and adds quads of 8-bit codes in registers, with the multiply-add of the instruction set's integer
// kernels, `repeats` times; returns a number that depends on all of it.
using Int8PeakKernel = int32_t(int64_t repeats);
PQK_CPU_KERNEL(Int8PeakKernel, int8_peak_kernel)

// Multiply-accumulates of one repeat of the kernel.
using Int8PeakProducts = int64_t();
PQK_CPU_KERNEL(Int8PeakProducts, int8_peak_products)

// Reads [data, data + bytes), `bytes` a multiple of kReadUnit, as the kernels do: whole aligned vectors in
// ascending order. Returns a number that depends on all of it.
inline constexpr int64_t kReadUnit = 512;
using ReadKernel = int32_t(const uint8_t* data, int64_t bytes);
PQK_CPU_KERNEL(ReadKernel, read_kernel)

// Int8 multiply-accumulates per second of the calling core, operands in registers: the best of many rounds of a
// millisecond, some 30 ms in total.
double int8_peak();

// Bytes per second that the calling core reads from a buffer of about `bytes` again and again: the best of many
// passes. The size chooses the cache that is measured.
double read_bandwidth(int64_t bytes);

}  // namespace pqk
