#include <cstring>

#include "core/semi_structured_linear.h"

#include "core/isa_begin.h"

// A word of indices is that of eight groups, which are vector lanes. In a lane the two kept weights of a group,
// as bytes of a word, come to their places in it.
void expand_groups(const int8_t* values, const uint8_t* indices, int64_t groups, int8_t* dense) {
  constexpr int kLanes = 8;
  using Words __attribute__((vector_size(4 * kLanes))) = uint32_t;
  using Pairs __attribute__((vector_size(2 * kLanes))) = uint16_t;
  constexpr Words kShifts = {0, 4, 8, 12, 16, 20, 24, 28};
  for (int64_t group = 0; group < groups; group += kLanes) {
    const size_t left = static_cast<size_t>(groups - group < kLanes ? groups - group : kLanes);
    uint32_t word = 0;
    Pairs pairs = {};
    if (left == kLanes) {
      std::memcpy(&word, indices + group / 2, sizeof word);
      std::memcpy(&pairs, values + kGroupKept * group, sizeof pairs);
    } else {
      std::memcpy(&word, indices + group / 2, (left + 1) / 2);
      std::memcpy(&pairs, values + kGroupKept * group, kGroupKept * left);
    }
    const Words kept = __builtin_convertvector(pairs, Words), places = (Words{} + word) >> kShifts;
    const Words out = (kept & 0xff) << ((places << 3) & 24) | kept >> 8 << ((places << 1) & 24);
    if (left == kLanes) {
      std::memcpy(dense + kGroupSize * group, &out, sizeof out);
    } else {
      std::memcpy(dense + kGroupSize * group, &out, kGroupSize * left);
    }
  }
}

// In each half of a byte, second index + 4 - first index - 1 is 4 or more where they are in order, and never
// less than 0: halves do not borrow from each other.
bool ordered_groups(const uint8_t* indices, int64_t bytes) {
  uint8_t wrong = 0;
  for (int64_t i = 0; i < bytes; ++i) {
    const int first = indices[i] & 0x33, second = indices[i] >> 2 & 0x33;
    wrong = static_cast<uint8_t>(wrong | (~((second | 0x44) - first - 0x11) & 0x44));
  }
  return wrong == 0;
}

#include "core/isa_end.h"
