// Decoding of interleaved streams (core/interleaved_huffman.h) by a warp. The 128 streams of a chunk share one
// sequence of words, so that a lane takes four neighbouring streams and the warp all of them: which words are
// whose is known from four ballots, and the 16 symbols of a lane follow each other.
#pragma once

#include "core/cuda/coded_memory.h"
#include "core/cuda/coded_plan.h"

namespace pqk::cuda {

constexpr int kStreamsOfLane = kInterleavedStreams / kWarp;
constexpr int kSymbolsOfLane = kInterleavedBlock / kWarp;
constexpr int kTailSymbols = (kInterleavedMaxTailBlocks + 1) * kInterleavedBlock;
constexpr int kTailBytes = kTailSymbols * (kInterleavedMaxPrefix + kInterleavedMaxExtra) / 8;
// Words of a tail's bits: what the buffers have left, further bytes, and what a window reads beyond.
constexpr int kTailWords = kInterleavedStreams + kTailBytes / 4 + 4;
static_assert(kSymbolsOfLane == 16 && kStreamsOfLane == kInterleavedSteps);

// Shared memory of a stream.
struct StreamMemory {
  alignas(16) uint8_t ring[WordRing::kBytes];
  alignas(16) uint8_t tail[kTailSymbols];
  uint32_t entries[kInterleavedTableSize];
};
// Of all streams of a warp.
struct TailMemory {
  uint32_t words[kTailWords];
};

// The symbols of one chunk in blocks of kInterleavedBlock, 16 neighbours a lane.
class StreamDecoder {
 public:
  __device__ __forceinline__ StreamDecoder(StreamMemory& memory, TailMemory& tail, int lane)
      : memory_(&memory), tail_(&tail), lane_(lane) {}

  // All lanes call everything. False, the same on all, where the stream cannot be one of so many symbols; then
  // there is nothing more to call.
  __device__ __forceinline__ bool start(const DeviceBytes& bytes, const uint8_t* stream, int64_t size,
                                        int64_t symbols, int tail_blocks, const CodedTable& table) {
    bytes_ = bytes;
    stream_ = stream;
    size_ = size;
    symbols_ = symbols;
    const int64_t blocks = symbols / kInterleavedBlock - tail_blocks;
    blocks_ = blocks < 0 ? 0 : blocks;
    period_ = table.period;
    wide_ = table.wide;
    single_ = table.single;
    bit_step_ = table.bit_step;
    whole_ = true;
    __syncwarp();
    for (int i = lane_; i < kInterleavedTableSize; i += kWarp) memory_->entries[i] = table.entries[i];
    __syncwarp();
    if (single_) return only_zeros();
    if (blocks_ == 0) return true;
    if (size < 4 * kInterleavedStreams) return false;
    ring_.start(bytes, stream, memory_->ring, lane_);
    fill_lanes();
    return true;
  }

  // Block `block`, which must be the next one. Behind the last symbol there may be anything.
  __device__ __forceinline__ uint4 next(int64_t block) {
    if (single_) {
      const uint32_t four = 0x01010101u * (memory_->entries[0] & 0xff);
      return make_uint4(four, four, four, four);
    }
    if (block < blocks_) return decode_block();
    if (block == blocks_) decode_tail();
    const int64_t at = (block - blocks_) * kInterleavedBlock + kSymbolsOfLane * lane_;
    return *reinterpret_cast<const uint4*>(memory_->tail + at);
  }

  // After the last block: whether the stream was one. The same on all lanes.
  __device__ __forceinline__ bool finish() {
    if (!single_ && whole_ && symbols_ == blocks_ * kInterleavedBlock) decode_tail();
    return whole_;
  }

 private:
  __device__ bool only_zeros() const {
    bool wrong = size_ != (symbols_ + 7) / 8;
    for (int64_t i = lane_; i < size_; i += kWarp) wrong |= stream_[i] != 0;
    return !__any_sync(kAllLanes, wrong);
  }

