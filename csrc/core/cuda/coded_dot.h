// The sink that multiplies: rows of a coded weight, as they are decoded, with a few rows of x.
#pragma once

#include "core/cuda/coded_rows.h"

namespace pqk::cuda {

// In one order, on all lanes.
template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// A policy has
//   Sums                          of a lane, for one row of the weight
//   add(sums, weights, column)    the products of 16 weights, whose first is at `column`
//   add_one(sums, weight, column)
//   is_aligned()                  whether add() may be called where columns are multiples of 16
//   reduce(sums)                  to the sums over all lanes, on all of them
//   store(row, sums, lane)
//   spoil(row, lane)              instead, where the payload is not whole
template <class Policy>
class Dot {
 public:
  __device__ __forceinline__ Dot(const Policy& policy, int64_t row_size, int lane)
      : policy_(policy),
        row_size_(row_size),
        lane_(lane),
        aligned_(row_size % 16 == 0 && policy.is_aligned()) {}

  __device__ __forceinline__ void begin(int64_t first_row, int64_t rows) {
    first_row_ = first_row;
    rows_ = rows;
    row_ = 0;
    sums_ = {};
    if (row_size_ > 0) return;
    for (int64_t row = 0; row < rows; ++row) policy_.store(first_row + row, sums_, lane_);
  }

  // Whatever rows the block has parts of. A lane's sums are always those of the row that is open.
  __device__ __forceinline__ void block(const uint4& weights, int64_t begin, int count) {
    const int64_t end = begin + count;
    int64_t row_end = (row_ + 1) * row_size_;
    add(weights, begin, end < row_end ? end : row_end);
    while (row_end <= end) {
      policy_.reduce(sums_);
      policy_.store(first_row_ + row_, sums_, lane_);
      sums_ = {};
      ++row_;
      row_end += row_size_;
      if (row_end - row_size_ < end) add(weights, begin, end < row_end ? end : row_end);
    }
  }

  __device__ __forceinline__ void end(bool whole) {
    if (whole) return;
    __syncwarp();  // behind what was stored
    for (int64_t row = 0; row < rows_; ++row) policy_.spoil(first_row_ + row, lane_);
  }

 private:
  // A lane's weights of the open row, up to `to`.
  __device__ __forceinline__ void add(const uint4& weights, int64_t begin, int64_t to) {
    const int64_t own = begin + kSymbolsOfLane * lane_, row_begin = row_ * row_size_;
    if (aligned_) {
      if (own >= row_begin && own < to) policy_.add(sums_, weights, own - row_begin);
      return;
    }
    const uint32_t word[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int i = 0; i < kSymbolsOfLane; ++i) {
      if (own + i < row_begin || own + i >= to) continue;
      policy_.add_one(sums_, static_cast<int8_t>(word[i / 4] >> (8 * (i % 4))), own + i - row_begin);
    }
  }

  Policy policy_;
  int64_t row_size_, first_row_ = 0, rows_ = 0, row_ = 0;
  typename Policy::Sums sums_ = {};
  int lane_;
  bool aligned_;
};

// A warp a chunk. A plan that is not whole has no chunks: all rows are spoiled then.
template <DeviceCodec kCodec, class Policy>
__device__ __forceinline__ void multiply_chunks(const CodedPayload& payload, CodedPlan& plan,
                                                RowMemory<kCodec>& memory, const Policy& policy) {
  const int lane = static_cast<int>(threadIdx.x);
  Dot<Policy> dot(policy, payload.shape.count / payload.shape.rows, lane);
  for (int64_t chunk = blockIdx.x; chunk < plan.num_chunks; chunk += gridDim.x) {
    give_rows<kCodec>(payload, plan, chunk, lane, memory, dot);
  }
  if (plan.num_chunks > 0) return;
  for (int64_t row = blockIdx.x; row < payload.shape.rows; row += gridDim.x) policy.spoil(row, lane);
}

}  // namespace pqk::cuda
