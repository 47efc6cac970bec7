// Canonical, length-limited Huffman coding over an alphabet of 256 symbols (FORMAT.md, "Huffman codes").
//
// Lengths are optimal under the limit (package-merge, Larmore and Hirschberg 1990). Only lengths are stored;
// codes follow from them: ordered by (length, symbol), counting up, most significant bit first.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/byte_reader.h"

namespace pqk {

inline constexpr int kHuffmanSymbols = 256;
inline constexpr int kHuffmanMaxLength = 12;
inline constexpr int kHuffmanTableSize = 1 << kHuffmanMaxLength;

using HuffmanCounts = std::array<uint64_t, kHuffmanSymbols>;
using HuffmanLengths = std::array<uint8_t, kHuffmanSymbols>;  // 0: the symbol is not used

// How often each symbols[i] ^ flip occurs.
HuffmanCounts huffman_counts(const uint8_t* symbols, int64_t count, uint8_t flip);

// Code lengths of 1..max_length for every symbol with a count (2^max_length of them at most), minimal in total
// bits. One used symbol gets length 1.
HuffmanLengths optimal_huffman_lengths(const HuffmanCounts& counts, int max_length = kHuffmanMaxLength);
// The same, minimal in codes and length table together: lengths that rise and fall evenly have a smaller table,
// which counts where symbols are few. May give lengths to symbols without a count, but never to `unused`.
HuffmanLengths huffman_lengths(const HuffmanCounts& counts, int unused = -1);
// Counts averaged over 2 * radius + 1 neighbours within the range of used symbols, in which none but `unused`
// is left without; a spike (a symbol with an eighth of all, such as a zero) neither gives nor takes.
HuffmanCounts smoothed_counts(const HuffmanCounts& counts, int radius, int unused);
// Total bits that the counted symbols take.
uint64_t huffman_bits(const HuffmanCounts& counts, const HuffmanLengths& lengths);
// Throws E_HUFF_INCOMPLETE or E_HUFF_OVERSUBSCRIBED unless the lengths make a complete prefix code, or are one
// symbol of length 1.
void check_huffman_lengths(const HuffmanLengths& lengths, const std::string& field);

// The length table as the file holds it: first symbol, last symbol, then one bit-coded token a symbol.
void write_huffman_lengths(const HuffmanLengths& lengths, std::vector<uint8_t>& out);
int64_t huffman_lengths_size(const HuffmanLengths& lengths);
HuffmanLengths read_huffman_lengths(ByteReader& reader);  // checked

// Appends the codes of `symbols[i] ^ flip`, zero-filled to a whole byte; returns the number of spare bits,
// 0..7.
int huffman_encode(const HuffmanLengths& lengths, const uint8_t* symbols, int64_t count, uint8_t flip,
                   std::vector<uint8_t>& out);

// Throws E_HUFF_STREAM for bad spare bits, and E_BOMB when `count` symbols cannot be in the stream (each takes
// at least one bit). To be called before anything is allocated for the symbols.
void check_huffman_stream(ByteSpan stream, int spare_bits, int64_t count, const std::string& field);

// Decodes by look-ups of 12 bits. Each one waits for the length of what the one before found; so a long stream
// is decoded at several places at once, of which all but the first are guesses. Codes of different lengths fall
// into step after some symbols, wherever one begins (Klein and Wiseman 2003), and from there on the guess was
// right.
class HuffmanDecoder {
 public:
  // `lengths` must have passed check_huffman_lengths. Decoded bytes are symbol ^ flip.
  HuffmanDecoder(const HuffmanLengths& lengths, uint8_t flip);
  // Writes exactly `count` bytes. Throws E_HUFF_STREAM unless they take exactly the stream's bits.
  void decode(ByteSpan stream, int spare_bits, uint8_t* output, int64_t count, const std::string& field) const;

 private:
  struct Single {
    uint8_t symbol, length;
  };
  // As many whole codes as 12 bits hold, up to 4; the first symbol in the lowest byte.
  struct Group {
    uint32_t symbols;
    uint8_t count, bits;
  };
  // Where a decoder stands.
  struct Place {
    int64_t position = 0;  // bits from the stream's start
    int64_t done = 0;      // symbols
  };

  void decode_single(ByteSpan stream, uint8_t* output, int64_t count, const std::string& field) const;
  // Decodes as long as whole chunks can be guessed at.
  Place decode_guessing(ByteSpan stream, uint8_t* output, int64_t count) const;
  Single at(ByteSpan stream, int64_t position) const;

  std::array<Single, kHuffmanTableSize> singles_;
  std::array<Group, kHuffmanTableSize> groups_;
  bool grouped_ = false;  // whether groups_ pays
  bool single_ = false;
  uint8_t single_symbol_ = 0;
};

}  // namespace pqk