  __device__ __forceinline__ void fill_lanes() {
    for (int quarter = 0; quarter < kStreamsOfLane; ++quarter) {
      // 32 streams in 128 bytes; those of the lane are in one quarter.
      ring_.provide(4 * kWarp);
      if (lane_ / (kWarp / kStreamsOfLane) == quarter) {
        const int first = lane_ % (kWarp / kStreamsOfLane) * kStreamsOfLane;
#pragma unroll
        for (int k = 0; k < kStreamsOfLane; ++k) {
          buffer_[k] = ring_.word(2 * (first + k)) | ring_.word(2 * (first + k) + 1) << 16;
          position_[k] = 0;
        }
      }
      ring_.advance(2 * kWarp);
    }
  }

  // Streams that have less than 16 bits left take a word each, in their order.
  __device__ __forceinline__ void refill() {
    const uint32_t below = (1u << lane_) - 1;
    int index = 0, taken = 0;
#pragma unroll
    for (int k = 0; k < kStreamsOfLane; ++k) {
      const uint32_t dry = __ballot_sync(kAllLanes, position_[k] >= 16);
      index += __popc(dry & below);
      taken += __popc(dry);
    }
    ring_.provide(2 * kInterleavedStreams);
#pragma unroll
    for (int k = 0; k < kStreamsOfLane; ++k) {
      if (position_[k] < 16) continue;
      buffer_[k] = __byte_perm(buffer_[k], ring_.word(index++), 0x5432);
      position_[k] -= 16;
    }
    ring_.advance(taken);
  }

  __device__ __forceinline__ uint4 decode_block() {
    uint32_t out[kStreamsOfLane] = {};
#pragma unroll
    for (int step = 0; step < kInterleavedSteps; ++step) {
      if ((step & (period_ - 1)) == 0) refill();
#pragma unroll
      for (int k = 0; k < kStreamsOfLane; ++k) {
        const uint32_t window = buffer_[k] >> position_[k];
        const uint32_t entry = memory_->entries[window % kInterleavedTableSize];
        uint32_t symbol = entry & 0xff;
        if (wide_) symbol |= window >> (entry >> 16 & 0xf) & entry >> 24;
        out[k] |= symbol << (8 * step);
        position_[k] += entry >> 8 & 0xff;
      }
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
  }

  __device__ __forceinline__ void put_bits(int bit, uint32_t value, int bits) {
    if (bits == 0) return;
    atomicOr(&tail_->words[bit / 32], value << (bit % 32));
    if (bit % 32 + bits > 32) atomicOr(&tail_->words[bit / 32 + 1], value >> (32 - bit % 32));
  }

  // The bits of the tail side by side; returns their number.
  __device__ int gather_tail(int& lane_bits) {
    __syncwarp();
    for (int i = lane_; i < kTailWords; i += kWarp) tail_->words[i] = 0;
    __syncwarp();
    int own = 0;
    if (blocks_ > 0) {
#pragma unroll
      for (int k = 0; k < kStreamsOfLane; ++k) own += 32 - static_cast<int>(position_[k]);
    }
    int end = own;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, distance);
      if (lane_ >= distance) end += before;
    }
    lane_bits = __shfl_sync(kAllLanes, end, kWarp - 1);
    if (blocks_ > 0) {
      int bit = end - own;
#pragma unroll
      for (int k = 0; k < kStreamsOfLane; ++k) {
        const int bits = 32 - static_cast<int>(position_[k]);
        put_bits(bit, buffer_[k] >> position_[k], bits);
        bit += bits;
      }
    }
    const int64_t passed = blocks_ > 0 ? ring_.passed() : 0, extra = size_ - passed;
    if (extra < 0 || extra > kTailBytes) {
      whole_ = false;
      return lane_bits;
    }
    const uint8_t* const rest = stream_ + passed;
    for (int at = 4 * lane_; at < extra; at += 4 * kWarp) {
      const int bytes = extra - at < 4 ? static_cast<int>(extra) - at : 4;
      uint32_t word = 0;
      for (int i = 0; i < bytes; ++i) word |= byte_or_zero(bytes_, rest + at + i) << (8 * i);
      put_bits(lane_bits + 8 * at, word, 8 * bytes);
    }
    __syncwarp();
    return lane_bits + 8 * static_cast<int>(extra);
  }

