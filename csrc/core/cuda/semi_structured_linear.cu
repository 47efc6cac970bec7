#include "core/cuda/semi_structured_linear.h"

#include <algorithm>

#include "core/cuda/elements.h"
#include "core/cuda/int8_matrix.h"
#include "core/cuda/int8_pack.h"

namespace pqk::cuda {
namespace {

constexpr int kSparseDepth = 64;  // of the dense product that an instruction does
// Four indices of which each two are in order: of weights that are 0.
constexpr uint32_t kAnyOrder = 0x44444444u;
constexpr int kThreads = 128;

// A tile of int8_matrix.h: kM rows of x by kN output channels. Only the left operand of a tensor core may be
// sparse, so the rows of an instruction are output channels, and its columns rows of x. A stage holds 128 of
// the depth: the rows of x, of the kept weights and of the indices.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kWarpsK_, int kStages_>
struct SparseTile {
  static constexpr int kM = kM_, kN = kN_, kK = 128, kStages = kStages_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_;
  static constexpr int kThreads = kWarp * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kTilesM = kWarpN / kMmaRows, kTilesN = kWarpM / kMmaColumns;
  static constexpr int kChunks = kK / kVectorBytes;  // of a row of x
  static constexpr int kValueBytes = kK / 2, kValueChunks = kValueBytes / kVectorBytes;
  static constexpr int kIndexBytes = kK / 8;
  static constexpr int kInputBytes = kM * kK;
  static constexpr int kValuesAt = kInputBytes, kIndicesAt = kValuesAt + kN * kValueBytes;
  static constexpr int kStageBytes = kIndicesAt + kN * kIndexBytes;
  static constexpr int kRowsPerThread = kM * kChunks / kThreads;
  static constexpr int kCodePitch = kN + kVectorBytes, kCodeBytes = kM * kCodePitch;
  static constexpr int kSumBytes = (kWarpsK - 1) * kM * kN * 4;
  static constexpr int kPipelineBytes = kStages * kStageBytes, kResultBytes = kCodeBytes + kSumBytes;
  static constexpr int kSharedBytes = kPipelineBytes > kResultBytes ? kPipelineBytes : kResultBytes;
  // As many as shared memory has room for where there is least of it; by itself ptxas bounds registers by more
  // blocks, and spills.
  static constexpr int kBlocks = (99 << 10) / kSharedBytes;
  static_assert(kIndexBytes == kVectorBytes, "one copy");
  static_assert(kRowsPerThread * kThreads == kM * kChunks && kThreads % kChunks == 0);
  static_assert(kTilesM * kMmaRows * kWarpsN == kN && kTilesN * kMmaColumns * kWarpsM == kM);

  // As MatrixTile::place, of the rows of x and of the kept weights.
  __device__ static int place(int row, int chunk) { return row * kK + ((chunk ^ (row & 7)) * kVectorBytes); }
  __device__ static int value_place(int row, int chunk) {
    return kValuesAt + row * kValueBytes + ((chunk ^ ((row >> 1) & 3)) * kVectorBytes);
  }
  __device__ static int index_place(int row) { return kIndicesAt + row * kIndexBytes; }
};

// The compressed weight as tiles are copied from it: rows of whole stages, 16-byte aligned.
struct SparseRows {
  const int8_t* values;
  const uint8_t* indices;
  int64_t value_pitch, index_pitch;
};

// Fills a stage's rows of the weight, from position `first` of the depth on.
template <class Tile>
__device__ void load_sparse_rows(const SparseRows& rows, int32_t columns, int32_t column, int32_t first,
                                 uint8_t* stage) {
#pragma unroll
  for (int i = threadIdx.x; i < Tile::kN * Tile::kValueChunks; i += Tile::kThreads) {
    const int row = i / Tile::kValueChunks, chunk = i % Tile::kValueChunks;
    const bool valid = column + row < columns;
    const int64_t at = (column + row) * rows.value_pitch + first / 2 + chunk * kVectorBytes;
    cp_async_16(stage + Tile::value_place(row, chunk), rows.values + (valid ? at : 0), valid);
  }
  for (int row = threadIdx.x; row < Tile::kN; row += Tile::kThreads) {
    uint8_t* const to = stage + Tile::index_place(row);
    if (column + row < columns) {
      cp_async_16(to, rows.indices + (column + row) * rows.index_pitch + first / 8);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(kAnyOrder, kAnyOrder, kAnyOrder, kAnyOrder);
    }
  }
}

// A warp's part of the tile: `row` and `column` are where it begins, kWarpM x kWarpN large.
template <class Tile>
struct SparseWarp : MatrixWarp<Tile> {
  using MatrixWarp<Tile>::lane;

