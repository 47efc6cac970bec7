#include "core/cuda/sparse_conv2d.h"

#include "core/cuda/device.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 128;
// Output positions of a thread where there are many, and rows of the matrix that a block computes one by one.
constexpr int kPositions = 4;
constexpr int kRows = 8;
// With fewer positions lanes are rows of the matrix instead.
constexpr int64_t kFewPositions = 32;
constexpr int kTile = 32, kTileRows = 8;

struct Task {
  SparseConv2d job;
  int64_t positions;
  bool padded;
};

// What an output position reads: its window's first cell of channel 0, which may lie outside of the image.
struct Window {
  __device__ Window(const Task& task, int64_t position) {
    const Conv2dShape& s = task.job.shape;
    const int64_t area = s.out_height * s.out_width, image = position / area, rest = position - image * area;
    const int64_t oy = rest / s.out_width, ox = rest - oy * s.out_width;
    y = static_cast<int32_t>(oy * s.stride_height - s.pad_top);
    x = static_cast<int32_t>(ox * s.stride_width - s.pad_left);
    const SparseInput& input = task.job.input;
    offset = image * input.image_stride + y * input.row_stride + x * input.column_stride;
    output = image * task.job.output.image_stride + rest * task.job.output.position_stride;
  }
  int64_t offset, output;
  int32_t y, x;
};

// A stored weight and the cell that it multiplies, from a window's first.
template <class T>
struct Entry {
  __device__ Entry(const Task& task, int64_t at) {
    const Conv2dShape& s = task.job.shape;
    const int64_t taps = s.kernel_height * s.kernel_width;
    const int64_t column = task.job.weight.col_indices[at], channel = column / taps;
    const int32_t tap = static_cast<int32_t>(column - channel * taps);
    const int32_t ky = tap / static_cast<int32_t>(s.kernel_width);
    const int32_t kx = tap - ky * static_cast<int32_t>(s.kernel_width);
    within = column >= 0 && channel < s.in_channels / s.groups;
    dy = ky * static_cast<int32_t>(s.dilation_height);
    dx = kx * static_cast<int32_t>(s.dilation_width);
    const SparseInput& input = task.job.input;
    offset = channel * input.channel_stride + dy * input.row_stride + dx * input.column_stride;
    value = static_cast<const T*>(task.job.weight.values)[at];
  }
  int64_t offset;
  T value;
  int32_t dy, dx;
  bool within;
};

template <class T, bool kPadded>
__device__ T load_cell(const Task& task, const Window& window, int64_t offset, int32_t dy, int32_t dx) {
  if constexpr (kPadded) {
    const Conv2dShape& s = task.job.shape;
    const int64_t y = int64_t{window.y} + dy, x = int64_t{window.x} + dx;
    if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) return T(0);
  }
  return static_cast<const T*>(task.job.input.data)[window.offset + offset];
}

struct RowRange {
  __device__ RowRange(const SparseConv2d& job, int64_t row) {
    const int64_t first = job.weight.crow_indices[row], last = job.weight.crow_indices[row + 1];
    begin = first < 0 ? 0 : first;
    end = last < job.count ? last : job.count;
  }
  int64_t begin, end;
};

// From the input's first channel to the first that a row of the matrix reads.
__device__ int64_t group_offset(const Task& task, int64_t row) {
  const Conv2dShape& s = task.job.shape;
  if (s.groups == 1) return 0;
  return row / (s.out_channels / s.groups) * (s.in_channels / s.groups) * task.job.input.channel_stride;
}

template <class T>
__device__ void store(const Task& task, int64_t row, int64_t position, T sum) {
  const T* bias = static_cast<const T*>(task.job.bias);
  static_cast<T*>(task.job.output.data)[row * task.job.output.channel_stride + position] =
      bias == nullptr ? sum : sum + bias[row];
}

