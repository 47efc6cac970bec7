// Gradients of fake-quantize. One pass over the tensors writes the input's gradient and pairs of partial sums;
// a second adds a channel's pairs. Orders are fixed, so that results repeat to the bit.
#include "core/cuda/elements.h"
#include "core/cuda/fake_quantize.h"
#include "core/cuda/fake_quantize_channel.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
// The second pass: a warp a channel, or a large block where channels have more pairs than that.
constexpr int kManyPairs = 64, kManyThreads = 1024, kSumThreads = 256;

template <class T>
struct Sums {
  T scale = 0, zero_point = 0;
};

// Adds to the sums and returns the input's gradient.
template <class T>
__device__ __forceinline__ T gradient(T x, T dy, bool keep, const Channel<T>& channel, Sums<T>& sums) {
  const T scaled = x * channel.inv_scale;
  const T rounded = round_even(scaled);
  const T clamped = clamp(rounded, channel.low, channel.high);
  const bool inside = keep && clamped == rounded;
  // A NaN is neither inside nor outside.
  const bool outside = keep && (clamped < rounded || clamped > rounded);
  const T slope = inside ? clamped - scaled : clamped;
  if (inside || outside) sums.scale += dy * slope;
  if (outside) sums.zero_point += dy;
  return inside ? dy : T(0);
}

bool is_short(const ChannelView& view) { return view.channels > 1 && view.inner < kMinBroadcast; }

// Pairs of partial sums a channel: slices of its elements, or (row groups x columns) for short channels.
int64_t slots_a_channel(const ChannelView& view) {
  if (is_short(view)) return ceil_div(view.outer, kSumRows) * view.inner;
  return ceil_div(view.outer * view.inner, kSumChunk);
}

template <class Storage, int kPack>
struct Packs {
  using T = typename Compute<Storage>::Type;
  Pack<Storage, kPack> x, dy;
  Pack<uint8_t, kPack> mask;

  __device__ __forceinline__ void load(const FakeQuantizeParams& p, const FakeQuantizeGradients& job,
                                       int64_t at, int64_t numel) {
    x = load_pack<kPack>(static_cast<const Storage*>(job.input), at, numel, Storage{});
    dy = load_pack<kPack>(static_cast<const Storage*>(job.grad_output), at, numel, Storage{});
    if (p.mask != nullptr) mask = load_pack<kPack>(p.mask, at, numel, uint8_t{0});
  }
  // Writes the input's gradient and adds to the sums. Each element has channel and sums of its own (kStride 1),
  // or all of them the same (0).
  template <int kStride>
  __device__ __forceinline__ void finish(const FakeQuantizeParams& p, const FakeQuantizeGradients& job,
                                         int64_t at, int64_t numel, const Channel<T>* channels, Sums<T>* sums) {
    Pack<Storage, kPack> dx;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const bool keep = at + i < numel && (p.mask == nullptr || mask.values[i] != 0);
      from_compute(gradient<T>(to_compute(x.values[i]), to_compute(dy.values[i]), keep, channels[kStride * i],
                               sums[kStride * i]),
                   dx.values[i]);
    }
    store_pack<kPack>(static_cast<Storage*>(job.grad_input), at, numel, dx);
  }
};

// Work item: kSumChunk elements of one channel, counted over (outer, inner). Packs lie in one row; only a
// single channel may end inside one.
template <class Storage, int kPack>
__global__ void __launch_bounds__(kThreads)
    backward_by_slice(FakeQuantizeParams p, ChannelLayout layout, FakeQuantizeGradients job, int64_t slots) {
  using T = typename Compute<Storage>::Type;
  constexpr int kUnroll = 2;
  constexpr int64_t kStep = int64_t{kThreads} * kPack;
  const ChannelView view = layout.view;
  const int64_t elements = view.outer * view.inner;
  for (int64_t item = blockIdx.x; item < view.channels * slots; item += gridDim.x) {
    const int64_t c = item / slots, first = item % slots * kSumChunk;
    const int64_t last = first + kSumChunk < elements ? first + kSumChunk : elements;
    const Channel<T> channel(p, c);
    Sums<T> sums;
    for (int64_t begin = first + threadIdx.x * kPack; begin < last; begin += kUnroll * kStep) {
      Packs<Storage, kPack> packs[kUnroll];
      int64_t at[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        const int64_t j = begin + k * kStep;
        at[k] = j;
        if (view.channels > 1) {
          at[k] += (layout.inner.divide(j, layout.narrow) * (view.channels - 1) + c) * view.inner;
        }
        if (j < last) packs[k].load(p, job, at[k], layout.numel());
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (begin + k * kStep >= last) continue;
        packs[k].template finish<0>(p, job, at[k], layout.numel(), &channel, &sums);
      }
    }
    double totals[2] = {sums.scale, sums.zero_point};
    block_sums<kThreads>(totals, threadIdx.x);
    if (threadIdx.x != 0) continue;
    job.partial[2 * item] = totals[0];
    job.partial[2 * item + 1] = totals[1];
  }
}

