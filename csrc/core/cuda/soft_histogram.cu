#include "core/cuda/soft_histogram.h"

#include <algorithm>

#include "core/cuda/device.h"
#include "core/numerics.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kVector = 4;  // elements of a 16-byte load
constexpr int kBins = 256;
constexpr float kOneShare = static_cast<float>(1 << kShareBits);
// Shares are counted in two parts, so that 32 bits hold the sum over more elements than a warp ever sees
// between two carries into 64 bits.
constexpr int kLowBits = kShareBits / 2;
constexpr int64_t kMostOfWarp = int64_t{1} << 20;  // elements

struct Place {
  float value;  // x / scale, clamped
  int bin;      // of the code below
  float fraction;
};

__device__ __forceinline__ Place locate(float x, bool keep, float inv_scale, int quant_max) {
  const float limit = static_cast<float>(quant_max);
  const float kept = keep && x == x ? x : 0.0f;
  const float u = clamp_float(kept * inv_scale, -limit, limit);
  const float below = floorf(u);
  return {u, static_cast<int>(below) + quant_max, u - below};
}

// Elements `at`.. of a row, of which `count` are there.
struct Four {
  float x[kVector];
  bool keep[kVector];
};

__device__ __forceinline__ Four load_four(const SoftHistogramParams& p, int64_t at, int count, bool aligned) {
  Four four;
  if (aligned && count == kVector) {
    const float4 x = *reinterpret_cast<const float4*>(p.input + at);
    const uint32_t mask = p.mask == nullptr ? 0x01010101u : *reinterpret_cast<const uint32_t*>(p.mask + at);
    four.x[0] = x.x, four.x[1] = x.y, four.x[2] = x.z, four.x[3] = x.w;
#pragma unroll
    for (int i = 0; i < kVector; ++i) four.keep[i] = (mask >> (8 * i) & 0xff) != 0;
    return four;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    four.x[i] = i < count ? p.input[at + i] : 0.0f;
    four.keep[i] = i < count && (p.mask == nullptr || p.mask[at + i] != 0);
  }
  return four;
}

// Whether rows of four neighbours can be loaded at once.
bool is_aligned(const SoftHistogramParams& p) {
  return p.columns % kVector == 0 && reinterpret_cast<uintptr_t>(p.input) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.mask) % kVector == 0;
}

__device__ __forceinline__ int64_t divide(int64_t a, int64_t b, bool narrow) {
  return narrow ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

struct Tally {
  uint32_t number[kBins], low[kBins], high[kBins];
};

// A warp's own histogram is in shared memory; the elements on code 0, of which pruning makes many, are counted
// by ballots.
__global__ void __launch_bounds__(kThreads)
    histogram_kernel(SoftHistogramParams p, int64_t fours_a_row, bool aligned, int64_t* partial) {
  __shared__ Tally tallies[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  Tally& tally = tallies[warp];
  for (int i = lane; i < kBins; i += kWarp) tally.number[i] = tally.low[i] = tally.high[i] = 0;
  __syncwarp();
  const int64_t fours = p.rows * fours_a_row, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const bool narrow = fours + kThreads < int64_t{1} << 32;
  bool nan_seen = false;
  uint32_t zeros = 0;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kWarp; first < fours;
       first += stride) {
    const int64_t index = first + lane, row = divide(index, fours_a_row, narrow);
    const int64_t column = (index - row * fours_a_row) * kVector;
    const bool inside = index < fours;
    const int64_t left = inside ? p.columns - column : 0;
    const int count = left < kVector ? static_cast<int>(left) : kVector;
    const Four four = load_four(p, row * p.columns + column, count, aligned);
    const float inv_scale = inside ? 1.0f / p.scale[row] : 1.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      nan_seen |= four.keep[i] && four.x[i] != four.x[i];
      const Place place = locate(four.x[i], four.keep[i], inv_scale, p.quant_max);
      const bool is_zero = i < count && place.value == 0.0f;
      zeros += static_cast<uint32_t>(__popc(__ballot_sync(kAllLanes, is_zero)));
      if (i >= count || is_zero) continue;
      const uint32_t share = static_cast<uint32_t>(place.fraction * kOneShare + 0.5f);
      atomicAdd(&tally.number[place.bin], 1u);
      if (share == 0) continue;
      atomicAdd(&tally.low[place.bin], share % (1u << kLowBits));
      atomicAdd(&tally.high[place.bin], share >> kLowBits);
    }
  }
  if (lane == 0) atomicAdd(&tally.number[p.quant_max], zeros);
  const int any_nan = __syncthreads_or(nan_seen);
  const int bins = 2 * p.quant_max + 1;
  int64_t* const out = partial + static_cast<int64_t>(blockIdx.x) * (bins + 1);
  for (int bin = static_cast<int>(threadIdx.x); bin < bins; bin += kThreads) {
    int64_t sum = 0;
    for (const Tally& of_warp : tallies) {
      const auto shares = [&](int at) {
        return static_cast<int64_t>(of_warp.low[at]) + (static_cast<int64_t>(of_warp.high[at]) << kLowBits);
      };
      sum += (static_cast<int64_t>(of_warp.number[bin]) << kShareBits) - shares(bin);
      if (bin > 0) sum += shares(bin - 1);
    }
    out[bin] = sum;
  }
  if (threadIdx.x == 0) out[bins] = any_nan;
}

