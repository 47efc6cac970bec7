// How kernels read and write tensors: element types with the type they are computed in, 16 bytes at a time, and
// the channel of an element.
#pragma once

#include "core/cuda/device.h"
#include "core/quantize.h"

namespace pqk::cuda {

struct BFloat16 {
  uint16_t bits;
};

// What elements of a type are computed in.
template <class Storage>
struct Compute {
  using Type = Storage;
};
template <>
struct Compute<BFloat16> {
  using Type = float;
};

__device__ inline float to_compute(float value) { return value; }
__device__ inline double to_compute(double value) { return value; }
__device__ inline float to_compute(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

__device__ inline void from_compute(float value, float& out) { out = value; }
__device__ inline void from_compute(double value, double& out) { out = value; }
// Half to even; a NaN is torch's.
__device__ inline void from_compute(float value, BFloat16& out) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

__device__ inline float round_even(float value) { return rintf(value); }
__device__ inline double round_even(double value) { return rint(value); }

// As in numerics.h: NaN stays NaN.
template <class T>
__device__ inline T clamp(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

// kCount neighbours, moved by one instruction where they are at most 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

// `at` has a Pack's alignment where kCount neighbours are read. Those from `limit` on are `fill`.
template <int kCount, class T>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* base, int64_t at, int64_t limit, T fill) {
  if (at + kCount <= limit) return *reinterpret_cast<const Pack<T, kCount>*>(base + at);
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = at + i < limit ? base[at + i] : fill;
  return pack;
}

template <int kCount, class T>
__device__ __forceinline__ void store_pack(T* base, int64_t at, int64_t limit, const Pack<T, kCount>& pack) {
  if (at + kCount <= limit) {
    *reinterpret_cast<Pack<T, kCount>*>(base + at) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (at + i < limit) base[at + i] = pack.values[i];
  }
}

// Elements of so many bytes in 16 bytes.
constexpr int elements_of_16_bytes(size_t bytes) { return static_cast<int>(16 / bytes); }

// Whether kCount neighbours can be moved at once; nullptr always can.
inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Division by a constant: a multiplication wherever the dividend has 31 bits (narrow).
struct Divisor {
  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(divisor) {
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(value)) ++shift;
    // Wide divisors are never used with narrow dividends.
    if (shift > 31) return;
    magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - value)) / value + 1);
  }
  __device__ int64_t divide(int64_t n, bool narrow) const {
    if (!narrow) return n / value;
    const uint32_t low = static_cast<uint32_t>(n);
    return static_cast<int64_t>((static_cast<uint64_t>(__umulhi(low, magic)) + low) >> shift);
  }
  int64_t value = 1;
  uint32_t magic = 0;
  int shift = 0;
};

// A ChannelView for kernels.
struct ChannelLayout {
  explicit ChannelLayout(const ChannelView& v)
      : view(v),
        inner(v.inner < 1 ? 1 : v.inner),
        channels(v.channels < 1 ? 1 : v.channels),
        narrow(v.numel() < (int64_t{1} << 31)) {}
  __device__ int64_t numel() const { return view.numel(); }
  __device__ int64_t channel_of(int64_t element) const {
    const int64_t row = inner.divide(element, narrow);
    return row - channels.divide(row, narrow) * view.channels;
  }
  ChannelView view;
  Divisor inner, channels;
  bool narrow;
};

// Blocks of a grid over so many items; kernels with more of them loop.
inline unsigned grid_size(int64_t items) {
  constexpr int64_t kMaxBlocks = int64_t{1} << 20;
  return static_cast<unsigned>(items < kMaxBlocks ? items : kMaxBlocks);
}

// The sum over the block's threads, in an order that depends on its shape alone; in thread 0. All threads call.
template <int kThreads, int kSums>
__device__ void block_sums(double (&sums)[kSums], int thread) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
  __shared__ double of_warps[kSums][kThreads / kWarp];
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2) {
      sums[i] += __shfl_down_sync(kAllLanes, sums[i], width);
    }
    if (thread % kWarp == 0) of_warps[i][thread / kWarp] = sums[i];
  }
  __syncthreads();
  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      for (int warp = 1; warp < kThreads / kWarp; ++warp) sums[i] += of_warps[i][warp];
    }
  }
  __syncthreads();
}

}  // namespace pqk::cuda
