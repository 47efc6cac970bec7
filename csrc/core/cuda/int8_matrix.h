// Device code of the matrix product of int8_conv2d: tiles of the output, whose operands pass through a ring of
// shared-memory stages to the tensor cores.
#pragma once

#include "core/cuda/int8_conv2d_task.h"
#include "core/cuda/mma.h"

namespace pqk::cuda {

constexpr int kVectorBytes = 16;
constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 32;

// A block computes kM_ x kN_ outputs, kK_ of the depth in a stage, with warps along rows, columns and depth.
template <int kM_, int kN_, int kK_, int kWarpsM_, int kWarpsN_, int kWarpsK_, int kStages_>
struct MatrixTile {
  static constexpr int kM = kM_, kN = kN_, kK = kK_, kStages = kStages_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_;
  static constexpr int kThreads = kWarp * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kTilesM = kWarpM / kMmaRows, kTilesN = kWarpN / kMmaColumns;
  static constexpr int kChunks = kK / kVectorBytes;  // of a row of a stage
  static constexpr int kInputBytes = kM * kK, kStageBytes = (kM + kN) * kK;
  static constexpr int kRowsPerThread = kM * kChunks / kThreads;
  // The output tile, in bytes, has 16 more in each row, so that rows fall into different banks.
  static constexpr int kCodePitch = kN + kVectorBytes, kCodeBytes = kM * kCodePitch;
  static constexpr int kSumBytes = (kWarpsK - 1) * kM * kN * 4;
  static constexpr int kPipelineBytes = kStages * kStageBytes, kResultBytes = kCodeBytes + kSumBytes;
  static constexpr int kSharedBytes = kPipelineBytes > kResultBytes ? kPipelineBytes : kResultBytes;
  static_assert(kK == 64 || kK == 128);
  static_assert(kTilesN % 2 == 0, "B fragments are loaded for two column tiles at once");
  static_assert(kRowsPerThread * kThreads == kM * kChunks && kThreads % kChunks == 0);

  // Byte of chunk `chunk` of row `row`. The order within rows makes the 8 rows that ldmatrix reads at once, and
  // the rows that a warp writes, fall into different banks.
  __device__ static int place(int row, int chunk) {
    const int turn = kChunks == 8 ? row & 7 : (row >> 1) & 3;
    return row * kK + ((chunk ^ turn) * kVectorBytes);
  }
};

// Which tile a block computes. Neighbouring blocks share input pixels.
template <class Tile>
struct MatrixPlace {
  __device__ explicit MatrixPlace(const Int8MatrixTask& task) {
    const int32_t tiles = ceil_div(task.group_out, Tile::kN);
    const uint32_t rest = blockIdx.x / tiles;
    column = static_cast<int32_t>(blockIdx.x % tiles) * Tile::kN;
    group = static_cast<int32_t>(rest % task.groups);
    pixel = static_cast<int64_t>(rest / task.groups) * Tile::kM;
  }
  int64_t pixel;          // first row
  int32_t group, column;  // first column, within the group
};

// Where an output pixel's window begins in the input.
struct MatrixWindow {
  MatrixWindow() = default;
  __device__ MatrixWindow(const Int8MatrixTask& task, int64_t pixel, int64_t group_offset) {
    if (pixel >= task.pixels) return;
    const int64_t image = pixel / task.out_area;
    const int32_t rest = static_cast<int32_t>(pixel - image * task.out_area);
    const int32_t oy = rest / task.out_width, ox = rest - oy * task.out_width;
    y = oy * task.stride_height - task.pad_top;
    x = ox * task.stride_width - task.pad_left;
    offset = image * task.image_stride + y * task.row_stride + x * task.pixel_stride + group_offset;
  }
  __device__ bool holds(const Int8MatrixTask& task, int32_t dy, int32_t dx) const {
    return static_cast<uint32_t>(y + dy) < static_cast<uint32_t>(task.in_height) &&
           static_cast<uint32_t>(x + dx) < static_cast<uint32_t>(task.in_width);
  }
  int64_t offset = 0;
  int32_t y = -(1 << 30), x = 0;  // outside of any image
};

// A position in the depth: channel c of tap (ky, kx).
struct MatrixTap {
  __device__ MatrixTap(const Int8MatrixTask& task, int32_t k) {
    const int32_t tap = k / task.group_in;
    channel = k - tap * task.group_in;
    ky = tap / task.kernel_width;
    kx = tap - ky * task.kernel_width;
  }
  __device__ void advance(const Int8MatrixTask& task, int32_t by) {
    channel += by;
    while (channel >= task.group_in) {
      channel -= task.group_in;
      if (++kx == task.kernel_width) kx = 0, ++ky;
    }
  }
  int32_t channel, ky, kx;
};

// Fills a stage's rows of the weight.
template <class Tile>
__device__ void load_weight(const Int8MatrixTask& task, const MatrixPlace<Tile>& place, int32_t first,
                            uint8_t* stage) {
  const int8_t* rows = task.weight + (static_cast<int64_t>(place.group) * task.group_out) * task.weight_pitch;
#pragma unroll
  for (int i = threadIdx.x; i < Tile::kN * Tile::kChunks; i += Tile::kThreads) {
    const int row = i / Tile::kChunks, chunk = i % Tile::kChunks;
    const int32_t column = place.column + row, k = first + chunk * kVectorBytes;
    const bool valid = column < task.group_out && k < task.depth;
    cp_async_16(stage + Tile::kInputBytes + Tile::place(row, chunk),
                rows + (valid ? column * task.weight_pitch + k : 0), valid);
  }
}

// Input whose channels come in 16-byte vectors. A thread keeps one chunk of several rows.
template <class Tile>
class VectorLoader {
 public:
  __device__ VectorLoader(const Int8MatrixTask& task, const MatrixPlace<Tile>& place)
      : tap_(task, static_cast<int32_t>(threadIdx.x % Tile::kChunks) * kVectorBytes) {
#pragma unroll
    for (int i = 0; i < Tile::kRowsPerThread; ++i) {
      windows_[i] = MatrixWindow(task, place.pixel + row(i), static_cast<int64_t>(place.group) * task.group_in);
    }
  }

