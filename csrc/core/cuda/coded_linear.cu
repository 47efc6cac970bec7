#include "core/cuda/coded_linear.h"

#include "core/cuda/coded_dot.h"
#include "core/numerics.h"

namespace pqk::cuda {
namespace {

constexpr int kMostInputs = 4;  // rows of x that a warp multiplies together

// With codes less 128 all factors are signed: (x - zero_point) w = (x - 128) w + (128 - zero_point) w.
template <int kInputs>
class Int8Policy {
 public:
  struct Sums {
    int dot[kInputs], weight;
  };

  __device__ Int8Policy(const CodedLinearJob& job, WeightShape shape, int64_t first)
      : job_(job), rows_(shape.rows), row_size_(shape.count / shape.rows), first_(first) {}

  __device__ __forceinline__ bool is_aligned() const {
    return reinterpret_cast<uintptr_t>(job_.input) % 16 == 0;
  }

  __device__ __forceinline__ void add(Sums& sums, const uint4& weights, int64_t column) const {
    const uint32_t word[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.weight = __dp4a(0x01010101, static_cast<int>(word[j]), sums.weight);
#pragma unroll
    for (int m = 0; m < kInputs; ++m) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(input(m) + column));
      const uint32_t codes[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums.dot[m] = __dp4a(static_cast<int>(codes[j] ^ 0x80808080u), static_cast<int>(word[j]), sums.dot[m]);
      }
    }
  }
  __device__ __forceinline__ void add_one(Sums& sums, int8_t weight, int64_t column) const {
    sums.weight += weight;
#pragma unroll
    for (int m = 0; m < kInputs; ++m) sums.dot[m] += (input(m)[column] - 128) * weight;
  }

  __device__ __forceinline__ void reduce(Sums& sums) const {
    sums.weight = sum_of_warp(sums.weight);
#pragma unroll
    for (int m = 0; m < kInputs; ++m) sums.dot[m] = sum_of_warp(sums.dot[m]);
  }

  __device__ __forceinline__ void store(int64_t row, const Sums& sums, int lane) const {
    int own = 0;
#pragma unroll
    for (int m = 0; m < kInputs; ++m) own = lane == m ? sums.dot[m] : own;
    if (lane >= kInputs || first_ + lane >= job_.count) return;
    const int accumulator = own + (128 - job_.input_zero_point) * sums.weight;
    const int64_t at = (first_ + lane) * rows_ + row;
    const float multiplier = job_.multiplier[row], bias = job_.bias[row];
    const float value = job_.residual == nullptr
                            ? rescale(accumulator, multiplier, bias)
                            : rescale_residual(accumulator, multiplier, job_.residual[at],
                                               job_.residual_zero_point, job_.residual_multiplier, bias);
    if (job_.float_output != nullptr) {
      job_.float_output[at] = value;
    } else {
      job_.output[at] = to_code(value, job_.quant_min, job_.quant_max);
    }
  }
  __device__ __forceinline__ void spoil(int64_t row, int lane) const {
    if (lane >= kInputs || first_ + lane >= job_.count) return;
    const int64_t at = (first_ + lane) * rows_ + row;
    if (job_.float_output != nullptr) {
      job_.float_output[at] = __uint_as_float(0x7fc00000u);
    } else {
      job_.output[at] = static_cast<uint8_t>(job_.quant_min);
    }
  }

 private:
  // Behind the last row of x the last one again, whose products nobody stores.
  __device__ __forceinline__ const uint8_t* input(int m) const {
    const int64_t row = first_ + m < job_.count ? first_ + m : job_.count - 1;
    return job_.input + row * row_size_;
  }

  CodedLinearJob job_;
  int64_t rows_, row_size_, first_;
};

template <DeviceCodec kCodec, int kInputs>
__global__ void __launch_bounds__(kWarp)
    coded_linear_kernel(CodedPayload payload, CodedPlan* plan, CodedLinearJob job) {
  __shared__ RowMemory<kCodec> memory;
  const Int8Policy<kInputs> policy(job, payload.shape, static_cast<int64_t>(blockIdx.y) * kInputs);
  multiply_chunks<kCodec>(payload, *plan, memory, policy);
}

__global__ void spoil_kernel(const CodedPlan* plan, CodedLinearJob job, int64_t outputs) {
  if (plan->status == kWhole) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < outputs; i += stride) {
    if (job.float_output != nullptr) {
      job.float_output[i] = __uint_as_float(0x7fc00000u);
    } else {
      job.output[i] = static_cast<uint8_t>(job.quant_min);
    }
  }
}

}  // namespace

const char* spoil_unless_whole(const CodedPayload& payload, const CodedPlan* plan, const CodedLinearJob& job) {
  constexpr int kBlocks = 64, kThreads = 256;  // hardly ever with anything to do
  const DeviceGuard guard(payload.device);
  return launch(spoil_kernel, dim3(kBlocks), dim3(kThreads), 0, payload.stream, plan, job,
                job.count * payload.shape.rows);
}

const char* coded_linear(const CodedPayload& payload, CodedPlan* plan, const CodedLinearJob& job) {
  const DeviceGuard guard(payload.device);
  const char* error = read_coded_plan(payload, plan);
  if (error != nullptr) return error;
  return for_codec(payload.codec, [&]<DeviceCodec kCodec>() {
    const unsigned chunks = static_cast<unsigned>(coded_grid(payload));
    if (job.count == 1) {
      return launch(coded_linear_kernel<kCodec, 1>, dim3(chunks), dim3(kWarp), 0, payload.stream, payload, plan,
                    job);
    }
    const dim3 grid(chunks, static_cast<unsigned>(ceil_div(job.count, kMostInputs)));
    return launch(coded_linear_kernel<kCodec, kMostInputs>, grid, dim3(kWarp), 0, payload.stream, payload, plan,
                  job);
  });
}

}  // namespace pqk::cuda
