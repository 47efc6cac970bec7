#include "core/cuda/fake_quantize.h"

#include <algorithm>

#include "core/cuda/device.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
// Elements a thread has in flight at once, to cover the latency of memory.
constexpr int kUnroll = 4;
constexpr int64_t kElementsPerBlock = kThreads * kUnroll;
constexpr int kMaxBlocks = 1 << 16;
// The two-dimensional blocks for channels with few neighbouring elements.
constexpr int kColumns = 32;
constexpr int kRowThreads = 8;

struct BFloat16 {
  uint16_t bits;
};

template <class Storage>
struct Compute {
  using Type = Storage;
};
template <>
struct Compute<BFloat16> {
  using Type = float;
};

__device__ float load(const float* at) { return *at; }
__device__ double load(const double* at) { return *at; }
__device__ float load(const BFloat16* at) { return __uint_as_float(static_cast<uint32_t>(at->bits) << 16); }
__device__ void store(float* at, float value) { *at = value; }
__device__ void store(double* at, double value) { *at = value; }
__device__ void store(BFloat16* at, float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  at->bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}
__device__ float round_even(float value) { return rintf(value); }
__device__ double round_even(double value) { return rint(value); }

// Which channel an element belongs to: a multiplication instead of a division wherever 31 bits are enough.
struct Divisor {
  explicit Divisor(int64_t value) : value(value) {
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(value)) ++shift;
    magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - value)) / value + 1);
  }
  __device__ int64_t divide(int64_t n, bool narrow) const {
    if (!narrow) return n / value;
    const uint32_t low = static_cast<uint32_t>(n);
    return (static_cast<uint64_t>(__umulhi(low, magic)) + low) >> shift;
  }
  int64_t value;
  uint32_t magic = 0;
  int shift = 0;
};

struct Layout {
  explicit Layout(const ChannelView& v)
      : view(v),
        inner(std::max<int64_t>(1, v.inner)),
        channels(v.channels),
        narrow(v.numel() < (int64_t{1} << 31)) {}
  __device__ int64_t channel_of(int64_t element) const {
    if (view.channels == 1) return 0;
    const int64_t row = inner.divide(element, narrow);
    return row - channels.divide(row, narrow) * view.channels;
  }
  ChannelView view;
  Divisor inner, channels;
  bool narrow;
};

template <class T>
struct Channel {
  __device__ Channel(const FakeQuantizeParams& p, int64_t c) : scale(static_cast<const T*>(p.scale)[c]) {
    inv_scale = T(1) / scale;
    zero_point = p.zero_point_is_float ? round_even(static_cast<const T*>(p.zero_point)[c])
                                       : static_cast<T>(static_cast<const int32_t*>(p.zero_point)[c]);
  }
  T scale, inv_scale, zero_point;
};

template <class T>
__device__ T clamp(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

template <class Storage>
__global__ void forward_kernel(FakeQuantizeParams p, Layout layout, const Storage* input, Storage* output,
                               uint8_t* in_range) {
  using T = typename Compute<Storage>::Type;
  const T low = static_cast<T>(p.quant_min), high = static_cast<T>(p.quant_max);
  const int64_t numel = layout.view.outer * layout.view.channels * layout.view.inner;
  const int64_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementsPerBlock;
  // A warp takes 32 neighbours at a time, whose bits make one word.
  for (int64_t block = blockIdx.x * kElementsPerBlock; block < numel; block += stride) {
    const int64_t first = block + warp * kWarp * kUnroll;
    T x[kUnroll];
    bool keep[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t i = first + k * kWarp + lane;
      x[k] = i < numel ? load(input + i) : T(0);
      keep[k] = i < numel && (p.mask == nullptr || p.mask[i] != 0);
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t i = first + k * kWarp + lane;
      const Channel<T> channel(p, i < numel ? layout.channel_of(i) : 0);
      const T shifted = round_even(x[k] * channel.inv_scale) + channel.zero_point;
      const T value = (clamp(shifted, low, high) - channel.zero_point) * channel.scale;
      if (i < numel) store(output + i, keep[k] ? value : T(0));
      if (in_range == nullptr) continue;
      const uint32_t word = __ballot_sync(0xffffffffu, keep[k] && shifted >= low && shifted <= high);
      const int64_t byte = (first + k * kWarp) / 8 + lane;
      if (lane < 4 && byte * 8 < numel) in_range[byte] = static_cast<uint8_t>(word >> (8 * lane));
    }
  }
}

template <class T>
struct Terms {
  T grad_input, scale, zero_point;
};

template <class T>
__device__ Terms<T> gradient(T x, T dy, bool keep, const Channel<T>& channel, T low, T high) {
  const T scaled = x * channel.inv_scale;
  const T rounded = round_even(scaled);
  const T shifted = rounded + channel.zero_point;
  const bool inside = keep && shifted >= low && shifted <= high;
  const bool counts = keep && shifted == shifted;
  const T slope = inside ? rounded - scaled : clamp(shifted, low, high) - channel.zero_point;
  return {inside ? dy : T(0), counts ? dy * slope : T(0), counts && !inside ? dy : T(0)};
}

// The sum over the block, in a fixed order; in thread 0 alone.
template <int kBlockThreads>
__device__ double block_sum(double value, int thread) {
  __shared__ double shared[kBlockThreads];
  shared[thread] = value;
  for (int width = kBlockThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width) shared[thread] += shared[thread + width];
  }
  const double sum = shared[0];
  __syncthreads();
  return sum;
}

