// Huffman coding of bytes in 128 interleaved streams, which vector registers decode side by side, as many
// symbols at a time as they have lanes (FORMAT.md, "Interleaved streams"). Oodle's and zstd's few streams hide
// the latency of one look-up; here each lane of a register is a stream (as in the rANS of Giesen 2014), tables
// of 64 entries are one shuffle, and one sequence of 16-bit words serves all lanes, in the order in which they
// run dry.
//
// A code word is a prefix of at most 7 bits and, for alphabets that need more, up to 7 plain bits: it then
// stands for an aligned run of 2^extra symbols.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/byte_reader.h"
#include "core/huffman.h"
#include "core/isa.h"

namespace pqk {

inline constexpr int kInterleavedStreams = 128;
inline constexpr int kInterleavedSteps = 4;  // consecutive symbols of a block that go to one stream
inline constexpr int kInterleavedBlock = kInterleavedStreams * kInterleavedSteps;
inline constexpr uint8_t kInterleavedFlip = 0x80;  // value byte ^ 0x80 == value + 128, the symbol of a value
inline constexpr int kInterleavedMaxPrefix = 7;
inline constexpr int kInterleavedMaxExtra = 7;
inline constexpr int kInterleavedTableSize = 1 << kInterleavedMaxPrefix;
inline constexpr int kInterleavedMaxTailBlocks = 7;
// The most bytes that the decoding of one block moves on by, or looks at.
inline constexpr int64_t kInterleavedReach = 2 * kInterleavedBlock;

struct InterleavedToken {
  uint8_t base;    // first symbol of the run, a multiple of its length 2^extra
  uint8_t extra;   // plain bits
  uint8_t length;  // of the prefix, 1..7
};

// Tokens by rising base. Their prefixes make a complete code; or there is one token, of length 1 without plain
// bits.
using InterleavedCode = std::vector<InterleavedToken>;

// The code of fewest bits, streams and table together, for every symbol with a count; of a code without plain
// bits that is at most 0.5 % longer, that one, which decodes faster.
InterleavedCode interleaved_code(const HuffmanCounts& counts);
uint64_t interleaved_bits(const HuffmanCounts& counts, const InterleavedCode& code);
// Symbols of a stream between two looks at whether it needs a word: 4, 2 or 1, by the longest code word.
int interleaved_period(const InterleavedCode& code);

void write_interleaved_code(const InterleavedCode& code, std::vector<uint8_t>& out);
// Checked; `what` is coded, for errors.
InterleavedCode read_interleaved_code(ByteReader& reader, const char* what);

// Appends the streams of `symbols[i] ^ flip`. The symbols after the last whole block, and of `tail_blocks`
// whole blocks before them, go where the streams have bits left, and after them.
void interleaved_encode(const InterleavedCode& code, const uint8_t* symbols, int64_t count, uint8_t flip,
                        int tail_blocks, std::vector<uint8_t>& out);
// Bytes that interleaved streams have beyond their codes, on average, without and with a filled tail.
inline constexpr int64_t kInterleavedWaste = 200, kInterleavedFilledWaste = 1;
int64_t interleaved_table_size(const InterleavedCode& code);
// So many that the bits that the streams have left are filled, by such symbols as counted.
int interleaved_tail_blocks(const InterleavedCode& code, const HuffmanCounts& counts);

// What decoding looks up by the next 7 bits of a stream, the first in the least significant place.
struct InterleavedTable {
  // Decoded bytes are symbol ^ flip; flip is 0 or 0x80.
  InterleavedTable(const InterleavedCode& code, uint8_t flip);

  alignas(64) std::array<uint8_t, kInterleavedTableSize> symbol;  // the token's first
  alignas(64) std::array<uint8_t, kInterleavedTableSize> bits;    // of the whole code word
  alignas(64) std::array<uint8_t, kInterleavedTableSize> prefix;  // of its prefix
  alignas(64) std::array<uint8_t, kInterleavedTableSize> mask;    // of its plain bits
  int period;
  bool is_short;  // no prefix has more than 6 bits: the second half of each is the first
  bool wide;      // any token has plain bits
  bool single;    // one symbol: nothing to look up
};

// Between two blocks. A stream's next bit is bit position[s] (0..31) of buffer[s].
struct InterleavedLanes {
  alignas(64) std::array<uint32_t, kInterleavedStreams> buffer;
  alignas(64) std::array<uint32_t, kInterleavedStreams> position;
  const uint8_t* next;  // word
};

// Decodes up to `blocks` blocks, but begins none within kInterleavedReach of `end`; returns how many. Any bytes
// are decoded to something.
using InterleavedKernel = int64_t(const InterleavedTable& table, InterleavedLanes& lanes, const uint8_t* end,
                                  int64_t blocks, uint8_t* output);
PQK_CPU_KERNEL(InterleavedKernel, interleaved_kernel)

// Throws E_BOMB when `count` symbols cannot be in the stream: each takes at least one bit.
void check_interleaved_count(ByteSpan stream, int64_t count, const std::string& field);

// Decodes what one call of interleaved_encode wrote, some symbols at a time. Reads nothing outside of `stream`.
class InterleavedDecoder {
 public:
  // `table` and the stream must outlive it. Throws E_HUFF_STREAM.
  InterleavedDecoder(const InterleavedTable& table, ByteSpan stream, int64_t count, int tail_blocks,
                     std::string field);
  InterleavedDecoder(const InterleavedDecoder&) = delete;
  InterleavedDecoder& operator=(const InterleavedDecoder&) = delete;

  // The next `count` symbols; there must be as many left. Throws E_HUFF_STREAM where the stream ends before.
  void decode(uint8_t* output, int64_t count);
  // After the last symbol: throws E_HUFF_STREAM unless the stream ends here too.
  void check_end();

 private:
  static constexpr int64_t kTailBytes =
      (kInterleavedMaxTailBlocks + 1) * kInterleavedBlock * (kInterleavedMaxPrefix + kInterleavedMaxExtra) / 8;
  static constexpr int64_t kLaneBytes = 4 * kInterleavedStreams;
  static constexpr int kSlack = 8;

  void fill_lanes();
  void decode_blocks(uint8_t* output, int64_t blocks);
  void copy_rest();
  void begin_tail();
  void decode_tail(uint8_t* output, int64_t count);
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const;

  const InterleavedTable& table_;
  const ByteSpan stream_;
  const std::string field_;
  int64_t blocks_left_, tail_left_;
  bool has_lanes_;
  InterleavedLanes lanes_;
  const uint8_t* limit_;      // end of what the kernel may read
  const uint8_t* end_;        // of the stream's bytes, wherever they are
  bool rest_copied_ = false;  // they are in rest_
  bool tail_begun_ = false;
  int64_t pending_begin_ = kInterleavedBlock;  // of the symbols decoded and not yet given
  int64_t tail_position_ = 0, tail_lane_bits_ = 0, tail_bits_ = 0;
  std::array<uint8_t, kInterleavedBlock> pending_;
  std::array<uint8_t, 2 * kInterleavedReach> rest_;
  std::array<uint8_t, kLaneBytes + kTailBytes + kSlack> tail_;
};

}  // namespace pqk
