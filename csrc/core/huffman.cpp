#include "core/huffman.h"

#include <algorithm>

namespace pqk {
namespace {

uint64_t load_be64(const uint8_t* data) {
  uint64_t value = 0;
  for (int i = 0; i < 8; ++i) value = value << 8 | data[i];  // compilers make one load and a byte swap of it
  return value;
}

// The 12 bits at bit `position`, zeros past the end.
uint32_t peek(ByteSpan stream, int64_t position) {
  uint32_t window = 0;
  for (int64_t i = position / 8; i < position / 8 + 3; ++i) {
    window = window << 8 | (i < stream.size ? stream.data[i] : 0u);
  }
  return window >> (24 - kHuffmanMaxLength - position % 8) & (kHuffmanTableSize - 1);
}

[[noreturn]] void throw_stream(const std::string& field, int64_t offset, int64_t declared, int64_t used) {
  throw FormatError("E_HUFF_STREAM", field, offset, std::to_string(declared) + " bits",
                    std::to_string(used) + " bits");
}

}  // namespace

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

HuffmanDecoder::HuffmanDecoder(const HuffmanLengths& lengths, uint8_t flip) {
  struct Single {
    uint8_t symbol, length;
  };
  std::array<Single, kHuffmanTableSize> singles;
  size_t filled = 0;
  int used = 0;
  for (int length = 1; length <= kHuffmanMaxLength; ++length) {
    for (int s = 0; s < kHuffmanSymbols; ++s) {
      if (lengths[s] != length) continue;
      const Single single{static_cast<uint8_t>(s ^ flip), static_cast<uint8_t>(length)};
      const size_t end = filled + (size_t{1} << (kHuffmanMaxLength - length));
      while (filled < end) singles[filled++] = single;
      single_symbol_ = single.symbol;
      ++used;
    }
  }
  single_ = used == 1;
  if (single_) return;
  for (int index = 0; index < kHuffmanTableSize; ++index) {
    Entry entry{0, 0, 0, singles[index].length};
    while (entry.count < 4) {
      const Single single = singles[index << entry.bits & (kHuffmanTableSize - 1)];
      if (entry.bits + single.length > kHuffmanMaxLength) break;
      entry.symbols |= static_cast<uint32_t>(single.symbol) << (8 * entry.count++);
      entry.bits += single.length;
    }
    table_[index] = entry;
  }
}

void HuffmanDecoder::decode_single(ByteSpan stream, uint8_t* output, int64_t count,
                                   const std::string& field) const {
  const uint8_t* end = stream.data + stream.size;
  const uint8_t* wrong = std::find_if(stream.data, end, [](uint8_t byte) { return byte != 0; });
  if (wrong != end) {
    throw FormatError("E_HUFF_STREAM", field, wrong - stream.data, "the only code, 0", "a 1");
  }
  std::fill(output, output + count, single_symbol_);
}

void HuffmanDecoder::decode(ByteSpan stream, int spare_bits, uint8_t* output, int64_t count,
                            const std::string& field) const {
  const int64_t bits = stream.size * 8 - spare_bits;
  if (single_) {
    if (bits != count) throw_stream(field, 0, bits, count);
    return decode_single(stream, output, count, field);
  }
  constexpr int kLookups = 4, kGroup = 4;  // 4 look-ups use at most 48 of the 57 bits that one load holds
  int64_t position = 0, done = 0;
  while (position / 8 + 8 <= stream.size && done + kLookups * kGroup <= count) {
    uint64_t window = load_be64(stream.data + position / 8) << (position % 8);
    for (int i = 0; i < kLookups; ++i) {
      const Entry& entry = table_[window >> (64 - kHuffmanMaxLength)];
      for (int k = 0; k < kGroup; ++k) output[done + k] = static_cast<uint8_t>(entry.symbols >> (8 * k));
      done += entry.count;
      window <<= entry.bits;
      position += entry.bits;
    }
  }
  for (; done < count; ++done) {
    const Entry& entry = table_[peek(stream, position)];
    position += entry.first_length;
    if (position > bits) throw_stream(field, stream.size, bits, position);
    output[done] = static_cast<uint8_t>(entry.symbols);
  }
  if (position != bits) throw_stream(field, position / 8, bits, position);
}

}  // namespace pqk
