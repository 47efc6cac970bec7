#include "core/cuda/masked_weight.h"

#include "core/cuda/elements.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
// Packs that a thread has under way at once, to cover the latency of memory.
constexpr int kUnroll = 2;

// Elements as bits; kPack of them are 16 bytes, or 1 where a tensor is not so aligned.
template <class Bits, int kPack>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const Bits* weight, const uint8_t* mask, Bits* output, int64_t count) {
  const int64_t step = int64_t{kThreads} * kPack;
  for (int64_t block = blockIdx.x; block * kUnroll * step < count; block += gridDim.x) {
    const int64_t first = block * kUnroll * step + threadIdx.x * kPack;
    Pack<Bits, kPack> values[kUnroll];
    Pack<uint8_t, kPack> keep[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      values[k] = load_pack<kPack>(weight, first + k * step, count, Bits{0});
      keep[k] = load_pack<kPack>(mask, first + k * step, count, uint8_t{0});
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (keep[k].values[i] == 0) values[k].values[i] = 0;
      }
      store_pack<kPack>(output, first + k * step, count, values[k]);
    }
  }
}

template <class Bits>
const char* run(void* stream, const MaskParams& p) {
  constexpr int kPack = elements_of_16_bytes(sizeof(Bits));
  const bool packs = is_aligned(p.weight, 16) && is_aligned(p.output, 16) && is_aligned(p.mask, kPack);
  const auto start = [&](auto kernel, int pack) {
    return launch(kernel, grid_size(ceil_div(p.count, int64_t{kThreads} * kUnroll * pack)), kThreads, 0, stream,
                  static_cast<const Bits*>(p.weight), p.mask, static_cast<Bits*>(p.output), p.count);
  };
  return packs ? start(mask_kernel<Bits, kPack>, kPack) : start(mask_kernel<Bits, 1>, 1);
}

}  // namespace

const char* mask_weight(int device, void* stream, const MaskParams& p) {
  if (p.count == 0) return nullptr;
  const DeviceGuard guard(device);
  switch (p.element_bytes) {
    case 2:
      return run<uint16_t>(stream, p);
    case 4:
      return run<uint32_t>(stream, p);
    case 8:
      return run<uint64_t>(stream, p);
  }
  return "unknown element size";
}

}  // namespace pqk::cuda
