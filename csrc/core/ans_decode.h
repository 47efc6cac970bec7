// The hot loop of ANS decoding, for streams of 32 states.
#pragma once

#include "core/ans.h"
#include "core/isa.h"

namespace pqk {

// By the lowest 12 bits of a state: symbol | share << 8 | position within the symbol's slots << 20. No share is
// all.
using AnsDecodeTable = std::array<uint32_t, kAnsTotal>;

struct AnsLanes {
  uint32_t* states;  // [32]
  const uint8_t* next;
  const uint8_t* end;
};

// Decodes whole groups of a symbol from each state, as long as there are words for all of them. Returns how
// many symbols it wrote.
using AnsGroupsKernel = int64_t(const AnsDecodeTable& table, AnsLanes& lanes, uint8_t* output, int64_t count);
PQK_CPU_KERNEL(AnsGroupsKernel, ans_groups_kernel)

}  // namespace pqk