bool is_short(const ChannelView& view) { return view.channels > 1 && view.inner < kMinBroadcast; }
// Pairs of partial sums a channel: slices of its elements, or (row groups x columns) for short channels.
int64_t slots_a_channel(const ChannelView& view) {
  if (is_short(view)) return ceil_div(view.outer, kSumRows) * view.inner;
  return ceil_div(view.outer * view.inner, kSumChunk);
}

// Work item: kSumChunk elements of one channel, counted over (outer, inner).
template <class Storage>
__global__ void backward_by_slice(FakeQuantizeParams p, Layout layout, FakeQuantizeGradients job,
                                  int64_t slots) {
  using T = typename Compute<Storage>::Type;
  const T low = static_cast<T>(p.quant_min), high = static_cast<T>(p.quant_max);
  const ChannelView view = layout.view;
  const int64_t elements = view.outer * view.inner;
  for (int64_t item = blockIdx.x; item < view.channels * slots; item += gridDim.x) {
    const int64_t c = item / slots, first = item % slots * kSumChunk;
    const int64_t last = first + kSumChunk < elements ? first + kSumChunk : elements;
    const Channel<T> channel(p, c);
    T scale_sum = 0, zero_point_sum = 0;
#pragma unroll 4
    for (int64_t j = first + threadIdx.x; j < last; j += kThreads) {
      const int64_t outer = layout.inner.divide(j, layout.narrow);
      const int64_t i = j + (outer * (view.channels - 1) + c) * view.inner;
      const Terms<T> terms = gradient<T>(load(static_cast<const Storage*>(job.input) + i),
                                         load(static_cast<const Storage*>(job.grad_output) + i),
                                         p.mask == nullptr || p.mask[i] != 0, channel, low, high);
      store(static_cast<Storage*>(job.grad_input) + i, terms.grad_input);
      scale_sum += terms.scale;
      zero_point_sum += terms.zero_point;
    }
    const double total = block_sum<kThreads>(scale_sum, threadIdx.x);
    const double zero_point_total = block_sum<kThreads>(zero_point_sum, threadIdx.x);
    if (threadIdx.x != 0) continue;
    job.partial[2 * item] = total;
    job.partial[2 * item + 1] = zero_point_total;
  }
}

// Work item: kSumRows rows by kColumns columns of the (outer, channels * inner) matrix; a thread keeps to its
// column.
template <class Storage>
__global__ void backward_by_column(FakeQuantizeParams p, Layout layout, FakeQuantizeGradients job,
                                   int64_t blocks, int64_t items) {
  using T = typename Compute<Storage>::Type;
  const T low = static_cast<T>(p.quant_min), high = static_cast<T>(p.quant_max);
  const ChannelView view = layout.view;
  const int64_t row_length = view.channels * view.inner;
  const int64_t groups = items / blocks;
  __shared__ double shared[2][kRowThreads][kColumns];
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t group = item / blocks, column = item % blocks * kColumns + threadIdx.x;
    const bool active = column < row_length;
    const int64_t c = active ? column / view.inner : 0;
    const Channel<T> channel(p, c);
    const int64_t end = (group + 1) * kSumRows < view.outer ? (group + 1) * kSumRows : view.outer;
    T scale_sum = 0, zero_point_sum = 0;
    for (int64_t row = group * kSumRows + threadIdx.y; active && row < end; row += kRowThreads) {
      const int64_t i = row * row_length + column;
      const Terms<T> terms = gradient<T>(load(static_cast<const Storage*>(job.input) + i),
                                         load(static_cast<const Storage*>(job.grad_output) + i),
                                         p.mask == nullptr || p.mask[i] != 0, channel, low, high);
      store(static_cast<Storage*>(job.grad_input) + i, terms.grad_input);
      scale_sum += terms.scale;
      zero_point_sum += terms.zero_point;
    }
    shared[0][threadIdx.y][threadIdx.x] = scale_sum;
    shared[1][threadIdx.y][threadIdx.x] = zero_point_sum;
    __syncthreads();
    if (threadIdx.y < 2 && active) {
      double total = 0;
      for (int row = 0; row < kRowThreads; ++row) total += shared[threadIdx.y][row][threadIdx.x];
      const int64_t slot = (c * groups + group) * view.inner + (column - c * view.inner);
      job.partial[2 * slot + threadIdx.y] = total;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void sum_kernel(FakeQuantizeParams p, FakeQuantizeGradients job, int64_t slots) {
  for (int64_t c = blockIdx.x; c < p.view.channels; c += gridDim.x) {
    double scale_sum = 0, zero_point_sum = 0;
    for (int64_t i = threadIdx.x; i < slots; i += kThreads) {
      scale_sum += job.partial[2 * (c * slots + i)];
      zero_point_sum += job.partial[2 * (c * slots + i) + 1];
    }
    const double scale_total = block_sum<kThreads>(scale_sum, threadIdx.x);
    const double zero_point_total = block_sum<kThreads>(zero_point_sum, threadIdx.x);
    if (threadIdx.x != 0) continue;
    static_cast<T*>(job.grad_scale)[c] = static_cast<T>(scale_total * job.grad_factor);
    if (job.grad_zero_point == nullptr) continue;
    const double scale = static_cast<const T*>(p.scale)[c];
    static_cast<T*>(job.grad_zero_point)[c] = static_cast<T>(zero_point_total * -scale * job.grad_factor);
  }
}

template <class Bits>
__global__ void straight_through_kernel(const Bits* grad_output, const uint8_t* in_range, Bits* grad_input,
                                        int64_t numel) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementsPerBlock;
  for (int64_t block = blockIdx.x * kElementsPerBlock; block < numel; block += stride) {
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t i = block + k * kThreads + threadIdx.x;
      if (i < numel) grad_input[i] = (in_range[i / 8] >> (i % 8)) & 1 ? grad_output[i] : Bits(0);
    }
  }
}

