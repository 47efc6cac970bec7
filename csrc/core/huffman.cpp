#include "core/huffman.h"

#include <algorithm>

namespace pqk {

int huffman_encode(const HuffmanLengths& lengths, const uint8_t* symbols, int64_t count, uint8_t flip,
                   std::vector<uint8_t>& out) {
  struct Code {
    uint16_t bits = 0;
    uint8_t length = 0;
  };
  std::array<Code, kHuffmanSymbols> codes{};
  uint32_t next = 0;
  for (int length = 1; length <= kHuffmanMaxLength; ++length, next <<= 1) {
    for (int s = 0; s < kHuffmanSymbols; ++s) {
      if (lengths[s] == length) codes[s ^ flip] = {static_cast<uint16_t>(next++), lengths[s]};
    }
  }
  uint64_t buffer = 0;
  int held = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Code code = codes[symbols[i]];
    buffer = buffer << code.length | code.bits;
    held += code.length;
    if (held < 32) continue;
    held -= 32;
    const uint32_t word = static_cast<uint32_t>(buffer >> held);
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(word >> shift));
  }
  const int spare = (8 - held % 8) % 8;
  buffer <<= spare;
  for (int shift = held + spare - 8; shift >= 0; shift -= 8)
    out.push_back(static_cast<uint8_t>(buffer >> shift));
  return spare;
}

void check_huffman_stream(ByteSpan stream, int spare_bits, int64_t count, const std::string& field) {
  const int64_t bits = checked_mul(stream.size, 8, field) - spare_bits;
  if (spare_bits < 0 || spare_bits > 7 || bits < 0) {
    throw FormatError("E_HUFF_STREAM", field, 0, "0..7 spare bits of " + std::to_string(stream.size) + " bytes",
                      std::to_string(spare_bits));
  }
  if (spare_bits && stream.data[stream.size - 1] & ((1 << spare_bits) - 1)) {
    throw FormatError("E_HUFF_STREAM", field, stream.size - 1, "spare bits of 0", "a 1");
  }
  if (count > bits) {
    throw FormatError("E_BOMB", field, 0, "at most " + std::to_string(bits) + " symbols in the stream",
                      std::to_string(count));
  }
}

}  // namespace pqk
