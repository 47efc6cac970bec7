#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/interleaved_huffman.h"

namespace pqk {
namespace {

constexpr int kWordBits = 16;

struct CodeWord {
  uint16_t bits = 0;  // first in the least significant place
  uint8_t length = 0;
};
using CodeWords = std::array<CodeWord, kHuffmanSymbols>;  // by symbol ^ flip

CodeWords code_words(const InterleavedCode& code, uint8_t flip) {
  const InterleavedTable table(code, 0);
  CodeWords words;
  // Of the entries with one prefix the first has nothing behind it.
  for (int entry = kInterleavedTableSize - 1; entry >= 0; --entry) {
    for (int plain = 0; plain <= table.mask[entry]; ++plain) {
      words[(table.symbol[entry] + plain) ^ flip] = {
          static_cast<uint16_t>(entry | plain << table.prefix[entry]), table.bits[entry]};
    }
  }
  return words;
}

// A stream takes its words before it has the bits for them, as the decoder does: their places are kept until
// then.
struct Stream {
  static constexpr uint32_t kPlaces = 4;  // never more than 3 at once

  uint64_t held = 0;  // bits that are in no word yet
  int held_bits = 0;
  uint32_t position = 0;               // the decoder's, in its buffer of 2 words
  std::array<int64_t, kPlaces> place;  // of words not written
  uint32_t first = 0, last = 0;        // of those, counted from the beginning

  void take(int64_t at) { place[last++ % kPlaces] = at; }
  void put(uint32_t bits, int length, uint8_t* out) {
    held |= static_cast<uint64_t>(bits) << held_bits;
    held_bits += length;
    if (held_bits < kWordBits) return;
    const int64_t at = place[first++ % kPlaces];
    out[at] = static_cast<uint8_t>(held);
    out[at + 1] = static_cast<uint8_t>(held >> 8);
    held >>= kWordBits;
    held_bits -= kWordBits;
  }
  int64_t free_bits() const { return static_cast<int64_t>(last - first) * kWordBits - held_bits; }
};

class Encoder {
 public:
  Encoder(const InterleavedCode& code, uint8_t flip, std::vector<uint8_t>& out)
      : words_(code_words(code, flip)), period_(interleaved_period(code)), out_(out), end_(out.size()) {}

  void blocks(const uint8_t* symbols, int64_t count) {
    if (count == 0) return;
    reserve(4 * kInterleavedStreams);
    for (Stream& stream : streams_) {
      stream.take(end_);
      stream.take(end_ + 2);
      end_ += 4;
    }
    for (int64_t b = 0; b < count; ++b, symbols += kInterleavedBlock) {
      reserve(2 * kInterleavedBlock);
      for (int step = 0; step < kInterleavedSteps; step += period_) encode_steps(symbols + step);
    }
  }

  // Fills what the streams have left, one after the other, and goes on behind them.
  void tail(const uint8_t* symbols, int64_t count, bool has_streams) {
    uint64_t held = 0;
    int held_bits = 0;
    size_t s = has_streams ? 0 : streams_.size();
    const auto put_bit = [&](uint32_t bit) {
      while (s < streams_.size() && streams_[s].free_bits() == 0) ++s;
      if (s < streams_.size()) return streams_[s].put(bit, 1, out_.data());
      held |= static_cast<uint64_t>(bit) << held_bits++;
      if (held_bits == 8) flush(held, held_bits);
    };
    for (int64_t i = 0; i < count; ++i) {
      const CodeWord word = words_[symbols[i]];
      for (int bit = 0; bit < word.length; ++bit) put_bit(word.bits >> bit & 1);
    }
    if (held_bits) flush(held, held_bits);
    for (Stream& stream : streams_) {
      while (stream.first != stream.last) stream.put(0, kWordBits - stream.held_bits, out_.data());
    }
    out_.resize(static_cast<size_t>(end_));
  }

 private:
  void encode_steps(const uint8_t* symbols) {
    uint8_t* const out = out_.data();
    for (Stream& stream : streams_) {
      if (stream.position >= kWordBits) {
        stream.position -= kWordBits;
        stream.take(end_);
        end_ += 2;
      }
      for (int step = 0; step < period_; ++step) {
        const CodeWord word = words_[symbols[step]];
        stream.put(word.bits, word.length, out);
        stream.position += word.length;
      }
      symbols += kInterleavedSteps;
    }
  }

  void reserve(int64_t bytes) {
    const size_t needed = static_cast<size_t>(end_ + bytes);
    if (needed > out_.size()) out_.resize(std::max(needed, out_.size() * 3 / 2));
  }

  void flush(uint64_t& held, int& held_bits) {
    reserve(1);
    out_[static_cast<size_t>(end_++)] = static_cast<uint8_t>(held);
    held = 0;
    held_bits = 0;
  }

  const CodeWords words_;
  const int period_;
  std::vector<uint8_t>& out_;
  int64_t end_;  // of what is taken; out_ is longer
  std::array<Stream, kInterleavedStreams> streams_;
};

}  // namespace

void interleaved_encode(const InterleavedCode& code, const uint8_t* symbols, int64_t count, uint8_t flip,
                        int tail_blocks, std::vector<uint8_t>& out) {
  if (code.size() == 1) {
    out.resize(out.size() + static_cast<size_t>((count + 7) / 8), 0);
    return;
  }
  const int64_t blocks = std::max<int64_t>(0, count / kInterleavedBlock - tail_blocks);
  Encoder encoder(code, flip, out);
  encoder.blocks(symbols, blocks);
  encoder.tail(symbols + blocks * kInterleavedBlock, count - blocks * kInterleavedBlock, blocks > 0);
}

int interleaved_tail_blocks(const InterleavedCode& code, const HuffmanCounts& counts) {
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  const double mean = static_cast<double>(interleaved_bits(counts, code)) / static_cast<double>(total);
  // Before the last steps a stream's position is 0..15, after them its buffer's remaining bits are free.
  const double free_bits = 2 * kWordBits - 7.5 - interleaved_period(code) * mean;
  // Half a block is the mean of what does not make a whole one.
  const double blocks = free_bits / (kInterleavedSteps * mean) - 0.5;
  return static_cast<int>(std::clamp<double>(std::ceil(blocks), 0, kInterleavedMaxTailBlocks));
}

}  // namespace pqk