  // To be called for one stage after the other.
  __device__ void load(const Int8MatrixTask& task, uint8_t* stage) {
    const int chunk = threadIdx.x % Tile::kChunks;
    const int32_t dy = tap_.ky * task.dilation_height, dx = tap_.kx * task.dilation_width;
    const int64_t offset = dy * task.row_stride + dx * task.pixel_stride + tap_.channel;
    const bool within = tap_.ky < task.kernel_height;
#pragma unroll
    for (int i = 0; i < Tile::kRowsPerThread; ++i) {
      uint8_t* to = stage + Tile::place(row(i), chunk);
      if (within && windows_[i].holds(task, dy, dx)) {
        cp_async_16(to, task.input + windows_[i].offset + offset);
      } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(task.border, task.border, task.border, task.border);
      }
    }
    tap_.advance(task, Tile::kK);
  }

 private:
  __device__ static int row(int i) {
    return threadIdx.x / Tile::kChunks + i * (Tile::kThreads / Tile::kChunks);
  }
  MatrixTap tap_;
  MatrixWindow windows_[Tile::kRowsPerThread];
};

// Input with any strides, code by code, or 4 channels at a time.
template <class Tile>
class GatherLoader {
 public:
  __device__ GatherLoader(const Int8MatrixTask& task, const MatrixPlace<Tile>& place) {
    const int64_t group = static_cast<int64_t>(place.group) * task.group_in * task.channel_stride;
#pragma unroll
    for (int i = 0; i < Tile::kRowsPerThread; ++i) {
      windows_[i] = MatrixWindow(task, place.pixel + row(i), group);
    }
  }

  __device__ void load(const Int8MatrixTask& task, uint8_t* stage) {
    const int chunk = threadIdx.x % Tile::kChunks;
    const int32_t k = first_ + chunk * kVectorBytes;
    first_ += Tile::kK;
    if (k >= task.depth) {
#pragma unroll
      for (int i = 0; i < Tile::kRowsPerThread; ++i) {
        *reinterpret_cast<uint4*>(stage + Tile::place(row(i), chunk)) = make_uint4(0, 0, 0, 0);
      }
      return;
    }
    const MatrixTap tap(task, k);
#pragma unroll
    for (int i = 0; i < Tile::kRowsPerThread; ++i) {
      *reinterpret_cast<uint4*>(stage + Tile::place(row(i), chunk)) =
          task.words ? gather<4>(task, windows_[i], tap) : gather<1>(task, windows_[i], tap);
    }
  }

 private:
  __device__ static int row(int i) {
    return threadIdx.x / Tile::kChunks + i * (Tile::kThreads / Tile::kChunks);
  }

