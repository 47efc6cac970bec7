#include <cstring>

#include "core/semi_structured_linear.h"

#include "core/isa_begin.h"

namespace {

// The two kept weights of a group, as bytes of a word, to their places in it.
inline uint32_t expand(uint32_t kept, uint32_t indices) {
  return (kept & 0xff) << 8 * (indices & 3) | kept >> 8 << 8 * (indices >> 2 & 3);
}

inline uint32_t kept_of(const int8_t* values, int64_t group) {
  uint16_t kept;
  std::memcpy(&kept, values + kGroupKept * group, sizeof kept);
  return kept;
}

}  // namespace

// Eight groups, whose indices are one word, are vector lanes.
void expand_groups(const int8_t* values, const uint8_t* indices, int64_t groups, int8_t* dense) {
  constexpr int kLanes = 8;
  int64_t group = 0;
  for (; group + kLanes <= groups; group += kLanes) {
    uint32_t word, kept[kLanes], out[kLanes];
    std::memcpy(&word, indices + group / 2, sizeof word);
    for (int i = 0; i < kLanes; ++i) kept[i] = kept_of(values, group + i);
    for (int i = 0; i < kLanes; ++i) out[i] = expand(kept[i], word >> 4 * i);
    std::memcpy(dense + kGroupSize * group, out, sizeof out);
  }
  for (; group < groups; ++group) {
    const uint32_t out = expand(kept_of(values, group), indices[group / 2] >> 4 * (group % 2));
    std::memcpy(dense + kGroupSize * group, &out, sizeof out);
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
