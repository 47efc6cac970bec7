// Reading of untrusted bytes: every size passes one checked helper, every read is bounded.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "core/error.h"

namespace pqk {

// Product or sum of sizes that came from outside. Throws E_SHAPE_OVERFLOW instead of wrapping.
inline int64_t checked_mul(int64_t a, int64_t b, const std::string& field) {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) {
    throw FormatError("E_SHAPE_OVERFLOW", field, -1, "a product below 2^63",
                      std::to_string(a) + " * " + std::to_string(b));
  }
  return result;
}

inline int64_t checked_add(int64_t a, int64_t b, const std::string& field) {
  int64_t result;
  if (__builtin_add_overflow(a, b, &result)) {
    throw FormatError("E_SHAPE_OVERFLOW", field, -1, "a sum below 2^63",
                      std::to_string(a) + " + " + std::to_string(b));
  }
  return result;
}

struct ByteSpan {
  const uint8_t* data;
  int64_t size;
};

class ByteReader {
 public:
  ByteReader(ByteSpan bytes, std::string field) : bytes_(bytes), field_(std::move(field)) {}

  int64_t offset() const { return offset_; }
  int64_t remaining() const { return bytes_.size - offset_; }
  const std::string& field() const { return field_; }

  ByteSpan take(int64_t size, const char* what) {
    if (size < 0 || size > remaining()) {
      throw FormatError("E_TRUNCATED", field_ + "." + what, offset_, std::to_string(size) + " bytes",
                        std::to_string(remaining()));
    }
    const ByteSpan span{bytes_.data + offset_, size};
    offset_ += size;
    return span;
  }

  uint8_t u8(const char* what) { return *take(1, what).data; }

  // LEB128: 7 bits a byte, least significant first, at most 5 bytes, no longer than needed.
  uint32_t varint(const char* what) {
    const int64_t start = offset_;
    uint64_t value = 0;
    for (int shift = 0; shift < 35; shift += 7) {
      const uint8_t byte = u8(what);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte & 0x80) continue;
      if (value > UINT32_MAX || (byte == 0 && shift > 0)) break;
      return static_cast<uint32_t>(value);
    }
    throw FormatError("E_VARINT", field_ + "." + what, start, "a minimal LEB128 number below 2^32",
                      "another byte sequence");
  }

 private:
  ByteSpan bytes_;
  std::string field_;
  int64_t offset_ = 0;
};

// Little-endian load of an unaligned unsigned integer of 1, 2 or 4 bytes.
inline uint32_t load_le(const uint8_t* data, int width) {
  uint32_t value = 0;
  for (int i = 0; i < width; ++i) value |= static_cast<uint32_t>(data[i]) << (8 * i);
  return value;
}

}  // namespace pqk