  // 16 codes from `tap` on, kCodes of one tap at a time; behind the last tap anything, as weights are zero
  // there.
  template <int kCodes>
  __device__ static uint4 gather(const Int8MatrixTask& task, const MatrixWindow& window, MatrixTap tap) {
    uint32_t words[4] = {};
#pragma unroll
    for (int j = 0; j < kVectorBytes / kCodes; ++j) {
      const int32_t dy = tap.ky * task.dilation_height, dx = tap.kx * task.dilation_width;
      uint32_t codes = kCodes == 4 ? task.border : task.border & 0xffu;
      if (tap.ky < task.kernel_height && window.holds(task, dy, dx)) {
        const uint8_t* at = task.input + window.offset + dy * task.row_stride + dx * task.pixel_stride +
                            tap.channel * task.channel_stride;
        codes = kCodes == 4 ? __ldg(reinterpret_cast<const unsigned*>(at)) : *at;
      }
      words[j * kCodes / 4] |= codes << (j * kCodes % 4 * 8);
      tap.advance(task, kCodes);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  int32_t first_ = 0;
  MatrixWindow windows_[Tile::kRowsPerThread];
};

// A warp's part of the tile.
template <class Tile>
struct MatrixWarp {
  __device__ MatrixWarp() {
    const int warp = threadIdx.x / kWarp;
    lane = threadIdx.x % kWarp;
    row = warp % Tile::kWarpsM * Tile::kWarpM;
    column = warp / Tile::kWarpsM % Tile::kWarpsN * Tile::kWarpN;
    depth = warp / (Tile::kWarpsM * Tile::kWarpsN);
  }

  // Adds the products of one stage, whose first `depth_left` positions count.
  __device__ void multiply(const uint8_t* stage, int32_t depth_left) {
    const int a_row = row + (lane & 15), a_chunk = lane >> 4;
    const int b_row = column + (lane & 7) + (lane >> 4) * 8, b_chunk = (lane >> 3) & 1;
#pragma unroll
    for (int step = depth; step < Tile::kK / kMmaDepth; step += Tile::kWarpsK) {
      if (step * kMmaDepth >= depth_left) break;
      uint32_t a[Tile::kTilesM][4];
      uint32_t b[Tile::kTilesN][2];
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
        ldmatrix_x4(a[m], stage + Tile::place(a_row + m * kMmaRows, step * 2 + a_chunk));
      }
#pragma unroll
      for (int n = 0; n < Tile::kTilesN; n += 2) {
        uint32_t pair[4];
        ldmatrix_x4(pair, stage + Tile::kInputBytes + Tile::place(b_row + n * kMmaColumns, step * 2 + b_chunk));
        b[n][0] = pair[0], b[n][1] = pair[1];
        b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
      }
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
        for (int n = 0; n < Tile::kTilesN; ++n) mma_u8s8(sums[m][n], a[m], b[n]);
      }
    }
  }

  // Leaves the sums over all warps along the depth with the first of them. `shared` holds kSumBytes.
  __device__ void reduce(int* shared) {
    if constexpr (Tile::kWarpsK > 1) {
      constexpr int kCount = Tile::kTilesM * Tile::kTilesN * 4;
      constexpr int kLanes = kWarp * Tile::kWarpsM * Tile::kWarpsN;
      const int thread = threadIdx.x % kLanes;
      const int* const flat = &sums[0][0][0];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (depth > 0) shared[((depth - 1) * kCount + i) * kLanes + thread] = flat[i];
      }
      __syncthreads();
      if (depth > 0) return;
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
        for (int n = 0; n < Tile::kTilesN; ++n) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int i = (m * Tile::kTilesN + n) * 4 + r;
            for (int other = 0; other < Tile::kWarpsK - 1; ++other) {
              sums[m][n][r] =
                  Int8Epilogue::wrapping_add(sums[m][n][r], shared[(other * kCount + i) * kLanes + thread]);
            }
          }
        }
      }
    }
  }

  int lane, row, column, depth;
  int sums[Tile::kTilesM][Tile::kTilesN][4] = {};
};

// Moves the tile's codes between global and shared memory, 16 at a time where the layout lets it.
template <class Tile, bool kStore>
__device__ void move_codes(const Int8MatrixTask& task, const MatrixPlace<Tile>& place, uint8_t* shared,
                           uint8_t* global) {
  constexpr int kPerRow = Tile::kN / kVectorBytes;
  for (int i = threadIdx.x; i < Tile::kM * kPerRow; i += Tile::kThreads) {
    const int row = i / kPerRow, column = i % kPerRow * kVectorBytes;
    const int64_t pixel = place.pixel + row;
    const int32_t left = task.group_out - place.column - column;
    if (pixel >= task.pixels || left <= 0) continue;
    uint8_t* at = shared + row * Tile::kCodePitch + column;
    uint8_t* outside = global + pixel * task.out_channels + static_cast<int64_t>(place.group) * task.group_out +
                       place.column + column;
    if (task.vector_output) {
      if constexpr (kStore) {
        *reinterpret_cast<uint4*>(outside) = *reinterpret_cast<const uint4*>(at);
      } else {
        *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(outside);
      }
      continue;
    }
    const int count = left < kVectorBytes ? left : kVectorBytes;
    for (int j = 0; j < count; ++j) {
      if constexpr (kStore) {
        outside[j] = at[j];
      } else {
        at[j] = outside[j];
      }
    }
  }
}

