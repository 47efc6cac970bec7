#include <algorithm>
#include <cstring>
#include <memory>

#include "core/huffman.h"

namespace pqk {
namespace {

constexpr int kLookups = 4;  // take at most 48 of the 57 bits that one load holds

uint64_t load_be64(const uint8_t* data) {
  uint64_t value = 0;
  for (int i = 0; i < 8; ++i) value = value << 8 | data[i];  // compilers make one load and a byte swap of it
  return value;
}

// At least 57 bits from bit `position` on, the first one at the top.
uint64_t window_at(const uint8_t* data, int64_t position) {
  return load_be64(data + position / 8) << (position % 8);
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

// Chunks that are decoded at once. Their size is a multiple of every length, so that codes of one length are in
// step from the start.
constexpr int kChunks = 4;
constexpr int64_t kChunkBits = 2 * 27720;
// A chunk ends with the first look-ups that reach its end.
constexpr int64_t kMostSymbols = kChunkBits + kLookups * kHuffmanMaxLength;
// Symbols after which codes that are not in step will not be.
constexpr int kMostSteps = 4096;

struct Chunk {
  int64_t position;  // bits
  int64_t end;
  uint8_t* out;
};

template <class Step>
void decode_chunks(const uint8_t* data, std::array<Chunk, kChunks>& chunks, const Step& step) {
  auto [a, b, c, d] = chunks;  // copies, which no written symbol can alias
  const auto advance = [&](Chunk& chunk) {
    uint64_t window = window_at(data, chunk.position);
    for (int i = 0; i < kLookups; ++i) step(window, chunk.position, chunk.out);
  };
  while (a.position < a.end && b.position < b.end && c.position < c.end && d.position < d.end) {
    advance(a);
    advance(b);
    advance(c);
    advance(d);
  }
  for (Chunk* chunk : {&a, &b, &c, &d}) {
    Chunk last = *chunk;
    while (last.position < last.end) advance(last);
    *chunk = last;
  }
  chunks = {a, b, c, d};
}

}  // namespace

HuffmanDecoder::HuffmanDecoder(const HuffmanLengths& lengths, uint8_t flip) {
  size_t filled = 0;
  int used = 0;
  double mean = 0;  // bits of a code, where its bits are random
  for (int length = 1; length <= kHuffmanMaxLength; ++length) {
    for (int s = 0; s < kHuffmanSymbols; ++s) {
      if (lengths[s] != length) continue;
      const Single single{static_cast<uint8_t>(s ^ flip), static_cast<uint8_t>(length)};
      const size_t end = filled + (size_t{1} << (kHuffmanMaxLength - length));
      while (filled < end) singles_[filled++] = single;
      mean += static_cast<double>(length) / static_cast<double>(1 << length);
      single_symbol_ = single.symbol;
      ++used;
    }
  }
  single_ = used == 1;
  grouped_ = mean < 5;
  if (single_ || !grouped_) return;
  for (int index = 0; index < kHuffmanTableSize; ++index) {
    Group group{0, 0, 0};
    while (group.count < 4) {
      const Single single = singles_[index << group.bits & (kHuffmanTableSize - 1)];
      if (group.bits + single.length > kHuffmanMaxLength) break;
      group.symbols |= static_cast<uint32_t>(single.symbol) << (8 * group.count++);
      group.bits += single.length;
    }
    groups_[index] = group;
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

HuffmanDecoder::Single HuffmanDecoder::at(ByteSpan stream, int64_t position) const {
  return singles_[peek(stream, position)];
}

HuffmanDecoder::Place HuffmanDecoder::decode_guessing(ByteSpan stream, uint8_t* output, int64_t count) const {
  constexpr int64_t kRoundBits = kChunks * kChunkBits;
  constexpr int64_t kReadAhead = kLookups * kHuffmanMaxLength / 8 + 8;  // bytes
  Place place;
  if (stream.size < kRoundBits / 8 + kReadAhead) return place;
  const auto memory = std::make_unique_for_overwrite<uint8_t[]>(kChunks * (kMostSymbols + 4));
  const auto single_step = [singles = singles_.data()](uint64_t& window, int64_t& position, uint8_t*& out) {
    const Single single = singles[window >> (64 - kHuffmanMaxLength)];
    *out++ = single.symbol;
    window <<= single.length;
    position += single.length;
  };
  const auto group_step = [groups = groups_.data()](uint64_t& window, int64_t& position, uint8_t*& out) {
    const Group group = groups[window >> (64 - kHuffmanMaxLength)];
    std::memcpy(out, &group.symbols, 4);
    out += group.count;
    window <<= group.bits;
    position += group.bits;
  };
  while ((place.position + kRoundBits) / 8 + kReadAhead <= stream.size) {
    std::array<Chunk, kChunks> chunks;
    for (int i = 0; i < kChunks; ++i) {
      const int64_t begin = place.position + i * kChunkBits;
      chunks[i] = {begin, begin + kChunkBits, memory.get() + i * (kMostSymbols + 4)};
    }
    if (grouped_) {
      decode_chunks(stream.data, chunks, group_step);
    } else {
      decode_chunks(stream.data, chunks, single_step);
    }
    int64_t guess = place.position;  // where the chunk was thought to begin
    for (int i = 0; i < kChunks; ++i, guess += kChunkBits) {
      const Chunk& chunk = chunks[i];
      const uint8_t* symbols = memory.get() + i * (kMostSymbols + 4);
      // On from where the chunk before ended, and from the guess, until both are in step.
      int64_t wrong = guess;
      for (int steps = 0; place.position != wrong; ++steps) {
        if (steps == kMostSteps || wrong >= chunk.position || place.done == count) return place;
        if (place.position < wrong) {
          const Single single = at(stream, place.position);
          output[place.done++] = single.symbol;
          place.position += single.length;
        } else {
          wrong += at(stream, wrong).length;
          ++symbols;
        }
      }
      const int64_t found = chunk.out - symbols;
      if (found > count - place.done) return place;
      std::memcpy(output + place.done, symbols, static_cast<size_t>(found));
      place = {chunk.position, place.done + found};
    }
  }
  return place;
}

void HuffmanDecoder::decode(ByteSpan stream, int spare_bits, uint8_t* output, int64_t count,
                            const std::string& field) const {
  const int64_t bits = stream.size * 8 - spare_bits;
  if (single_) {
    if (bits != count) throw_stream(field, 0, bits, count);
    return decode_single(stream, output, count, field);
  }
  auto [position, done] = decode_guessing(stream, output, count);
  while (position / 8 + 8 <= stream.size && done + kLookups <= count) {
    uint64_t window = window_at(stream.data, position);
    for (int i = 0; i < kLookups; ++i) {
      const Single single = singles_[window >> (64 - kHuffmanMaxLength)];
      output[done++] = single.symbol;
      window <<= single.length;
      position += single.length;
    }
  }
  for (; done < count; ++done) {
    const Single single = at(stream, position);
    position += single.length;
    if (position > bits) throw_stream(field, stream.size, bits, position);
    output[done] = single.symbol;
  }
  if (position != bits) throw_stream(field, position / 8, bits, position);
}

}  // namespace pqk