  __device__ void multiply(const uint8_t* stage, int32_t depth_left) {
    const int value_row = this->column + (lane & 15), value_chunk = lane >> 4;
    // Lanes 4g ... 4g + 3 hold the indices of channel g, of channel g + 8, and of the depth's second half of
    // both.
    const int index_row = this->column + lane / 4 + lane % 2 * 8, index_word = lane % 4 / 2;
    const int input_row = this->row + (lane & 7), input_chunk = lane >> 3;
#pragma unroll
    for (int i = 0; i < Tile::kK / kSparseDepth / Tile::kWarpsK; ++i) {
      const int step = i * Tile::kWarpsK + (Tile::kWarpsK == 1 ? 0 : this->depth);
      if (step * kSparseDepth >= depth_left) break;
      uint32_t values[Tile::kTilesM][4], metadata[Tile::kTilesM];
      uint32_t codes[Tile::kTilesN][4];
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
        ldmatrix_x4(values[m], stage + Tile::value_place(value_row + m * kMmaRows, step * 2 + value_chunk));
        const uint8_t* words = stage + Tile::index_place(index_row + m * kMmaRows);
        metadata[m] = reinterpret_cast<const uint32_t*>(words)[step * 2 + index_word];
      }
#pragma unroll
      for (int n = 0; n < Tile::kTilesN; ++n) {
        ldmatrix_x4(codes[n], stage + Tile::place(input_row + n * kMmaColumns, step * 4 + input_chunk));
      }
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
        for (int n = 0; n < Tile::kTilesN; ++n) {
          mma_sparse_s8u8(this->sums[m][n], values[m], codes[n], metadata[m]);
        }
      }
    }
  }
};

