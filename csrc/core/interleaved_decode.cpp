#include <algorithm>
#include <cstring>

#include "core/interleaved_huffman.h"

namespace pqk {
namespace {

constexpr int kBufferBits = 32;

// Appends bits to zeroed bytes, least significant first.
struct BitFiller {
  uint8_t* out;
  int64_t size = 0;  // in bits

  void put(uint32_t value, int bits) {  // bits <= 32
    const uint64_t word = static_cast<uint64_t>(value) << (size % 8);
    for (int i = 0; i < 5; ++i) out[size / 8 + i] |= static_cast<uint8_t>(word >> (8 * i));
    size += bits;
  }
};

uint32_t reversed(uint32_t code, int length) {
  uint32_t result = 0;
  for (int i = 0; i < length; ++i) result |= (code >> i & 1) << (length - 1 - i);
  return result;
}

}  // namespace

InterleavedTable::InterleavedTable(const InterleavedCode& code, uint8_t flip)
    : symbol{}, bits{}, prefix{}, mask{}, period(interleaved_period(code)), single(code.size() == 1) {
  is_short = std::all_of(code.begin(), code.end(),
                         [](const InterleavedToken& token) { return token.length < kInterleavedMaxPrefix; });
  wide = std::any_of(code.begin(), code.end(), [](const InterleavedToken& token) { return token.extra > 0; });
  if (single) symbol[0] = code[0].base ^ flip;
  if (single) return;
  uint32_t next = 0;
  for (int length = 1; length <= kInterleavedMaxPrefix; ++length, next <<= 1) {
    for (const InterleavedToken& token : code) {
      if (token.length != length) continue;
      for (uint32_t i = reversed(next, length); i < kInterleavedTableSize; i += 1u << length) {
        symbol[i] = token.base ^ flip;
        bits[i] = static_cast<uint8_t>(token.length + token.extra);
        prefix[i] = token.length;
        mask[i] = static_cast<uint8_t>((1u << token.extra) - 1);
      }
      ++next;
    }
  }
}

InterleavedDecoder::InterleavedDecoder(const InterleavedTable& table, ByteSpan stream, int64_t count,
                                       int tail_blocks, std::string field)
    : table_(table),
      stream_(stream),
      field_(std::move(field)),
      blocks_left_(std::max<int64_t>(0, count / kInterleavedBlock - tail_blocks)),
      tail_left_(count - blocks_left_ * kInterleavedBlock),
      has_lanes_(blocks_left_ > 0),
      limit_(stream.data + stream.size),
      end_(stream.data + stream.size) {
  lanes_.next = stream.data;
  if (!table.single) {
    fill_lanes();
  } else if (stream.size != (count + 7) / 8 ||
             std::any_of(stream.data, limit_, [](uint8_t byte) { return byte != 0; })) {
    fail(std::to_string((count + 7) / 8) + " bytes of the only code, 0",
         std::to_string(stream.size) + " other bytes");
  }
}

void check_interleaved_count(ByteSpan stream, int64_t count, const std::string& field) {
  if (count <= checked_mul(stream.size, 8, field)) return;
  throw FormatError("E_BOMB", field, 0, "at most " + std::to_string(8 * stream.size) + " symbols in the stream",
                    std::to_string(count));
}

void InterleavedDecoder::fill_lanes() {
  if (!has_lanes_) return;
  if (stream_.size < kLaneBytes)
    fail("at least " + std::to_string(kLaneBytes) + " bytes", std::to_string(stream_.size));
  for (int s = 0; s < kInterleavedStreams; ++s) lanes_.buffer[s] = load_le(stream_.data + 4 * s, 4);
  lanes_.position.fill(0);
  lanes_.next = stream_.data + kLaneBytes;
}

void InterleavedDecoder::fail(const std::string& expected, const std::string& got) const {
  throw FormatError("E_HUFF_STREAM", field_, stream_.size, expected, got);
}

void InterleavedDecoder::decode(uint8_t* output, int64_t count) {
  if (table_.single) {
    std::fill(output, output + count, table_.symbol[0]);
    return;
  }
  while (count > 0 && (pending_begin_ < kInterleavedBlock || blocks_left_ > 0)) {
    int64_t given = 0;
    if (pending_begin_ < kInterleavedBlock) {
      given = std::min(count, kInterleavedBlock - pending_begin_);
      std::copy_n(pending_.data() + pending_begin_, given, output);
      pending_begin_ += given;
    } else if (count < kInterleavedBlock) {
      decode_blocks(pending_.data(), 1);
      pending_begin_ = 0;
    } else {
      const int64_t blocks = std::min(count / kInterleavedBlock, blocks_left_);
      decode_blocks(output, blocks);
      given = blocks * kInterleavedBlock;
    }
    output += given;
    count -= given;
  }
  if (count > 0) decode_tail(output, count);
}

void InterleavedDecoder::decode_blocks(uint8_t* output, int64_t blocks) {
  InterleavedKernel* const kernel = active_interleaved_kernel();
  blocks_left_ -= blocks;
  while (true) {
    const int64_t done = kernel(table_, lanes_, limit_, blocks, output);
    if (lanes_.next > end_) fail("whole blocks in the stream", "its end");
    blocks -= done;
    output += done * kInterleavedBlock;
    if (blocks == 0) return;
    copy_rest();
  }
}

// The kernel stops where it might read past the end. What is left goes where zeros follow it.
void InterleavedDecoder::copy_rest() {
  if (rest_copied_) fail("whole blocks in the stream", "its end");
  rest_copied_ = true;
  const int64_t rest = end_ - lanes_.next;
  std::copy_n(lanes_.next, rest, rest_.data());
  std::fill(rest_.begin() + rest, rest_.end(), uint8_t{0});
  lanes_.next = rest_.data();
  end_ = rest_.data() + rest;
  limit_ = rest_.data() + rest_.size();
}

void InterleavedDecoder::begin_tail() {
  tail_begun_ = true;
  const int64_t extra = end_ - lanes_.next;
  if (extra > kTailBytes) fail("the end of the stream", std::to_string(extra) + " more bytes");
  std::fill_n(tail_.begin(), kLaneBytes + extra + kSlack, uint8_t{0});
  BitFiller filler{tail_.data()};
  for (int s = 0; has_lanes_ && s < kInterleavedStreams; ++s) {
    filler.put(lanes_.buffer[s] >> lanes_.position[s], kBufferBits - static_cast<int>(lanes_.position[s]));
  }
  tail_lane_bits_ = filler.size;
  for (int64_t i = 0; i < extra; ++i) filler.put(lanes_.next[i], 8);
  tail_bits_ = filler.size;
}

void InterleavedDecoder::decode_tail(uint8_t* output, int64_t count) {
  if (!tail_begun_) begin_tail();
  constexpr int kAtOnce = 4, kLongest = kInterleavedMaxPrefix + kInterleavedMaxExtra;
  static_assert(kAtOnce * kLongest <= 64 - 7);
  int64_t position = tail_position_;
  for (int64_t begin = 0; begin < count; begin += kAtOnce) {
    uint64_t window;
    std::memcpy(&window, tail_.data() + position / 8, sizeof window);
    window >>= position % 8;
    for (int64_t i = begin; i < std::min(begin + kAtOnce, count); ++i) {
      const uint64_t index = window % kInterleavedTableSize;
      output[i] =
          static_cast<uint8_t>(table_.symbol[index] | (window >> table_.prefix[index] & table_.mask[index]));
      position += table_.bits[index];
      window >>= table_.bits[index];
    }
    if (position > tail_bits_) fail("more symbols in the stream", "its end");
  }
  tail_position_ = position;
  tail_left_ -= count;
}

void InterleavedDecoder::check_end() {
  if (table_.single) return;
  if (!tail_begun_) begin_tail();
  // The tail's own bytes are as few as can be, and what is left of bits is 0.
  const int64_t beyond = std::max<int64_t>(0, tail_position_ - tail_lane_bits_);
  const int64_t needed = tail_lane_bits_ + (beyond + 7) / 8 * 8;
  if (tail_bits_ != needed)
    fail("the end of the stream", std::to_string((tail_bits_ - needed) / 8) + " more bytes");
  for (int64_t bit = tail_position_; bit < tail_bits_; ++bit) {
    if (tail_[bit / 8] >> (bit % 8) & 1) fail("spare bits of 0", "a 1");
  }
}

}  // namespace pqk