// From the warp's sums to codes, in the place of the residual's, or to floats in memory.
template <class Tile>
__device__ void finish(const Int8MatrixTask& task, const MatrixPlace<Tile>& place, const MatrixWarp<Tile>& warp,
                       uint8_t* codes) {
  const Int8Epilogue& epilogue = task.epilogue;
#pragma unroll
  for (int i = 0; i < Tile::kTilesN * 2; ++i) {
    const int column = warp.column + i / 2 * kMmaColumns + warp.lane % 4 * 2 + i % 2;
    if (place.column + column >= task.group_out) continue;
    const int64_t channel = static_cast<int64_t>(place.group) * task.group_out + place.column + column;
    const float multiplier = epilogue.multiplier[channel], bias = epilogue.bias[channel];
    const int32_t offset = epilogue.channel_offset(channel);
#pragma unroll
    for (int j = 0; j < Tile::kTilesM * 2; ++j) {
      const int row = warp.row + j / 2 * kMmaRows + j % 2 * 8 + warp.lane / 4;
      const int64_t pixel = place.pixel + row;
      if (pixel >= task.pixels) continue;
      uint8_t* code = codes + row * Tile::kCodePitch + column;
      const int32_t sum = Int8Epilogue::wrapping_add(warp.sums[j / 2][i / 2][j % 2 * 2 + i % 2], offset);
      const float value = epilogue.real(sum, multiplier, bias, epilogue.residual == nullptr ? 0 : *code);
      if (epilogue.float_output) {
        static_cast<float*>(epilogue.output)[pixel * task.out_channels + channel] = value;
      } else {
        *code = epilogue.code(value);
      }
    }
  }
}

// A block's tile: its products, stage by stage, then the output. `load_stage(step, stage)` begins to fill a
// stage with both operands, `finish()` leaves the warps' sums as codes in shared memory, or writes floats.
template <class Tile, class Warp, class LoadStage, class Finish>
__device__ __forceinline__ void compute_tile(const Int8MatrixTask& task, const MatrixPlace<Tile>& place,
                                             Warp& warp, uint8_t* shared, const LoadStage& load_stage,
                                             const Finish& finish) {
  const int32_t steps = ceil_div(task.depth, Tile::kK);
  const auto load = [&](int32_t step) {
    if (step < steps) load_stage(step, shared + step % Tile::kStages * Tile::kStageBytes);
    cp_async_commit();
  };
  for (int32_t step = 0; step < Tile::kStages - 1; ++step) load(step);
  for (int32_t step = 0; step < steps; ++step) {
    cp_async_wait<Tile::kStages - 2>();
    // Behind this barrier stage `step` is filled and the one before it is free.
    __syncthreads();
    load(step + Tile::kStages - 1);
    warp.multiply(shared + step % Tile::kStages * Tile::kStageBytes, task.depth - step * Tile::kK);
  }
  cp_async_wait<0>();
  __syncthreads();
  if (task.epilogue.residual != nullptr) {
    move_codes<Tile, false>(task, place, shared, const_cast<uint8_t*>(task.epilogue.residual));
  }
  warp.reduce(reinterpret_cast<int*>(shared + Tile::kCodeBytes));
  __syncthreads();
  if (warp.depth == 0) finish();
  if (task.epilogue.float_output) return;
  __syncthreads();
  move_codes<Tile, true>(task, place, shared, static_cast<uint8_t*>(task.epilogue.output));
}

template <class Tile, template <class> class Loader>
__global__ void __launch_bounds__(Tile::kThreads) int8_matrix_kernel(Int8MatrixTask task) {
  uint8_t* const shared = dynamic_shared<uint8_t>();
  const MatrixPlace<Tile> place(task);
  Loader<Tile> loader(task, place);
  MatrixWarp<Tile> warp;
  const auto load_stage = [&](int32_t step, uint8_t* stage) {
    loader.load(task, stage);
    load_weight<Tile>(task, place, step * Tile::kK, stage);
  };
  compute_tile<Tile>(task, place, warp, shared, load_stage, [&] { finish<Tile>(task, place, warp, shared); });
}

template <class Tile>
int64_t matrix_blocks(const Int8MatrixTask& task) {
  return ceil_div<int64_t, int64_t>(task.pixels, Tile::kM) * task.groups * ceil_div(task.group_out, Tile::kN);
}

template <class Tile, template <class> class Loader>
const char* launch_matrix(const Int8MatrixTask& task, void* stream) {
  const int64_t blocks = matrix_blocks<Tile>(task);
  if (blocks > INT32_MAX) return "the layer has more output tiles than one launch may have blocks";
  return launch(int8_matrix_kernel<Tile, Loader>, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads),
                Tile::kSharedBytes, stream, task);
}

}  // namespace pqk::cuda
