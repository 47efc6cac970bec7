#include "core/cuda/codebook_linear.h"

#include "core/cuda/coded_dot.h"
#include "core/cuda/decode_weight.h"

namespace pqk::cuda {
namespace {

constexpr int kMostInputs = 4;  // rows of x that a warp multiplies together
constexpr int kCodes = 256;

template <int kInputs>
class FloatPolicy {
 public:
  struct Sums {
    float dot[kInputs];
  };

  // `table`: entries by code + 128, NaN where there is none.
  __device__ FloatPolicy(const CodebookLinearJob& job, WeightShape shape, int64_t first, const float* table)
      : job_(job), table_(table), rows_(shape.rows), row_size_(shape.count / shape.rows), first_(first) {}

  __device__ __forceinline__ bool is_aligned() const {
    return reinterpret_cast<uintptr_t>(job_.input) % 16 == 0;
  }

  __device__ __forceinline__ void add(Sums& sums, const uint4& weights, int64_t column) const {
    const uint32_t word[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = table_[(word[j] >> (8 * i) & 0xff) ^ 0x80];
#pragma unroll
      for (int m = 0; m < kInputs; ++m) {
        const float4 x = __ldg(reinterpret_cast<const float4*>(input(m) + column + 4 * j));
        sums.dot[m] = fmaf(x.x, w[0], sums.dot[m]);
        sums.dot[m] = fmaf(x.y, w[1], sums.dot[m]);
        sums.dot[m] = fmaf(x.z, w[2], sums.dot[m]);
        sums.dot[m] = fmaf(x.w, w[3], sums.dot[m]);
      }
    }
  }
  __device__ __forceinline__ void add_one(Sums& sums, int8_t weight, int64_t column) const {
    const float w = table_[weight + kCodes / 2];
#pragma unroll
    for (int m = 0; m < kInputs; ++m) sums.dot[m] = fmaf(input(m)[column], w, sums.dot[m]);
  }

  __device__ __forceinline__ void reduce(Sums& sums) const {
#pragma unroll
    for (int m = 0; m < kInputs; ++m) sums.dot[m] = sum_of_warp(sums.dot[m]);
  }

  __device__ __forceinline__ void store(int64_t row, const Sums& sums, int lane) const {
    float own = 0;
#pragma unroll
    for (int m = 0; m < kInputs; ++m) own = lane == m ? sums.dot[m] : own;
    if (lane >= kInputs || first_ + lane >= job_.count) return;
    const float bias = job_.bias == nullptr ? 0.0f : job_.bias[row];
    job_.output[(first_ + lane) * rows_ + row] = own + bias;
  }
  __device__ __forceinline__ void spoil(int64_t row, int lane) const {
    if (lane >= kInputs || first_ + lane >= job_.count) return;
    job_.output[(first_ + lane) * rows_ + row] = __uint_as_float(0x7fc00000u);
  }

 private:
  // Behind the last row of x the last one again, whose products nobody stores.
  __device__ __forceinline__ const float* input(int m) const {
    const int64_t row = first_ + m < job_.count ? first_ + m : job_.count - 1;
    return job_.input + row * row_size_;
  }

  CodebookLinearJob job_;
  const float* table_;
  int64_t rows_, row_size_, first_;
};

template <DeviceCodec kCodec, int kInputs>
__global__ void __launch_bounds__(kWarp)
    codebook_linear_kernel(CodedPayload payload, CodedPlan* plan, CodebookLinearJob job) {
  __shared__ RowMemory<kCodec> memory;
  __shared__ float table[kCodes];
  for (int i = static_cast<int>(threadIdx.x); i < kCodes; i += kWarp) {
    const int entry = i - kCodes / 2 + job.zero;
    table[i] = entry >= 0 && entry < job.codebook_size ? job.codebook[entry] : __uint_as_float(0x7fc00000u);
  }
  __syncwarp();
  const FloatPolicy<kInputs> policy(job, payload.shape, static_cast<int64_t>(blockIdx.y) * kInputs, table);
  multiply_chunks<kCodec>(payload, *plan, memory, policy);
}

const char* multiply(const CodedPayload& payload, CodedPlan* plan, const CodebookLinearJob& job) {
  return for_codec(payload.codec, [&]<DeviceCodec kCodec>() {
    const unsigned chunks = static_cast<unsigned>(coded_grid(payload));
    if (job.count == 1) {
      return launch(codebook_linear_kernel<kCodec, 1>, dim3(chunks), dim3(kWarp), 0, payload.stream, payload,
                    plan, job);
    }
    const dim3 grid(chunks, static_cast<unsigned>(ceil_div(job.count, kMostInputs)));
    return launch(codebook_linear_kernel<kCodec, kMostInputs>, grid, dim3(kWarp), 0, payload.stream, payload,
                  plan, job);
  });
}

// What is multiplied a few rows at a time is decoded as often.
bool decodes_once(const CodedPayload& payload, int64_t count) {
  return count > kMostInputs && payload.codec != DeviceCodec::kRaw && payload.codec != DeviceCodec::kPacked;
}

}  // namespace

int64_t codebook_linear_scratch(const CodedPayload& payload, int64_t count) {
  return decodes_once(payload, count) ? static_cast<int64_t>(sizeof(CodedPlan)) + payload.shape.count : 0;
}

const char* codebook_linear(const CodedPayload& payload, CodedPlan* plan, void* scratch,
                            const CodebookLinearJob& job) {
  const DeviceGuard guard(payload.device);
  if (decodes_once(payload, job.count)) {
    CodedPlan* const raw_plan = static_cast<CodedPlan*>(scratch);
    int8_t* const weights = reinterpret_cast<int8_t*>(raw_plan + 1);
    CodedPayload raw = payload;
    raw.codec = DeviceCodec::kRaw;
    raw.data = reinterpret_cast<const uint8_t*>(weights);
    raw.size = payload.shape.count;
    const char* error = decode_weight(payload, plan, weights);
    if (error != nullptr) return error;
    error = read_decoded_plan(raw, raw_plan, plan);
    return error != nullptr ? error : multiply(raw, raw_plan, job);
  }
  const char* error = read_coded_plan(payload, plan);
  return error != nullptr ? error : multiply(payload, plan, job);
}

}  // namespace pqk::cuda
