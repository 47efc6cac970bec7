// How the kernels of norm_activation share a tensor out: every thread walks elements of one channel, or of four
// neighbouring ones where channels are innermost, so that parameters stay in registers and sums are of threads
// first. Blocks of kNormThreads; block (x, y) has the y-th part of all elements of its channels.
#pragma once

#include <algorithm>

#include "core/cuda/device.h"
#include "core/quantize.h"

namespace pqk::cuda {

constexpr int kNormThreads = 256;

struct NormCut {
  NormCut(const ChannelView& view, bool may_load_vectors, int device) : view(view) {
    by_column = view.inner == 1 && view.channels > 1;
    vector = may_load_vectors && (by_column ? view.channels : view.inner) % 4 == 0 ? 4 : 1;
    const int64_t across = by_column ? ceil_div(view.channels, static_cast<int64_t>(vector)) : 1;
    columns = 1;
    while (columns < kWarp && columns < across) columns *= 2;
    const int64_t groups = by_column ? ceil_div(across, static_cast<int64_t>(columns)) : view.channels;
    steps = by_column ? view.outer : view.outer * view.inner / vector;
    constexpr int64_t kStepsOfThread = 4, kBlocksPerMultiprocessor = 8;
    const int64_t enough = ceil_div(steps, kStepsOfThread * rows());
    const int64_t most =
        ceil_div(kBlocksPerMultiprocessor * num_multiprocessors(device), std::max<int64_t>(1, groups));
    parts = std::max<int64_t>(1, std::min({enough, most, int64_t{65535}}));
    grid = dim3(static_cast<unsigned>(std::max<int64_t>(1, groups)), static_cast<unsigned>(parts));
  }

  // Threads that share a channel.
  __host__ __device__ int rows() const { return kNormThreads / columns; }

  ChannelView view;
  bool by_column;
  int vector;     // neighbouring elements that a thread takes at once: 4 or 1
  int columns;    // threads of a block side by side, which have different channels
  int64_t steps;  // of all threads with the same channels together
  int64_t parts;
  dim3 grid;
};

// kVector elements.
template <int kVector>
struct Lanes {
  float v[kVector];

  static __device__ __forceinline__ Lanes load(const float* at) {
    Lanes lanes;
    if constexpr (kVector == 4) {
      const float4 x = *reinterpret_cast<const float4*>(at);
      lanes.v[0] = x.x, lanes.v[1] = x.y, lanes.v[2] = x.z, lanes.v[3] = x.w;
    } else {
      lanes.v[0] = *at;
    }
    return lanes;
  }
  __device__ __forceinline__ void store(float* at) const {
    if constexpr (kVector == 4) {
      *reinterpret_cast<float4*>(at) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
      *at = v[0];
    }
  }
};

// A thread's walk.
template <int kVector>
class NormWalk {
 public:
  explicit __device__ __forceinline__ NormWalk(const NormCut& cut) : cut_(cut) {
    const int thread = static_cast<int>(threadIdx.x), column = thread % cut.columns;
    first_ = cut.by_column ? (static_cast<int64_t>(blockIdx.x) * cut.columns + column) * kVector : blockIdx.x;
    const int64_t part = ceil_div(cut.steps, cut.parts);
    begin_ = blockIdx.y * part + thread / cut.columns;
    end_ = min(cut.steps, (blockIdx.y + int64_t{1}) * part);
    if (first_ >= cut.view.channels) end_ = begin_;
  }

  // Of the first of this thread's channels; not below the number of channels where the thread has none.
  __device__ __forceinline__ int64_t channel() const { return first_; }
  __device__ __forceinline__ bool has_channel() const { return first_ < cut_.view.channels; }
  // Values of its channels.
  __device__ __forceinline__ Lanes<kVector> parameters(const float* values) const {
    Lanes<kVector> lanes;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      lanes.v[i] = has_channel() ? values[cut_.by_column ? first_ + i : first_] : 0.0f;
    }
    return lanes;
  }
  // Where the channels have their first element.
  __device__ __forceinline__ int64_t first_element(int i) const {
    return cut_.by_column ? first_ + i : first_ * cut_.view.inner;
  }

  // Calls visit(index of the first of kVector elements).
  template <class Visit>
  __device__ __forceinline__ void operator()(const Visit& visit) const {
    const int rows = cut_.rows();
    if (begin_ >= end_) return;
    if (cut_.by_column) {
      for (int64_t step = begin_; step < end_; step += rows) visit(step * cut_.view.channels + first_);
      return;
    }
    // (outer, inner) of a step without a division for each.
    const int64_t steps = cut_.view.inner / kVector;
    const int64_t far = rows / steps, near = rows - far * steps;
    int64_t outer = begin_ / steps, inner = begin_ - outer * steps;
    for (int64_t step = begin_; step < end_; step += rows) {
      visit((outer * cut_.view.channels + first_) * cut_.view.inner + inner * kVector);
      outer += far;
      inner += near;
      if (inner < steps) continue;
      inner -= steps;
      ++outer;
    }
  }

 private:
  const NormCut& cut_;
  int64_t first_, begin_, end_;
};

// Sums of floats: a few in float32, then all in double.
class NormSum {
 public:
  __device__ __forceinline__ void add(float value) { few_ += value; }
  __device__ __forceinline__ void carry() {
    all_ += few_;
    few_ = 0;
  }
  __device__ __forceinline__ double value() const { return all_ + few_; }

 private:
  float few_ = 0;
  double all_ = 0;
};

// Adds over the threads of a block that share a channel, in one order; `sums` has a value a thread. Afterwards
// sums[column] is that column's.
__device__ __forceinline__ void add_over_rows(double* sums, int columns) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int width = kNormThreads / 2; width >= columns; width /= 2) {
    __syncthreads();
    if (thread < width) sums[thread] += sums[thread + width];
  }
  __syncthreads();
}

// Stores a part's sums of the threads' channels to out[2 * channel]; `sums` has a value a thread.
template <int kVector>
__device__ __forceinline__ void store_sums(const NormCut& cut, const NormWalk<kVector>& walk,
                                           const NormSum (&own)[kVector], double* sums, double* out) {
  const int thread = static_cast<int>(threadIdx.x);
  double total = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    total += own[i].value();
    if (!cut.by_column && i + 1 < kVector) continue;
    __syncthreads();
    sums[thread] = cut.by_column ? own[i].value() : total;
    add_over_rows(sums, cut.columns);
    if (thread < cut.columns && walk.has_channel())
      out[2 * (walk.channel() + (cut.by_column ? i : 0))] = sums[thread];
  }
}

// A thread a channel, in blocks of kNormThreads.
inline dim3 norm_channel_grid(int64_t channels) {
  return dim3(static_cast<unsigned>(std::max<int64_t>(1, ceil_div(channels, int64_t{kNormThreads}))));
}

}  // namespace pqk::cuda