// How blocks lie over the (outer, channels * inner) matrix of short channels.
struct Tiling {
  int64_t columns;  // of a block, a pack a thread
  int64_t blocks;   // that cover a row
  int64_t groups;   // of kSumRows rows
};

// Work item: kSumRows rows by blockDim.x packs; a thread keeps to its columns.
template <class Storage, int kPack>
__global__ void __launch_bounds__(kThreads)
    backward_by_column(FakeQuantizeParams p, ChannelView view, FakeQuantizeGradients job, Tiling tiling) {
  using T = typename Compute<Storage>::Type;
  const int64_t row_length = view.channels * view.inner;
  // [kind][row of the block][column]
  double* shared = dynamic_shared<double>();
  const int kind_pitch = static_cast<int>(blockDim.y * tiling.columns);
  const int thread = threadIdx.x + threadIdx.y * blockDim.x;
  for (int64_t item = blockIdx.x; item < tiling.blocks * tiling.groups; item += gridDim.x) {
    const int64_t group = item / tiling.blocks, first_column = item % tiling.blocks * tiling.columns;
    const int64_t column = first_column + threadIdx.x * kPack;
    const int64_t end = (group + 1) * kSumRows < view.outer ? (group + 1) * kSumRows : view.outer;
    Channel<T> channels[kPack];
    Sums<T> sums[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      channels[i] = Channel<T>(p, column < row_length ? (column + i) / view.inner : 0);
#pragma unroll 2
    for (int64_t row = group * kSumRows + threadIdx.y; column < row_length && row < end; row += blockDim.y) {
      const int64_t at = row * row_length + column;
      Packs<Storage, kPack> packs;
      packs.load(p, job, at, view.numel());
      packs.template finish<1>(p, job, at, view.numel(), channels, sums);
    }
    double* own = shared + threadIdx.y * tiling.columns + threadIdx.x * kPack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      own[i] = sums[i].scale;
      own[kind_pitch + i] = sums[i].zero_point;
    }
    __syncthreads();
    for (int i = thread; i < 2 * tiling.columns; i += kThreads) {
      const int kind = i >= tiling.columns;
      const int64_t local = i - kind * tiling.columns, of_row = first_column + local;
      if (of_row >= row_length) continue;
      double total = 0;
      for (unsigned row = 0; row < blockDim.y; ++row) {
        total += shared[kind * kind_pitch + row * tiling.columns + local];
      }
      const int64_t c = of_row / view.inner;
      const int64_t slot = (c * tiling.groups + group) * view.inner + (of_row - c * view.inner);
      job.partial[2 * slot + kind] = total;
    }
    __syncthreads();
  }
}

template <class T>
__device__ void finish_channel(const FakeQuantizeParams& p, const FakeQuantizeGradients& job, int64_t c,
                               const double (&totals)[2]) {
  static_cast<T*>(job.grad_scale)[c] = static_cast<T>(totals[0] * job.grad_factor);
  if (job.grad_zero_point == nullptr) return;
  const double scale = static_cast<const T*>(p.scale)[c];
  static_cast<T*>(job.grad_zero_point)[c] = static_cast<T>(totals[1] * -scale * job.grad_factor);
}

// The part of a channel's pairs that falls to one of so many threads.
__device__ inline void add_pairs(const double* partial, int64_t slots, int thread, int threads,
                                 double (&totals)[2]) {
  const auto* pairs = reinterpret_cast<const double2*>(partial);
#pragma unroll 4
  for (int64_t i = thread; i < slots; i += threads) {
    const double2 pair = pairs[i];
    totals[0] += pair.x;
    totals[1] += pair.y;
  }
}

