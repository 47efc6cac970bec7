// Headers of payloads, read on the device by one thread.
#pragma once

#include "core/cuda/coded_plan.h"
#include "core/cuda/device.h"

namespace pqk::cuda {

// Reads as ByteReader and BitReader do, but goes on with zeros after a fault.
class Header {
 public:
  static constexpr int kNoStep = -1;

  __device__ Header(const uint8_t* data, int64_t size) : data_(data), size_(size) {}

  __device__ void fail(int status) { status_ = status_ == kWhole ? status : status_; }
  __device__ void check(bool right, int status) {
    if (!right) fail(status);
  }
  __device__ int status() const { return status_; }
  __device__ int64_t at() const { return at_; }
  __device__ int64_t remaining() const { return size_ - at_; }

  __device__ int u8() {
    if (at_ < size_) return data_[at_++];
    fail(kTruncated);
    return 0;
  }
  __device__ int64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 35; shift += 7) {
      const int byte = u8();
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte & 0x80) continue;
      check(value <= UINT32_MAX && (byte != 0 || shift == 0), kVarintFault);
      return static_cast<int64_t>(value);
    }
    fail(kVarintFault);
    return 0;
  }
  __device__ int64_t skip(int64_t size) {
    const int64_t begin = at_;
    check(size <= remaining(), kTruncated);
    at_ += size <= remaining() ? size : remaining();
    return begin;
  }

  __device__ void begin_bits() { held_ = 0; }
  __device__ int bit() {
    if (held_ == 0) {
      byte_ = u8();
      held_ = 8;
    }
    return byte_ >> --held_ & 1;
  }
  __device__ void end_bits() { check((byte_ & ((1 << held_) - 1)) == 0, kLengthFault); }
  // As read_step of core/huffman_steps.h.
  __device__ int step(int predecessor, int low, int high) {
    if (!bit()) return predecessor;
    int size = 1;
    if (bit()) {
      if (!bit()) return kNoStep;
      for (size = 2; bit();) {
        if (++size <= high - low) continue;
        fail(kLengthFault);
        return low;
      }
    }
    const int value = bit() ? predecessor - size : predecessor + size;
    if (value >= low && value <= high) return value;
    fail(kLengthFault);
    return low;
  }

 private:
  const uint8_t* data_;
  int64_t size_, at_ = 0;
  int status_ = kWhole;
  int byte_ = 0, held_ = 0;
};

// 0 divides nothing: common_divisor(a, 0) is a.
__device__ inline int common_divisor(int a, int b) {
  while (b != 0) {
    const int rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

}  // namespace pqk::cuda
