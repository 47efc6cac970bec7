#include "core/cuda/quantize.h"

#include "core/cuda/elements.h"
#include "core/numerics.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
// Elements a thread moves at once: 16 bytes of floats and 4 of codes, so that a warp's are neighbours on both
// sides.
constexpr int kFloats = 4;
// So often before it waits for the first.
constexpr int kUnroll = 4;

struct Parameters {
  __device__ Parameters(const float* scales, const int32_t* zero_points, int64_t channel)
      : scale(scales[channel]), zero_point(static_cast<float>(zero_points[channel])) {}
  float scale, zero_point;
};

// For the packs of this thread, kUnroll at a time: first load(k, at) for all of them, then store(k, at).
template <int kPack, class Load, class Store>
__device__ __forceinline__ void for_packs(int64_t numel, const Load& load, const Store& store) {
  const int64_t step = int64_t{kThreads} * kPack;
  for (int64_t block = blockIdx.x; block * kUnroll * step < numel; block += gridDim.x) {
    const int64_t first = block * kUnroll * step + threadIdx.x * kPack;
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) load(k, first + k * step);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (first + k * step < numel) store(k, first + k * step);
    }
  }
}

// kPack elements a thread: 4 where all tensors are aligned, else 1. With kShared they have one channel.
template <class Code, int kPack, bool kShared>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeParams p, ChannelLayout layout) {
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  const int64_t numel = layout.numel();
  Pack<float, kPack> x[kUnroll];
  for_packs<kPack>(
      numel, [&](int k, int64_t at) { x[k] = load_pack<kPack>(p.input, at, numel, 0.0f); },
      [&](int k, int64_t at) {
        Parameters channel(p.scale, p.zero_point, layout.channel_of(at));
        float inv_scale = 1.0f / channel.scale;
        Pack<Code, kPack> codes;
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          if (!kShared && i > 0 && at + i < numel) {
            channel = Parameters(p.scale, p.zero_point, layout.channel_of(at + i));
            inv_scale = 1.0f / channel.scale;
          }
          const float value = x[k].values[i];
          const float code =
              value != value ? low : quantize_value(value, inv_scale, channel.zero_point, low, high);
          codes.values[i] = static_cast<Code>(static_cast<int>(code));
        }
        store_pack<kPack>(static_cast<Code*>(p.output), at, numel, codes);
      });
}

template <class Code, int kPack, bool kShared>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(DequantizeParams p, ChannelLayout layout) {
  const int64_t numel = layout.numel();
  Pack<Code, kPack> codes[kUnroll];
  for_packs<kPack>(
      numel,
      [&](int k, int64_t at) {
        codes[k] = load_pack<kPack>(static_cast<const Code*>(p.input), at, numel, Code{0});
      },
      [&](int k, int64_t at) {
        Parameters channel(p.scale, p.zero_point, layout.channel_of(at));
        Pack<float, kPack> y;
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          if (!kShared && i > 0 && at + i < numel) {
            channel = Parameters(p.scale, p.zero_point, layout.channel_of(at + i));
          }
          y.values[i] =
              dequantize_value(static_cast<float>(codes[k].values[i]), channel.scale, channel.zero_point);
        }
        store_pack<kPack>(p.output, at, numel, y);
      });
}

template <class Params>
bool allows_packs(const Params& p) {
  return is_aligned(p.input, 16) && is_aligned(p.output, 16);
}

template <class Params>
bool shares_channels(const Params& p) {
  return p.view.channels == 1 || p.view.inner % kFloats == 0;
}

template <class Kernel, class Params>
const char* run(Kernel kernel, int pack, const Params& p, void* stream) {
  const int64_t blocks = ceil_div(p.view.numel(), int64_t{kThreads} * kUnroll * pack);
  return launch(kernel, grid_size(blocks), kThreads, 0, stream, p, ChannelLayout(p.view));
}

template <class Code>
const char* quantize_as(const QuantizeParams& p, void* stream) {
  if (!allows_packs(p)) return run(quantize_kernel<Code, 1, true>, 1, p, stream);
  return shares_channels(p) ? run(quantize_kernel<Code, kFloats, true>, kFloats, p, stream)
                            : run(quantize_kernel<Code, kFloats, false>, kFloats, p, stream);
}

template <class Code>
const char* dequantize_as(const DequantizeParams& p, void* stream) {
  if (!allows_packs(p)) return run(dequantize_kernel<Code, 1, true>, 1, p, stream);
  return shares_channels(p) ? run(dequantize_kernel<Code, kFloats, true>, kFloats, p, stream)
                            : run(dequantize_kernel<Code, kFloats, false>, kFloats, p, stream);
}

}  // namespace

const char* quantize(int device, void* stream, const QuantizeParams& p) {
  if (p.view.numel() == 0) return nullptr;
  const DeviceGuard guard(device);
  return p.is_signed ? quantize_as<int8_t>(p, stream) : quantize_as<uint8_t>(p, stream);
}

const char* dequantize(int device, void* stream, const DequantizeParams& p) {
  if (p.view.numel() == 0) return nullptr;
  const DeviceGuard guard(device);
  return p.is_signed ? dequantize_as<int8_t>(p, stream) : dequantize_as<uint8_t>(p, stream);
}

}  // namespace pqk::cuda