template <class T>
__global__ void __launch_bounds__(kManyThreads)
    sum_by_block(FakeQuantizeParams p, FakeQuantizeGradients job, int64_t slots) {
  for (int64_t c = blockIdx.x; c < p.view.channels; c += gridDim.x) {
    double totals[2] = {0, 0};
    add_pairs(job.partial + 2 * c * slots, slots, threadIdx.x, kManyThreads, totals);
    block_sums<kManyThreads>(totals, threadIdx.x);
    if (threadIdx.x == 0) finish_channel<T>(p, job, c, totals);
  }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_by_warp(FakeQuantizeParams p, FakeQuantizeGradients job, int64_t slots) {
  constexpr int kWarps = kSumThreads / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int64_t c = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp; c < p.view.channels;
       c += int64_t{gridDim.x} * kWarps) {
    double totals[2] = {0, 0};
    add_pairs(job.partial + 2 * c * slots, slots, lane, kWarp, totals);
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2) {
      totals[0] += __shfl_down_sync(kAllLanes, totals[0], width);
      totals[1] += __shfl_down_sync(kAllLanes, totals[1], width);
    }
    if (lane == 0) finish_channel<T>(p, job, c, totals);
  }
}

template <class Storage, int kPack>
const char* launch_by_column(const FakeQuantizeParams& p, const FakeQuantizeGradients& job) {
  const int64_t packs = ceil_div(p.view.channels * p.view.inner, int64_t{kPack});
  unsigned width = 4;
  while (width < kWarp && width < packs) width *= 2;
  const dim3 block(width, kThreads / width);
  const int64_t columns = int64_t{width} * kPack;
  const Tiling tiling{columns, ceil_div(packs, int64_t{width}), ceil_div(p.view.outer, kSumRows)};
  const size_t shared_bytes = 2 * block.y * static_cast<size_t>(columns) * sizeof(double);
  return launch(backward_by_column<Storage, kPack>, grid_size(tiling.blocks * tiling.groups), block,
                shared_bytes, p.stream, p, p.view, job, tiling);
}

template <class Storage>
struct Backward {
  static const char* run(const FakeQuantizeParams& p, const FakeQuantizeGradients& job) {
    using T = typename Compute<Storage>::Type;
    constexpr int kPack = elements_of_16_bytes(sizeof(Storage));
    const bool aligned = allows_packs<Storage>(p, job.input, job.grad_output, job.grad_input);
    const int64_t slots = slots_a_channel(p.view);
    const char* error = nullptr;
    if (p.view.numel() > 0 && is_short(p.view)) {
      const bool packs = aligned && p.view.channels * p.view.inner % kPack == 0;
      error = packs ? launch_by_column<Storage, kPack>(p, job) : launch_by_column<Storage, 1>(p, job);
    } else if (p.view.numel() > 0) {
      const bool packs = aligned && (p.view.channels == 1 || p.view.inner % kPack == 0);
      const auto kernel = packs ? backward_by_slice<Storage, kPack> : backward_by_slice<Storage, 1>;
      error = launch(kernel, grid_size(p.view.channels * slots), kThreads, 0, p.stream, p,
                     ChannelLayout(p.view), job, slots);
    }
    if (error != nullptr || p.view.channels == 0) return error;
    if (slots >= kManyPairs) {
      return launch(sum_by_block<T>, grid_size(p.view.channels), kManyThreads, 0, p.stream, p, job, slots);
    }
    return launch(sum_by_warp<T>, grid_size(ceil_div(p.view.channels, int64_t{kSumThreads / kWarp})),
                  kSumThreads, 0, p.stream, p, job, slots);
  }
};

}  // namespace

int64_t num_partials(const ChannelView& view) { return 2 * view.channels * slots_a_channel(view); }

const char* fake_quantize_backward(const FakeQuantizeParams& p, const FakeQuantizeGradients& job) {
  const DeviceGuard guard(p.device);
  return for_float_type<Backward>(p.type, p, job);
}

}  // namespace pqk::cuda
