#include "core/cuda/decode_weight.h"

#include "core/cuda/coded_rows.h"

namespace pqk::cuda {
namespace {

// Stores what it is given.
class Store {
 public:
  __device__ Store(int8_t* output, int64_t row_size, int lane)
      : output_(output), row_size_(row_size), lane_(lane) {}

  __device__ __forceinline__ void begin(int64_t first_row, int64_t) {
    rows_ = output_ + first_row * row_size_;
    aligned_ = reinterpret_cast<uintptr_t>(rows_) % 16 == 0;
  }
  __device__ __forceinline__ void block(const uint4& weights, int64_t begin, int count) {
    const int from = kSymbolsOfLane * lane_;
    int8_t* const to = rows_ + begin + from;
    if (aligned_ && from + kSymbolsOfLane <= count) {
      *reinterpret_cast<uint4*>(to) = weights;
      return;
    }
    const uint32_t word[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int i = 0; i < kSymbolsOfLane; ++i) {
      if (from + i < count) to[i] = static_cast<int8_t>(word[i / 4] >> (8 * (i % 4)));
    }
  }
  __device__ __forceinline__ void end(bool) {}

 private:
  int8_t *output_, *rows_ = nullptr;
  int64_t row_size_;
  int lane_;
  bool aligned_ = false;
};

// A warp a chunk; warps are blocks of their own, so that few chunks are spread over all multiprocessors.
template <DeviceCodec kCodec>
__global__ void __launch_bounds__(kWarp) decode_kernel(CodedPayload payload, CodedPlan* plan, int8_t* output) {
  __shared__ RowMemory<kCodec> memory;
  const int lane = static_cast<int>(threadIdx.x);
  Store store(output, payload.shape.count / payload.shape.rows, lane);
  for (int64_t chunk = blockIdx.x; chunk < plan->num_chunks; chunk += gridDim.x) {
    give_rows<kCodec>(payload, *plan, chunk, lane, memory, store);
  }
}

}  // namespace

const char* decode_weight(const CodedPayload& payload, CodedPlan* plan, int8_t* output) {
  const DeviceGuard guard(payload.device);
  const char* error = read_coded_plan(payload, plan);
  if (error != nullptr) return error;
  const dim3 grid(static_cast<unsigned>(coded_grid(payload)));
  return for_codec(payload.codec, [&]<DeviceCodec kCodec>() {
    return launch(decode_kernel<kCodec>, grid, dim3(kWarp), 0, payload.stream, payload, plan, output);
  });
}

}  // namespace pqk::cuda