unsigned grid(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, kMaxBlocks)); }

template <class Storage>
const char* launch_backward(const FakeQuantizeParams& p, const FakeQuantizeGradients& job) {
  using T = typename Compute<Storage>::Type;
  const Layout layout(p.view);
  const int64_t slots = slots_a_channel(p.view);
  const char* error = nullptr;
  if (p.view.numel() > 0 && is_short(p.view)) {
    const int64_t blocks = ceil_div(p.view.channels * p.view.inner, kColumns);
    const int64_t items = blocks * ceil_div(p.view.outer, kSumRows);
    error = launch(backward_by_column<Storage>, grid(items), dim3(kColumns, kRowThreads), 0, p.stream, p,
                   layout, job, blocks, items);
  } else if (p.view.numel() > 0) {
    error = launch(backward_by_slice<Storage>, grid(p.view.channels * slots), kThreads, 0, p.stream, p, layout,
                   job, slots);
  }
  if (error != nullptr || p.view.channels == 0) return error;
  return launch(sum_kernel<T>, grid(p.view.channels), kThreads, 0, p.stream, p, job, slots);
}

template <class Storage>
const char* launch_forward(const FakeQuantizeParams& p, const void* input, void* output, uint8_t* in_range) {
  const int64_t blocks = ceil_div(p.view.numel(), kElementsPerBlock);
  return launch(forward_kernel<Storage>, grid(blocks), kThreads, 0, p.stream, p, Layout(p.view),
                static_cast<const Storage*>(input), static_cast<Storage*>(output), in_range);
}

template <class Bits>
const char* launch_straight_through(void* stream, const StraightThrough& job) {
  return launch(straight_through_kernel<Bits>, grid(ceil_div(job.numel, kElementsPerBlock)), kThreads, 0,
                stream, static_cast<const Bits*>(job.grad_output), job.in_range,
                static_cast<Bits*>(job.grad_input), job.numel);
}

}  // namespace

int64_t num_partials(const ChannelView& view) { return 2 * view.channels * slots_a_channel(view); }

const char* fake_quantize(const FakeQuantizeParams& p, const void* input, void* output, uint8_t* in_range) {
  if (p.view.numel() == 0) return nullptr;
  const DeviceGuard guard(p.device);
  switch (p.type) {
    case FloatType::kFloat32:
      return launch_forward<float>(p, input, output, in_range);
    case FloatType::kFloat64:
      return launch_forward<double>(p, input, output, in_range);
    case FloatType::kBFloat16:
      return launch_forward<BFloat16>(p, input, output, in_range);
  }
  return "unknown element type";
}

const char* fake_quantize_backward(const FakeQuantizeParams& p, const FakeQuantizeGradients& job) {
  const DeviceGuard guard(p.device);
  switch (p.type) {
    case FloatType::kFloat32:
      return launch_backward<float>(p, job);
    case FloatType::kFloat64:
      return launch_backward<double>(p, job);
    case FloatType::kBFloat16:
      return launch_backward<BFloat16>(p, job);
  }
  return "unknown element type";
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
