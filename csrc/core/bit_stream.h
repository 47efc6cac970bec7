// Single bits, most significant first, for the small tables of the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/byte_reader.h"

namespace pqk {

class BitWriter {
 public:
  explicit BitWriter(std::vector<uint8_t>& out) : out_(out) {}

  void put(uint32_t code, int size) {  // size <= 32
    buffer_ = buffer_ << size | code;
    held_ += size;
    while (held_ >= 8) {
      held_ -= 8;
      out_.push_back(static_cast<uint8_t>(buffer_ >> held_));
    }
  }
  // Fills the last byte with zero bits; returns how many, 0..7.
  int finish() {
    const int spare = (8 - held_) % 8;
    if (spare) put(0, spare);
    return spare;
  }

 private:
  std::vector<uint8_t>& out_;
  uint64_t buffer_ = 0;
  int held_ = 0;
};

class BitReader {
 public:
  BitReader(ByteReader& reader, const char* what) : reader_(reader), what_(what) {}

  bool get() {
    if (held_ == 0) {
      byte_ = reader_.u8(what_);
      held_ = 8;
    }
    return byte_ >> --held_ & 1;
  }
  // The bits after the last one read, up to the end of its byte, must be zero.
  void check_spare(const char* code, const std::string& field) const {
    if (byte_ & ((1 << held_) - 1)) throw FormatError(code, field, byte_offset(), "spare bits of 0", "a 1");
  }
  int64_t byte_offset() const { return reader_.offset() - 1; }

 private:
  ByteReader& reader_;
  const char* what_;
  uint8_t byte_ = 0;
  int held_ = 0;
};

}  // namespace pqk
