#include "core/cuda/fake_quantize.h"

#include "core/cuda/elements.h"
#include "core/cuda/fake_quantize_channel.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
// Packs that a thread has under way at once, to cover the latency of memory.
constexpr int kUnroll = 2;

// Which elements have the same channel: all of them, those of a pack, or each its own.
enum class Channels { kOne, kOfPack, kOfElement };

// Bits of a warp's neighbours, kPack a lane: the lanes whose elements begin a byte write it.
template <int kPack>
__device__ __forceinline__ void store_bits(uint8_t* in_range, uint32_t bits, int64_t at, int64_t numel) {
  if constexpr (kPack == 1) {
    const uint32_t word = __ballot_sync(kAllLanes, static_cast<int>(bits));
    if (at % 8 == 0 && at < numel) in_range[at / 8] = static_cast<uint8_t>(word >> (threadIdx.x % kWarp));
  } else {
#pragma unroll
    for (int width = kPack; width < 8; width *= 2) {
      bits |= __shfl_down_sync(kAllLanes, bits, width / kPack) << width;
    }
    if (at % 8 == 0 && at < numel) in_range[at / 8] = static_cast<uint8_t>(bits);
  }
}

template <class Storage, int kPack, Channels kChannels, bool kMask, bool kBits>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(FakeQuantizeParams p, ChannelLayout layout, const Storage* input, Storage* output,
                   uint8_t* in_range) {
  using T = typename Compute<Storage>::Type;
  const int64_t numel = layout.numel();
  Channel<T> channel;
  if constexpr (kChannels == Channels::kOne) channel = Channel<T>(p, 0);
  const int64_t step = int64_t{kThreads} * kPack;
  for (int64_t block = blockIdx.x; block * kUnroll * step < numel; block += gridDim.x) {
    const int64_t first = block * kUnroll * step + threadIdx.x * kPack;
    Pack<Storage, kPack> x[kUnroll];
    Pack<uint8_t, kPack> mask[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      x[k] = load_pack<kPack>(input, first + k * step, numel, Storage{});
      if constexpr (kMask) mask[k] = load_pack<kPack>(p.mask, first + k * step, numel, uint8_t{0});
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t at = first + k * step;
      if constexpr (kChannels == Channels::kOfPack) {
        channel = Channel<T>(p, at < numel ? layout.channel_of(at) : 0);
      }
      Pack<Storage, kPack> y;
      uint32_t bits = 0;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if constexpr (kChannels == Channels::kOfElement) {
          channel = Channel<T>(p, at + i < numel ? layout.channel_of(at + i) : 0);
        }
        const T rounded = round_even(to_compute(x[k].values[i]) * channel.inv_scale);
        const T clamped = clamp(rounded, channel.low, channel.high);
        const bool keep = at + i < numel && (!kMask || mask[k].values[i] != 0);
        // Adding 0 makes -0 the 0 that a sum with the zero point would have made it.
        const T value = (clamped + T(0)) * channel.scale;
        from_compute(keep ? value : T(0), y.values[i]);
        if (kBits && keep && clamped == rounded) bits |= 1u << i;
      }
      store_pack<kPack>(output, at, numel, y);
      if constexpr (kBits) store_bits<kPack>(in_range, bits, at, numel);
    }
  }
}

template <class Storage, int kPack, Channels kChannels>
const char* launch_forward(const FakeQuantizeParams& p, const Storage* input, Storage* output,
                           uint8_t* in_range) {
  const int64_t blocks = ceil_div(p.view.numel(), int64_t{kThreads} * kPack * kUnroll);
  const auto run = [&](auto kernel) {
    return launch(kernel, grid_size(blocks), kThreads, 0, p.stream, p, ChannelLayout(p.view), input, output,
                  in_range);
  };
  if (p.mask == nullptr) {
    return in_range == nullptr ? run(forward_kernel<Storage, kPack, kChannels, false, false>)
                               : run(forward_kernel<Storage, kPack, kChannels, false, true>);
  }
  return in_range == nullptr ? run(forward_kernel<Storage, kPack, kChannels, true, false>)
                             : run(forward_kernel<Storage, kPack, kChannels, true, true>);
}

template <class Storage>
struct Forward {
  static const char* run(const FakeQuantizeParams& p, const void* input, void* output, uint8_t* in_range) {
    constexpr int kPack = elements_of_16_bytes(sizeof(Storage));
    const auto* x = static_cast<const Storage*>(input);
    auto* y = static_cast<Storage*>(output);
    if (!allows_packs<Storage>(p, input, output, nullptr)) {
      return launch_forward<Storage, 1, Channels::kOfElement>(p, x, y, in_range);
    }
    if (p.view.channels == 1) return launch_forward<Storage, kPack, Channels::kOne>(p, x, y, in_range);
    return p.view.inner % kPack == 0 ? launch_forward<Storage, kPack, Channels::kOfPack>(p, x, y, in_range)
                                     : launch_forward<Storage, kPack, Channels::kOfElement>(p, x, y, in_range);
  }
};

// Elements as bits; kPack of them are 16 bytes, or 1 where a tensor is not so aligned.
template <class Bits, int kPack>
__global__ void __launch_bounds__(kThreads)
    straight_through_kernel(const Bits* grad_output, const uint8_t* in_range, Bits* grad_input, int64_t numel) {
  const int64_t step = int64_t{kThreads} * kPack;
  for (int64_t block = blockIdx.x; block * kUnroll * step < numel; block += gridDim.x) {
    const int64_t first = block * kUnroll * step + threadIdx.x * kPack;
    Pack<Bits, kPack> gradient[kUnroll];
    uint32_t bits[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t at = first + k * step;
      gradient[k] = load_pack<kPack>(grad_output, at, numel, Bits{0});
      bits[k] = at < numel ? static_cast<uint32_t>(in_range[at / 8]) >> (at % 8) : 0;
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if ((bits[k] >> i & 1) == 0) gradient[k].values[i] = 0;
      }
      store_pack<kPack>(grad_input, first + k * step, numel, gradient[k]);
    }
  }
}

template <class Bits>
const char* launch_straight_through(void* stream, const StraightThrough& job) {
  constexpr int kPack = elements_of_16_bytes(sizeof(Bits));
  const bool packs = is_aligned(job.grad_output, 16) && is_aligned(job.grad_input, 16);
  const auto run = [&](auto kernel, int pack) {
    return launch(kernel, grid_size(ceil_div(job.numel, int64_t{kThreads} * kUnroll * pack)), kThreads, 0,
                  stream, static_cast<const Bits*>(job.grad_output), job.in_range,
                  static_cast<Bits*>(job.grad_input), job.numel);
  };
  return packs ? run(straight_through_kernel<Bits, kPack>, kPack) : run(straight_through_kernel<Bits, 1>, 1);
}

}  // namespace

const char* fake_quantize(const FakeQuantizeParams& p, const void* input, void* output, uint8_t* in_range) {
  if (p.view.numel() == 0) return nullptr;
  const DeviceGuard guard(p.device);
  return for_float_type<Forward>(p.type, p, input, output, in_range);
}

const char* straight_through(int device, void* stream, const StraightThrough& job) {
  if (job.numel == 0) return nullptr;
  const DeviceGuard guard(device);
  switch (job.element_size) {
    case 2:
      return launch_straight_through<uint16_t>(stream, job);
    case 4:
      return launch_straight_through<uint32_t>(stream, job);
    case 8:
      return launch_straight_through<uint64_t>(stream, job);
  }
  return "unknown element size";
}

}  // namespace pqk::cuda
