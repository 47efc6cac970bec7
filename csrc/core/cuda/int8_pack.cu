#include "core/cuda/int8_pack.h"

#include <algorithm>

namespace pqk::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kVector = 16;

__device__ int32_t warp_sum(int32_t value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// One block for each row.
__global__ void __launch_bounds__(kThreads) csr_expand_kernel(CsrWeight csr, int64_t columns, int8_t* dense) {
  int8_t* const row = dense + blockIdx.x * columns;
  for (int64_t column = threadIdx.x; column < columns; column += kThreads) row[column] = 0;
  __syncthreads();
  const int64_t begin = csr.crow_indices[blockIdx.x], end = csr.crow_indices[blockIdx.x + 1];
  const int64_t last = end < csr.count ? end : csr.count;
  for (int64_t at = (begin < 0 ? 0 : begin) + threadIdx.x; at < last; at += kThreads) {
    const int32_t column = csr.col_indices[at];
    if (column >= 0 && column < columns) row[column] = csr.values[at];
  }
}

// One block for each output channel, a word of 4 weights for each thread.
__global__ void __launch_bounds__(kThreads) pack_weight_kernel(WeightPacking p) {
  const int8_t* const from = p.weight.data + blockIdx.x * p.weight.out;
  uint32_t* const to = reinterpret_cast<uint32_t*>(p.packed + blockIdx.x * p.pitch);
  const int32_t taps = p.kernel_height * p.kernel_width;
  int32_t sum = 0;
  for (int32_t word = threadIdx.x; word < p.pitch / 4; word += kThreads) {
    uint32_t bytes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t k = word * 4 + i, tap = k / p.group_in, channel = k - tap * p.group_in;
      if (tap >= taps || channel >= p.channels) continue;
      const int32_t ky = tap / p.kernel_width, kx = tap - ky * p.kernel_width;
      const int8_t value = from[channel * p.weight.in + ky * p.weight.row + kx * p.weight.column];
      bytes |= static_cast<uint32_t>(static_cast<uint8_t>(value)) << (8 * i);
      sum += value;
    }
    to[word] = bytes;
  }
  __shared__ int32_t partial[kThreads / kWarp];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / kWarp; ++i) sum += partial[i];
  p.offset[blockIdx.x] = -p.zero_point * sum;
}

// One warp for each output channel.
__global__ void __launch_bounds__(kThreads)
    weight_offset_kernel(const int8_t* weight, int64_t out_channels, int64_t depth, int64_t pitch,
                         int32_t zero_point, int32_t* offset) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= out_channels) return;
  int32_t sum = 0;
  for (int64_t k = threadIdx.x % kWarp * kVector; k < depth; k += kWarp * kVector) {
    const int4 codes = __ldg(reinterpret_cast<const int4*>(weight + channel * pitch + k));
    constexpr int kOnes = 0x01010101;
    sum = __dp4a(codes.x, kOnes, sum);
    sum = __dp4a(codes.y, kOnes, sum);
    sum = __dp4a(codes.z, kOnes, sum);
    sum = __dp4a(codes.w, kOnes, sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) offset[channel] = -zero_point * sum;
}

// One thread for 4 channels.
__global__ void __launch_bounds__(kThreads)
    pack_depthwise_kernel(StridedWeight weight, int64_t channels, int32_t kernel_height, int32_t kernel_width,
                          int32_t zero_point, uint4* packed, int32_t* offset) {
  const int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (quad * 4 >= channels) return;
  const int32_t taps = kernel_height * kernel_width, tap_quads = ceil_div(taps, 4);
  int32_t sums[4] = {};
  for (int32_t q = 0; q < tap_quads; ++q) {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int64_t channel = quad * 4 + i / 4;
      const int32_t tap = q * 4 + i % 4, ky = tap / kernel_width, kx = tap - ky * kernel_width;
      if (channel >= channels || tap >= taps) continue;
      const int8_t value = weight.data[channel * weight.out + ky * weight.row + kx * weight.column];
      words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(value)) << (i % 4 * 8);
      sums[i / 4] += value;
    }
    packed[quad * tap_quads + q] = make_uint4(words[0], words[1], words[2], words[3]);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (quad * 4 + c < channels) offset[quad * 4 + c] = (128 - zero_point) * sums[c];
  }
}

// One thread for 16 channels of a pixel. Neighbouring threads take neighbours of the dimension that is dense in
// the input.
template <bool kChannelsFirst>
__global__ void __launch_bounds__(kThreads) rearrange_kernel(ImageRearrangement job) {
  const int64_t area = job.height * job.width, pixels = job.images * area;
  const int64_t group_vectors = job.padded / kVector, vectors = job.groups * group_vectors;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= pixels * vectors) return;
  const int64_t pixel = kChannelsFirst ? index % pixels : index / vectors;
  const int64_t vector = kChannelsFirst ? index / pixels : index % vectors;
  const int64_t image = pixel / area, rest = pixel - image * area, y = rest / job.width,
                x = rest - y * job.width;
  const int64_t group = vector / group_vectors, first = (vector - group * group_vectors) * kVector;
  const uint8_t* const from = job.input.data + image * job.input.image + y * job.input.row +
                              x * job.input.column + (group * job.channels + first) * job.input.channel;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (first + i < job.channels) {
      words[i / 4] |= static_cast<uint32_t>(from[i * job.input.channel]) << (i % 4 * 8);
    }
  }
  reinterpret_cast<uint4*>(job.output)[pixel * vectors + vector] =
      make_uint4(words[0], words[1], words[2], words[3]);
}

dim3 blocks_of(int64_t count) { return dim3(static_cast<unsigned>(count)); }

}  // namespace

const char* launch_csr_expand(const CsrWeight& csr, int64_t rows, int64_t columns, int8_t* dense,
                              void* stream) {
  return launch(csr_expand_kernel, blocks_of(rows), dim3(kThreads), 0, stream, csr, columns, dense);
}

const char* launch_pack_weight(const WeightPacking& packing, void* stream) {
  return launch(pack_weight_kernel, blocks_of(packing.out_channels), dim3(kThreads), 0, stream, packing);
}

const char* launch_weight_offset(const int8_t* weight, int64_t out_channels, int64_t depth, int64_t pitch,
                                 int32_t zero_point, int32_t* offset, void* stream) {
  constexpr int64_t kChannels = kThreads / kWarp;
  return launch(weight_offset_kernel, blocks_of(ceil_div(out_channels, kChannels)), dim3(kThreads), 0, stream,
                weight, out_channels, depth, pitch, zero_point, offset);
}

const char* launch_pack_depthwise(const StridedWeight& weight, int64_t channels, int32_t kernel_height,
                                  int32_t kernel_width, int32_t zero_point, uint4* packed, int32_t* offset,
                                  void* stream) {
  return launch(pack_depthwise_kernel, blocks_of(ceil_div(channels, int64_t{4} * kThreads)), dim3(kThreads), 0,
                stream, weight, channels, kernel_height, kernel_width, zero_point, packed, offset);
}

const char* launch_rearrange(const ImageRearrangement& job, void* stream) {
  const int64_t threads = job.images * job.height * job.width * job.groups * (job.padded / kVector);
  const int64_t blocks = ceil_div(threads, int64_t{kThreads});
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "the input is too large for one launch";
  return launch(job.input.channel == 1 ? rearrange_kernel<false> : rearrange_kernel<true>, blocks_of(blocks),
                dim3(kThreads), 0, stream, job);
}

}  // namespace pqk::cuda
