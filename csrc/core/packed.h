// Signed codes of a few bits, one after the other, the first in the least significant bits.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace pqk {

// Unpacks groups of 8 codes of `bits` bits (1..7), `bits` bytes each; 8 bytes must be readable at each group.
using UnpackKernel = void(const uint8_t* packed, int bits, int64_t groups, int8_t* output);
PQK_CPU_KERNEL(UnpackKernel, unpack_kernel)

}  // namespace pqk
