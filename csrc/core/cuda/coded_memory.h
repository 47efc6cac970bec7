// Loads from payloads, whose parts begin at any byte, and the ring through which a warp reads a stream of them.
#pragma once

#include "core/cuda/device.h"

namespace pqk::cuda {

// Bytes of device memory that may be read.
struct DeviceBytes {
  const uint8_t* begin;
  const uint8_t* end;
};

__device__ __forceinline__ uint32_t byte_or_zero(const DeviceBytes& bytes, const uint8_t* at) {
  return at >= bytes.begin && at < bytes.end ? *at : 0u;
}

// The word at `at`, a multiple of 4; zeros for bytes that may not be read.
__device__ __forceinline__ uint32_t load_word(const DeviceBytes& bytes, const uint8_t* at) {
  if (at >= bytes.begin && at + 4 <= bytes.end) return *reinterpret_cast<const uint32_t*>(at);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= byte_or_zero(bytes, at + i) << (8 * i);
  return word;
}

// The 16 bytes at `at`, a multiple of 16, likewise.
__device__ __forceinline__ uint4 load_vector(const DeviceBytes& bytes, const uint8_t* at) {
  if (at >= bytes.begin && at + 16 <= bytes.end) return __ldg(reinterpret_cast<const uint4*>(at));
  return make_uint4(load_word(bytes, at), load_word(bytes, at + 4), load_word(bytes, at + 8),
                    load_word(bytes, at + 12));
}

// 128 bits from bit `bit` of `data` on, the first in the least significant place.
__device__ __forceinline__ uint4 load_bits(const DeviceBytes& bytes, const uint8_t* data, int64_t bit) {
  const uint8_t* const at = data + bit / 8;
  const uint32_t skip = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(at) & 15);
  if (skip == 0 && bit % 8 == 0) return load_vector(bytes, at);
  const uint8_t* const aligned = at - (skip & 3);
  const uint32_t shift = 8 * (skip & 3) + static_cast<uint32_t>(bit & 7);
  uint32_t word[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) word[i] = load_word(bytes, aligned + 4 * i);
  return make_uint4(__funnelshift_r(word[0], word[1], shift), __funnelshift_r(word[1], word[2], shift),
                    __funnelshift_r(word[2], word[3], shift), __funnelshift_r(word[3], word[4], shift));
}

// A stream of 16-bit words on its way from device memory to a warp. What is read next lies in shared memory,
// what comes after that in registers: 16 bytes a lane, twice, so that memory has the time in which 1 KiB is
// decoded.
class WordRing {
 public:
  static constexpr int kStep = 16 * kWarp;
  static constexpr int kBytes = 2 * kStep;

  // `ring`: kBytes of shared memory, aligned to 16.
  __device__ __forceinline__ void start(const DeviceBytes& bytes, const uint8_t* stream, uint8_t* ring,
                                        int lane) {
    const uint32_t skip = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(stream) & 15);
    bytes_ = bytes;
    ring_ = ring;
    lane_ = lane;
    odd_ = skip & 1;
    stored_ = 0;
    next_ = static_cast<int64_t>(skip & 14);
    skip_ = next_;
    source_ = stream - skip + 16 * lane;
    near_ = load_vector(bytes_, source_);
    far_ = load_vector(bytes_, source_ + kStep);
  }

  // Makes the next `count` bytes, at most kStep / 2, readable. All lanes call it.
  __device__ __forceinline__ void provide(int count) {
    while (stored_ - next_ < count) store();
  }

  // The word `index` words on.
  __device__ __forceinline__ uint32_t word(int index) const {
    const uint32_t at = (static_cast<uint32_t>(next_) + 2 * static_cast<uint32_t>(index)) % kBytes;
    return *reinterpret_cast<const uint16_t*>(ring_ + at);
  }
  __device__ __forceinline__ void advance(int words) { next_ += 2 * words; }
  // Bytes of the stream that were passed.
  __device__ __forceinline__ int64_t passed() const { return next_ - skip_; }

 private:
  // Words begin at even places: where the stream begins at an odd one, all bytes move down by one.
  __device__ __forceinline__ void store() {
    uint4 value = near_;
    const uint32_t neighbour = __shfl_down_sync(kAllLanes, near_.x, 1);
    const uint32_t first = __shfl_sync(kAllLanes, far_.x, 0);
    if (odd_) {
      const uint32_t behind = lane_ == kWarp - 1 ? first : neighbour;
      value = make_uint4(__byte_perm(near_.x, near_.y, 0x4321), __byte_perm(near_.y, near_.z, 0x4321),
                         __byte_perm(near_.z, near_.w, 0x4321), __byte_perm(near_.w, behind, 0x4321));
    }
    __syncwarp();  // all lanes are done with what is overwritten
    *reinterpret_cast<uint4*>(ring_ + (stored_ + 16 * lane_) % kBytes) = value;
    __syncwarp();
    stored_ += kStep;
    near_ = far_;
    source_ += kStep;
    far_ = load_vector(bytes_, source_ + kStep);
  }

  DeviceBytes bytes_;
  const uint8_t* source_;  // of near_
  uint8_t* ring_;
  int64_t stored_, next_, skip_;
  uint4 near_, far_;
  int lane_;
  uint32_t odd_;
};

}  // namespace pqk::cuda