  __device__ __forceinline__ uint32_t tail_window(int bit) const {
    return __funnelshift_r(tail_->words[bit / 32], tail_->words[bit / 32 + 1], bit % 32);
  }

  // The symbols behind the blocks. Every lane decodes a part of the bits from where it guesses a code word to
  // begin, and again from where the lane before it ended, until nobody guessed wrong: codes fall into step
  // after some symbols (Weissenberger and Schmidt 2018).
  __device__ void decode_tail() {
    int lane_bits = 0;
    const int bits = gather_tail(lane_bits), count = static_cast<int>(symbols_ - blocks_ * kInterleavedBlock);
    if (!whole_) return;
    const int part = ceil_div(ceil_div(bits, kWarp), bit_step_) * bit_step_;
    const int part_end = min((lane_ + 1) * part, bits);
    int begin = lane_ * part, end = begin, found = 0;
    for (bool wrong = true;;) {
      if (wrong) {
        end = begin;
        for (found = 0; end < part_end; ++found) end += entry_at(end) >> 8 & 0xff;
      }
      int before = __shfl_up_sync(kAllLanes, end, 1);
      if (lane_ == 0) before = 0;
      wrong = before != begin;
      begin = before;
      if (!__any_sync(kAllLanes, wrong)) break;
    }
    int index = found;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, index, distance);
      if (lane_ >= distance) index += before;
    }
    const int total = __shfl_sync(kAllLanes, index, kWarp - 1);
    index -= found;
    int last = 0;  // where the last symbol ends, on the lane that has it
    for (int at = begin; at < part_end && index < count; ++index) {
      const uint32_t window = tail_window(at), entry = entry_at(at);
      memory_->tail[index] =
          static_cast<uint8_t>((entry & 0xff) | (window >> (entry >> 16 & 0xf) & entry >> 24));
      at += entry >> 8 & 0xff;
      if (index == count - 1) last = at;
    }
    last = largest_of_warp(last);
    __syncwarp();
    whole_ = total >= count && ends_well(last, lane_bits, bits);
  }

  __device__ __forceinline__ uint32_t entry_at(int bit) const {
    return memory_->entries[tail_window(bit) % kInterleavedTableSize];
  }

  static __device__ __forceinline__ int largest_of_warp(int value) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
    }
    return value;
  }

  // Whether the tail's own bytes are as few as can be, and the bits behind it 0.
  __device__ bool ends_well(int last, int lane_bits, int bits) const {
    const int beyond = last > lane_bits ? last - lane_bits : 0;
    if (last > bits || bits != lane_bits + ceil_div(beyond, 8) * 8) return false;
    bool zero = true;
    for (int word = last / 32 + lane_; word < ceil_div(bits, 32); word += kWarp) {
      const uint32_t behind = word == last / 32 ? ~0u << (last % 32) : ~0u;
      zero &= (tail_->words[word] & behind) == 0;
    }
    return !__any_sync(kAllLanes, !zero);
  }

  WordRing ring_;
  StreamMemory* memory_;
  TailMemory* tail_;
  DeviceBytes bytes_;
  const uint8_t* stream_;
  int64_t size_, symbols_, blocks_;
  uint32_t buffer_[kStreamsOfLane], position_[kStreamsOfLane];
  int period_, wide_, single_, bit_step_;
  int lane_;
  bool whole_;
};

}  // namespace pqk::cuda