// A warp a bin.
__global__ void __launch_bounds__(kWarp)
    counts_kernel(const int64_t* partial, int64_t blocks, int bins, double* counts) {
  const int bin = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
  bool nan_seen = false;
  for (int64_t block = lane; block < blocks; block += kWarp) {
    sum += partial[block * (bins + 1) + bin];
    nan_seen |= partial[block * (bins + 1) + bins] != 0;
  }
  int low = static_cast<int>(sum & 0xffffff), high = static_cast<int>(sum >> 24);
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    low += __shfl_xor_sync(kAllLanes, low, distance);
    high += __shfl_xor_sync(kAllLanes, high, distance);
  }
  nan_seen = __any_sync(kAllLanes, nan_seen);
  if (lane != 0) return;
  const int64_t total = (static_cast<int64_t>(high) << 24) + low;
  counts[bin] = nan_seen ? nan("") : static_cast<double>(total) / static_cast<double>(1 << kShareBits);
}

// A group of kGroup threads a row.
template <int kGroup>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(SoftHistogramParams p, SoftHistogramGradients job, bool aligned) {
  __shared__ float step[kBins];
  __shared__ double sums[kThreads];
  const int bins = 2 * p.quant_max + 1, thread = static_cast<int>(threadIdx.x), own = thread % kGroup;
  for (int i = thread; i < bins; i += kThreads) {
    step[i] = i + 1 < bins ? static_cast<float>(job.grad_counts[i + 1] - job.grad_counts[i]) : 0.0f;
  }
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroup) + thread / kGroup;
  const float inv_scale = row < p.rows ? 1.0f / p.scale[row] : 1.0f;
  double sum = 0;
  for (int64_t column = own * kVector; row < p.rows && column < p.columns; column += kGroup * kVector) {
    const int64_t at = row * p.columns + column, left = p.columns - column;
    const int count = left < kVector ? static_cast<int>(left) : kVector;
    const Four four = load_four(p, at, count, aligned);
    float grad[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Place place = locate(four.x[i], four.keep[i], inv_scale, p.quant_max);
      const float slope = place.fraction == 0.0f ? 0.0f : step[place.bin];
      grad[i] = slope * inv_scale;
      if (i < count) sum += static_cast<double>(slope) * static_cast<double>(place.value);
    }
    if (aligned) {
      *reinterpret_cast<float4*>(job.grad_input + at) = make_float4(grad[0], grad[1], grad[2], grad[3]);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) job.grad_input[at + i] = grad[i];
    }
  }
  sums[thread] = sum;
  for (int width = kGroup / 2; width > 0; width /= 2) {
    __syncthreads();
    if (own < width) sums[thread] += sums[thread + width];
  }
  if (own != 0 || row >= p.rows) return;
  job.grad_scale[row] = static_cast<float>(sums[thread] * -static_cast<double>(inv_scale) * job.grad_factor);
}

template <int kGroup>
const char* launch_backward(void* stream, const SoftHistogramParams& p, const SoftHistogramGradients& job) {
  const bool aligned = is_aligned(p) && reinterpret_cast<uintptr_t>(job.grad_input) % 16 == 0;
  const int64_t blocks = ceil_div(p.rows, static_cast<int64_t>(kThreads / kGroup));
  return launch(backward_kernel<kGroup>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p, job,
                aligned);
}

}  // namespace

int64_t soft_histogram_blocks(int device, const SoftHistogramParams& p) {
  constexpr int64_t kBlocksPerMultiprocessor = 4, kFoursPerThread = 4;
  const int64_t fours = p.rows * ceil_div(p.columns, static_cast<int64_t>(kVector));
  const int64_t enough = ceil_div(fours, kThreads * kFoursPerThread);
  const int64_t least = ceil_div(fours * kVector, kMostOfWarp * kWarps);
  const int64_t most = kBlocksPerMultiprocessor * num_multiprocessors(device);
  return std::max<int64_t>({1, least, std::min(enough, most)});
}

const char* soft_histogram(int device, void* stream, const SoftHistogramParams& p, int64_t* partial,
                           double* counts) {
  const DeviceGuard guard(device);
  const int64_t blocks = soft_histogram_blocks(device, p),
                fours = ceil_div(p.columns, static_cast<int64_t>(kVector));
  const char* error = launch(histogram_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
                             p, std::max<int64_t>(1, fours), is_aligned(p), partial);
  if (error != nullptr) return error;
  const int bins = static_cast<int>(p.bins());
  return launch(counts_kernel, dim3(static_cast<unsigned>(bins)), dim3(kWarp), 0, stream, partial, blocks, bins,
                counts);
}

const char* soft_histogram_backward(int device, void* stream, const SoftHistogramParams& p,
                                    const SoftHistogramGradients& job) {
  constexpr int64_t kLongRow = 1024;
  if (p.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  return p.columns < kLongRow ? launch_backward<kWarp>(stream, p, job)
                              : launch_backward<kThreads>(stream, p, job);
}

}  // namespace pqk::cuda
