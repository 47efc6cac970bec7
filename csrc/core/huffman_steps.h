// Small signed steps as bits, for tables of code lengths: 0 the same; 10s one more or less; 111 u s by two or
// more, u unary; 110 is free for another meaning. s is 1 for less.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/bit_stream.h"

namespace pqk {

inline constexpr int kNoStep = -1;  // 110

// Calls put(bits, number of bits).
template <class Put>
void put_step(int value, int predecessor, const Put& put) {
  const int delta = value - predecessor;
  const int size = std::abs(delta);
  if (size == 0) {
    put(0, 1);
  } else if (size == 1) {
    put(0b100 | (delta < 0), 3);
  } else {
    put(0b111, 3);
    for (int i = 2; i < size; ++i) put(1, 1);
    put(delta < 0, 2);
  }
}

template <class Put>
void put_no_step(const Put& put) {
  put(0b110, 3);
}

// The value after `predecessor`, in [low, high] or E_HUFF_LENGTH; or kNoStep.
inline int read_step(BitReader& bits, int predecessor, int low, int high, const std::string& field) {
  if (!bits.get()) return predecessor;
  int size = 1;
  if (bits.get()) {
    if (!bits.get()) return kNoStep;
    for (size = 2; bits.get();) {
      if (++size > high - low) {
        throw FormatError("E_HUFF_LENGTH", field, bits.byte_offset(),
                          "a step of at most " + std::to_string(high - low), "a larger one");
      }
    }
  }
  const int value = bits.get() ? predecessor - size : predecessor + size;
  if (value >= low && value <= high) return value;
  throw FormatError("E_HUFF_LENGTH", field, bits.byte_offset(),
                    "a number of " + std::to_string(low) + ".." + std::to_string(high), std::to_string(value));
}

}  // namespace pqk
