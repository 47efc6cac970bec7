// Range asymmetric numeral systems (rANS; Duda 2013) over an alphabet of 256 symbols: they come within a
// thousandth of the entropy where a Huffman code, which spends whole bits, cannot (FORMAT.md, "ANS").
//
// Shares are multiples of 1/4096. A stream has 1..32 states of 32 bits, which take turns, and moves words of 16
// bits. Decoding ends with every state at 2^16, where encoding began, and without a word left.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/byte_reader.h"
#include "core/huffman.h"

namespace pqk {

inline constexpr int kAnsShareBits = 12;
inline constexpr uint32_t kAnsTotal = 1u << kAnsShareBits;
inline constexpr uint32_t kAnsLow = 1u << 16;  // states are at least this between symbols
inline constexpr int kAnsMaxStatesLog2 = 5;

using AnsShares = std::array<uint16_t, kHuffmanSymbols>;  // kAnsTotal together; 0: the symbol is not used

// Shares in the form in which a payload holds them: of each used symbol the class, a power of two, and as many
// bits below the leading one as `precision` grants to the class. Mirrored: s and 256 - s have the same.
struct AnsTable {
  int precision = 0;  // 0..15
  bool mirrored = false;
  HuffmanLengths lengths{};  // class: 1 for half of all to 12; 0 for a symbol that is not used
  AnsShares fractions{};
  AnsShares shares{};  // follow from the others
};

// The table for which symbols and table together take the fewest bits. May give shares to symbols without a
// count, but never to `unused`, and, unless it `may_mirror`, to none outside their range. At least one symbol
// must have a count.
AnsTable ans_table(const HuffmanCounts& counts, int unused = -1, bool may_mirror = true);
void write_ans_table(const AnsTable& table, std::vector<uint8_t>& out);
int64_t ans_table_bits(const AnsTable& table);  // whole bytes
AnsTable read_ans_table(ByteReader& reader);    // throws E_ANS_TABLE
// What the counted symbols take, in bits.
double ans_bits(const HuffmanCounts& counts, const AnsShares& shares);

// Consecutive symbols of one alphabet; the first of them goes to the first state.
struct AnsRun {
  const AnsShares& shares;
  const uint8_t* symbols;  // each as symbol ^ flip
  int64_t count;
  uint8_t flip;
};

// So many states that they take at most a thousandth of a stream of `bits`.
int ans_states_log2(double bits);
int read_ans_states_log2(ByteReader& reader);  // throws E_ANS_STREAM
// Appends the states and the words of the runs, one after the other.
void ans_encode(const std::vector<AnsRun>& runs, int states_log2, std::vector<uint8_t>& out);

class AnsDecoder {
 public:
  // Reads the states; the words are what the reader has left. Throws E_TRUNCATED, E_ANS_STREAM.
  AnsDecoder(ByteReader& reader, int states_log2);
  // Throws E_BOMB where the bytes cannot hold so many symbols: to be called before anything is allocated for
  // them.
  void check_count(const AnsShares& shares, int64_t count) const;
  // Writes `count` symbols ^ flip, a run. Throws E_ANS_STREAM where words run out.
  void decode(const AnsShares& shares, uint8_t flip, uint8_t* output, int64_t count);
  // Throws E_ANS_STREAM unless all words are used and all states are back where they began.
  void finish() const;
  int64_t remaining() const { return end_ - next_; }  // bytes

 private:
  std::string field_;
  std::array<uint32_t, 1 << kAnsMaxStatesLog2> states_{};
  int states_log2_;
  const uint8_t *next_, *begin_, *end_;
};

}  // namespace pqk