// As finish() of int8_matrix.h.
template <class Tile>
__device__ void finish_sparse(const Int8MatrixTask& task, const MatrixPlace<Tile>& place,
                              const SparseWarp<Tile>& warp, uint8_t* codes) {
  const Int8Epilogue& epilogue = task.epilogue;
#pragma unroll
  for (int i = 0; i < Tile::kTilesM * 2; ++i) {
    const int column = warp.column + i / 2 * kMmaRows + i % 2 * 8 + warp.lane / 4;
    const int64_t channel = place.column + column;
    if (channel >= task.group_out) continue;
    const float multiplier = epilogue.multiplier[channel], bias = epilogue.bias[channel];
    const int32_t offset = epilogue.channel_offset(channel);
#pragma unroll
    for (int j = 0; j < Tile::kTilesN * 2; ++j) {
      const int row = warp.row + j / 2 * kMmaColumns + warp.lane % 4 * 2 + j % 2;
      const int64_t pixel = place.pixel + row;
      if (pixel >= task.pixels) continue;
      uint8_t* code = codes + row * Tile::kCodePitch + column;
      const int32_t sum = Int8Epilogue::wrapping_add(warp.sums[i / 2][j / 2][i % 2 * 2 + j % 2], offset);
      const float value = epilogue.real(sum, multiplier, bias, epilogue.residual == nullptr ? 0 : *code);
      if (epilogue.float_output) {
        static_cast<float*>(epilogue.output)[pixel * task.out_channels + channel] = value;
      } else {
        *code = epilogue.code(value);
      }
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    sparse_matrix_kernel(Int8MatrixTask task, SparseRows rows) {
  uint8_t* const shared = dynamic_shared<uint8_t>();
  const MatrixPlace<Tile> place(task);
  VectorLoader<Tile> loader(task, place);
  SparseWarp<Tile> warp;
  const auto load_stage = [&](int32_t step, uint8_t* stage) {
    loader.load(task, stage);
    load_sparse_rows<Tile>(rows, task.group_out, place.column, step * Tile::kK, stage);
  };
  compute_tile<Tile>(task, place, warp, shared, load_stage,
                     [&] { finish_sparse<Tile>(task, place, warp, shared); });
}

// Rows of the weight with zeros up to whole stages. A block for each row, a thread for 8 weights and their
// indices.
__global__ void __launch_bounds__(kThreads)
    pack_sparse_kernel(SemiStructuredWeight weight, int8_t* values, uint8_t* indices, int64_t padded) {
  const int64_t row = blockIdx.x;
  const int32_t kept = static_cast<int32_t>(weight.columns / 2);
  const int8_t* const from = weight.values + row * kept;
  const uint8_t* const from_indices = weight.indices + row * ((kept + 3) / 4);
  for (int32_t byte = threadIdx.x; byte < padded / 8; byte += kThreads) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (byte * 4 + i < kept)
        word |= static_cast<uint32_t>(static_cast<uint8_t>(from[byte * 4 + i])) << (8 * i);
    }
    reinterpret_cast<uint32_t*>(values + row * (padded / 2))[byte] = word;
    const int groups = kept / 2 - 2 * byte;  // from this byte on
    uint32_t index = kAnyOrder & 0xffu;
    if (groups >= 2) {
      index = from_indices[byte];
    } else if (groups == 1) {
      index = (from_indices[byte] & 0x0fu) | (kAnyOrder & 0xf0u);
    }
    indices[row * (padded / 8) + byte] = static_cast<uint8_t>(index);
  }
}

// Where things lie in the working memory. -1: not there, as kernels can read the argument.
struct Plan : WorkingMemory {
  explicit Plan(const SemiStructuredLinear& job)
      : features(round_up(job.weight.columns, kVectorBytes)), depth(round_up(job.weight.columns, 128)) {
    const auto aligned = [](const void* pointer) { return is_aligned(pointer, kVectorBytes); };
    const int64_t rows = job.layer.shape.in_height, channels = job.weight.rows;
    if (features != job.weight.columns || !aligned(job.layer.input.data)) image_at = take(rows * features);
    if (depth != job.weight.columns || !aligned(job.weight.values) || !aligned(job.weight.indices)) {
      values_at = take(channels * depth / 2), indices_at = take(channels * depth / 8);
    }
    if (job.layer.input_zero_point != 0) offset_at = take(channels * 4);
  }

  int64_t features;  // of a row of x, with those that padding adds
  int64_t depth;     // of a row of the weight, likewise
  int64_t image_at = -1, values_at = -1, indices_at = -1, offset_at = -1;
};

// Small tiles fill the device where there are few outputs; the last splits the depth over its warps.
const char* launch_tiles(const Int8MatrixTask& task, const SparseRows& rows, int device, void* stream) {
  using Large = SparseTile<128, 128, 4, 2, 1, 3>;
  using Small = SparseTile<64, 64, 2, 2, 1, 4>;
  using Deep = SparseTile<16, 32, 1, 2, 2, 4>;
  const auto run = [&]<class Tile>(Tile) -> const char* {
    const int64_t blocks = matrix_blocks<Tile>(task);
    if (blocks > INT32_MAX) return "the layer has more output tiles than one launch may have blocks";
    return launch(sparse_matrix_kernel<Tile>, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads),
                  Tile::kSharedBytes, stream, task, rows);
  };
  const int64_t enough = num_multiprocessors(device);
  if (task.group_out > 64 && task.pixels > 64 && matrix_blocks<Large>(task) >= enough) return run(Large{});
  if (task.pixels > 16 && matrix_blocks<Small>(task) >= enough) return run(Small{});
  return run(Deep{});
}