// Threads are positions. The block brings the entries of a row into shared memory, a block of them at a time.
template <class T, bool kPadded>
__global__ void __launch_bounds__(kThreads) positions_kernel(Task task) {
  __shared__ int64_t offsets[kThreads];
  __shared__ T values[kThreads];
  __shared__ int2 taps[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row_blocks = ceil_div(task.job.shape.out_channels, int64_t{kRows});
  const int64_t first_row = blockIdx.x % row_blocks * kRows;
  const int64_t first = blockIdx.x / row_blocks * (kThreads * kPositions) + thread;
  const auto clamped = [&](int p) {  // some position, for threads that have none
    const int64_t position = first + p * kThreads;
    return position < task.positions ? position : 0;
  };
  const Window windows[kPositions] = {
      {task, clamped(0)}, {task, clamped(1)}, {task, clamped(2)}, {task, clamped(3)}};
  for (int64_t row = first_row; row < first_row + kRows && row < task.job.shape.out_channels; ++row) {
    T sums[kPositions] = {};
    const RowRange range(task.job, row);
    for (int64_t begin = range.begin; begin < range.end; begin += kThreads) {
      const int64_t left = range.end - begin;
      const int count = left < kThreads ? static_cast<int>(left) : kThreads;
      if (thread < count) {
        const Entry<T> entry(task, begin + thread);
        offsets[thread] = entry.within ? group_offset(task, row) + entry.offset : -1;
        values[thread] = entry.value;
        taps[thread] = make_int2(entry.dy, entry.dx);
      }
      __syncthreads();
      for (int i = 0; i < count; ++i) {
        if (offsets[i] < 0) continue;
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
          const T cell = load_cell<T, kPadded>(task, windows[p], offsets[i], taps[i].x, taps[i].y);
          const T product = values[i] * cell;
          sums[p] = sums[p] + product;
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      if (first + p * kThreads < task.positions) store(task, row, windows[p].output, sums[p]);
    }
  }
}

// Lanes are rows of the matrix. The warp reads 32 entries of each of its 32 rows side by side and multiplies
// them; then each lane adds its row's products in their order.
template <class T>
__global__ void __launch_bounds__(kWarp) rows_kernel(Task task) {
  __shared__ T products[kWarp][kWarp + 1];
  const int64_t rows = task.job.shape.out_channels;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kWarp;
  const int lane = threadIdx.x;
  const int64_t own = first_row + lane;
  int64_t begin = 0, end = 0;
  if (own < rows) {
    const RowRange range(task.job, own);
    begin = range.begin, end = range.end;
  }
  int64_t longest = end - begin;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int64_t other = __shfl_xor_sync(kAllLanes, longest, step);
    longest = other > longest ? other : longest;
  }
  for (int64_t position = 0; position < task.positions; ++position) {
    const Window window(task, position);
    T sum = 0;
    for (int64_t chunk = 0; chunk < longest; chunk += kWarp) {
      for (int r = 0; r < kWarp; ++r) {
        const int64_t row_begin = __shfl_sync(kAllLanes, begin, r), row_end = __shfl_sync(kAllLanes, end, r);
        const int64_t at = row_begin + chunk + lane;
        if (at >= row_end) continue;
        const Entry<T> entry(task, at);
        const int64_t offset = group_offset(task, first_row + r) + entry.offset;
        // What is left out must not change the sum: a negative zero is what changes no sum at all.
        products[r][lane] =
            entry.within ? entry.value * load_cell<T, true>(task, window, offset, entry.dy, entry.dx) : -T(0);
      }
      __syncwarp();
      for (int i = 0; i < kWarp && begin + chunk + i < end; ++i) sum = sum + products[lane][i];
      __syncwarp();
    }
    if (own < rows) store(task, own, window.output, sum);
  }
}

// (rows, columns), rows `stride` apart, to (columns, rows).
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose_kernel(const T* input, int64_t stride, int64_t rows, int64_t columns, T* output) {
  __shared__ T tile[kTile][kTile + 1];
  const int64_t column_tiles = ceil_div(columns, int64_t{kTile});
  const int64_t row = blockIdx.x / column_tiles * kTile, column = blockIdx.x % column_tiles * kTile;
  const int lane = threadIdx.x % kTile;
  for (int i = threadIdx.x / kTile; i < kTile; i += kTileRows) {
    if (row + i < rows && column + lane < columns) tile[i][lane] = input[(row + i) * stride + column + lane];
  }
  __syncthreads();
  for (int i = threadIdx.x / kTile; i < kTile; i += kTileRows) {
    if (row + lane < rows && column + i < columns) output[(column + i) * rows + row + lane] = tile[lane][i];
  }
}

// Whether neighbouring positions lie far apart in the input, and neighbouring channels side by side.
bool transposes(const SparseConv2d& job) {
  const Conv2dShape& s = job.shape;
  return s.in_height == 1 && s.in_width == 1 && job.input.channel_stride == 1 &&
         job.input.images >= kFewPositions;
}

const char* launch_transpose(SparseConv2d& job, void* workspace) {
  const int64_t rows = job.input.images, columns = job.shape.in_channels;
  const int64_t blocks = ceil_div(rows, int64_t{kTile}) * ceil_div(columns, int64_t{kTile});
  if (blocks > INT32_MAX) return "the input is too large for one launch";
  const dim3 grid(static_cast<unsigned>(blocks)), block(kTile * kTileRows);
  const void* input = job.input.data;
  const int64_t stride = job.input.image_stride;
  job.input.data = workspace;
  job.input.image_stride = 1, job.input.channel_stride = rows;
  if (blocks == 0) return nullptr;
  if (job.is_double) {
    return launch(transpose_kernel<double>, grid, block, 0, job.stream, static_cast<const double*>(input),
                  stride, rows, columns, static_cast<double*>(workspace));
  }
  return launch(transpose_kernel<float>, grid, block, 0, job.stream, static_cast<const float*>(input), stride,
                rows, columns, static_cast<float*>(workspace));
}

template <class T>
const char* run(const Task& task) {
  const int64_t rows = task.job.shape.out_channels;
  if (task.positions < kFewPositions) {
    return launch(rows_kernel<T>, dim3(static_cast<unsigned>(ceil_div(rows, int64_t{kWarp}))), dim3(kWarp), 0,
                  task.job.stream, task);
  }
  const int64_t blocks =
      ceil_div(rows, int64_t{kRows}) * ceil_div(task.positions, int64_t{kThreads} * kPositions);
  if (blocks > INT32_MAX) return "the layer has more outputs than one launch can compute";
  return launch(task.padded ? positions_kernel<T, true> : positions_kernel<T, false>,
                dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, task.job.stream, task);
}

}  // namespace

int64_t sparse_conv2d_workspace(const SparseConv2d& job) {
  return transposes(job) ? job.input.images * job.shape.in_channels * (job.is_double ? 8 : 4) : 0;
}

const char* sparse_conv2d(const SparseConv2d& job, void* workspace) {
  const Conv2dShape& s = job.shape;
  Task task{job, job.input.images * s.out_height * s.out_width,
            s.pad_top != 0 || s.pad_left != 0 || s.pad_bottom != 0 || s.pad_right != 0};
  if (task.positions == 0 || s.out_channels == 0) return nullptr;
  const DeviceGuard guard(job.device);
  if (transposes(job)) {
    if (const char* error = launch_transpose(task.job, workspace)) return error;
  }
  return job.is_double ? run<double>(task) : run<float>(task);
}

}  // namespace pqk::cuda
