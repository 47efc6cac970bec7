#include "core/cuda/int8_conv2d_task.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kVector = 16;
constexpr int kOnes = 0x01010101;
// Turns codes into signed bytes, which is what the weights are.
constexpr uint32_t kSigned = 0x80808080u;

__device__ __forceinline__ int signed_dot(const uint4& codes, const int4& weight, int sum) {
  sum = __dp4a(static_cast<int>(codes.x ^ kSigned), weight.x, sum);
  sum = __dp4a(static_cast<int>(codes.y ^ kSigned), weight.y, sum);
  sum = __dp4a(static_cast<int>(codes.z ^ kSigned), weight.z, sum);
  return __dp4a(static_cast<int>(codes.w ^ kSigned), weight.w, sum);
}

__device__ __forceinline__ int sum_of(const int4& weight, int sum) {
  sum = __dp4a(weight.x, kOnes, sum);
  sum = __dp4a(weight.y, kOnes, sum);
  sum = __dp4a(weight.z, kOnes, sum);
  return __dp4a(weight.w, kOnes, sum);
}

// `sums` are of codes less 128, over this lane's part of the features.
template <int kRows>
__device__ void finish(const Int8VectorTask& task, int64_t channel, int (&sums)[kRows], int weight_sum) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    weight_sum += __shfl_xor_sync(kAllLanes, weight_sum, step);
#pragma unroll
    for (int row = 0; row < kRows; ++row) sums[row] += __shfl_xor_sync(kAllLanes, sums[row], step);
  }
  const int lane = threadIdx.x % kWarp;
  const Int8Epilogue& epilogue = task.epilogue;
  const int32_t offset = (128 - task.input_zero_point) * weight_sum;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (lane != row || row >= task.rows) continue;
    const int64_t at = row * task.out_features + channel;
    const float value =
        epilogue.real(Int8Epilogue::wrapping_add(sums[row], offset), epilogue.multiplier[channel],
                      epilogue.bias[channel], epilogue.residual == nullptr ? 0 : epilogue.residual[at]);
    if (epilogue.float_output) {
      static_cast<float*>(epilogue.output)[at] = value;
    } else {
      static_cast<uint8_t*>(epilogue.output)[at] = epilogue.code(value);
    }
  }
}

// A warp for each output channel: 512 weights at a time, each used for all rows. The bound leaves 42 registers:
// without one ptxas keeps to 32 for sm_80, and spills.
template <int kRows>
__global__ void __launch_bounds__(kThreads, 12) int8_vector_kernel(Int8VectorTask task) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= task.out_features) return;
  const int lane = threadIdx.x % kWarp;
  const int8_t* const weights = task.weight + channel * task.weight_pitch;
  int sums[kRows] = {}, weight_sum = 0;
#pragma unroll 2
  for (int64_t k = lane * kVector; k < task.in_features; k += kWarp * kVector) {
    const int4 weight = __ldcs(reinterpret_cast<const int4*>(weights + k));
    weight_sum = sum_of(weight, weight_sum);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= task.rows) break;
      const uint4 codes = __ldg(reinterpret_cast<const uint4*>(task.input + row * task.row_stride + k));
      sums[row] = signed_dot(codes, weight, sums[row]);
    }
  }
  finish<kRows>(task, channel, sums, weight_sum);
}

// A warp for each row of the matrix, lanes on neighbouring entries.
template <int kRows>
__global__ void __launch_bounds__(kThreads)
    int8_csr_vector_kernel(Int8VectorTask task, CsrWeight csr, int64_t feature_stride) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (channel >= task.out_features) return;
  const int64_t begin = csr.crow_indices[channel], end = csr.crow_indices[channel + 1];
  const int64_t last = end < csr.count ? end : csr.count;
  int sums[kRows] = {}, weight_sum = 0;
  for (int64_t at = (begin < 0 ? 0 : begin) + threadIdx.x % kWarp; at < last; at += kWarp) {
    const int32_t column = csr.col_indices[at];
    if (column < 0 || column >= task.in_features) continue;
    const int weight = csr.values[at];
    weight_sum += weight;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= task.rows) break;
      sums[row] += (task.input[row * task.row_stride + column * feature_stride] - 128) * weight;
    }
  }
  finish<kRows>(task, channel, sums, weight_sum);
}

dim3 blocks_of(const Int8VectorTask& task) {
  return dim3(static_cast<unsigned>(ceil_div(task.out_features, int64_t{kThreads / kWarp})));
}

}  // namespace

const char* launch_int8_vector(const Int8VectorTask& task, void* stream) {
  const auto kernel = task.rows == 1   ? int8_vector_kernel<1>
                      : task.rows == 2 ? int8_vector_kernel<2>
                      : task.rows <= 4 ? int8_vector_kernel<4>
                                       : int8_vector_kernel<kMaxVectorRows>;
  return launch(kernel, blocks_of(task), dim3(kThreads), 0, stream, task);
}

const char* launch_int8_csr_vector(const Int8VectorTask& task, const CsrWeight& csr, int64_t feature_stride,
                                   void* stream) {
  const auto kernel = task.rows == 1   ? int8_csr_vector_kernel<1>
                      : task.rows == 2 ? int8_csr_vector_kernel<2>
                      : task.rows <= 4 ? int8_csr_vector_kernel<4>
                                       : int8_csr_vector_kernel<kMaxVectorRows>;
  return launch(kernel, blocks_of(task), dim3(kThreads), 0, stream, task, csr, feature_stride);
}

}  // namespace pqk::cuda