// Puts what kernels cannot read as it is into the working memory.
const char* prepare(const SemiStructuredLinear& job, const Plan& plan, uint8_t* memory, Int8MatrixTask& task,
                    SparseRows& rows) {
  const Int8Conv2d& layer = job.layer;
  const char* error = nullptr;
  if (plan.image_at >= 0) {
    task.input = memory + plan.image_at;
    error = launch_rearrange({layer.input, 1, layer.shape.in_height, 1, 1, job.weight.columns, plan.features,
                              memory + plan.image_at},
                             layer.stream);
  }
  if (error == nullptr && plan.values_at >= 0) {
    auto* const values = reinterpret_cast<int8_t*>(memory + plan.values_at);
    uint8_t* const indices = memory + plan.indices_at;
    rows.values = values, rows.indices = indices;
    error = launch(pack_sparse_kernel, dim3(static_cast<unsigned>(job.weight.rows)), dim3(kThreads), 0,
                   layer.stream, job.weight, values, indices, plan.depth);
  }
  if (error == nullptr && plan.offset_at >= 0) {
    auto* const offset = reinterpret_cast<int32_t*>(memory + plan.offset_at);
    task.epilogue.offset = offset;
    error = launch_weight_offset(rows.values, job.weight.rows, rows.value_pitch, rows.value_pitch,
                                 layer.input_zero_point, offset, layer.stream);
  }
  return error;
}

Int8MatrixTask matrix_task(const SemiStructuredLinear& job, const Plan& plan) {
  const Int8Conv2d& layer = job.layer;
  Int8MatrixTask task{};
  task.input = layer.input.data;
  task.channel_stride = 1, task.row_stride = task.pixel_stride = plan.features;
  task.pixels = layer.shape.in_height, task.out_channels = job.weight.rows;
  task.in_height = task.out_area = static_cast<int32_t>(task.pixels);
  task.in_width = task.out_width = 1;
  task.kernel_height = task.kernel_width = task.stride_height = task.stride_width = 1;
  task.dilation_height = task.dilation_width = task.groups = 1;
  task.group_in = static_cast<int32_t>(std::max<int64_t>(plan.features, 1));
  task.group_out = static_cast<int32_t>(job.weight.rows);
  task.depth = static_cast<int32_t>(plan.features);
  task.vector_output = !layer.float_output && job.weight.rows % kVectorBytes == 0 &&
                       is_aligned(layer.output, kVectorBytes) && is_aligned(layer.residual, kVectorBytes);
  task.epilogue = {nullptr,
                   layer.multiplier,
                   layer.bias,
                   layer.residual,
                   layer.output,
                   layer.residual_multiplier,
                   layer.residual_zero_point,
                   static_cast<float>(layer.quant_min),
                   static_cast<float>(layer.quant_max),
                   layer.float_output};
  return task;
}

}  // namespace

int64_t semi_structured_workspace(const SemiStructuredLinear& job) { return Plan(job).bytes; }

const char* semi_structured_linear(const SemiStructuredLinear& job, void* workspace) {
  constexpr int64_t kLargest = INT32_MAX / 4;
  if (job.layer.shape.in_height == 0 || job.weight.rows == 0) return nullptr;
  if (job.layer.shape.in_height > kLargest || job.weight.rows > kLargest) {
    return "the layer is too large for the CUDA kernels";
  }
  const DeviceGuard guard(job.layer.device);
  const Plan plan(job);
  Int8MatrixTask task = matrix_task(job, plan);
  SparseRows rows{job.weight.values, job.weight.indices, plan.depth / 2, plan.depth / 8};
  const char* error = prepare(job, plan, static_cast<uint8_t*>(workspace), task, rows);
  return error != nullptr ? error : launch_tiles(task, rows, job.layer.device, job.layer.stream);
}

}  // namespace pqk::cuda
