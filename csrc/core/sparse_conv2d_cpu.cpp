#include <algorithm>
#include <cstring>

#include "core/numerics.h"
#include "core/sparse_conv2d.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2
constexpr int kVectorBytes = 64, kVectors = 4;
#elif PQK_ISA_LEVEL == 1
constexpr int kVectorBytes = 32, kVectors = 8;
#else
constexpr int kVectorBytes = 16, kVectors = 8;
#endif
constexpr int kMaxPanel = kVectorBytes * kVectors / 4;
constexpr int64_t kRowBlock = 16;  // output channels that are stored together

// How a weight is applied to a vector of cells of one type. sparse_fill_cpu.cpp makes the cells.
template <class Value>
struct FloatCell {
  using Cell = Value;
  using Weight = Value;
  using Sum = Value;
  using Vector __attribute__((vector_size(kVectorBytes))) = Value;

  static Vector initial(const SparseTask&, int64_t) { return Vector{}; }
  static Vector broadcast(Weight weight) { return Vector{} + weight; }
  static Vector step(Vector sum, Vector cells, Vector weight) {
    const Vector product = cells * weight;
    return sum + product;
  }
};

struct Int8Cell {
  using Cell = uint32_t;
  using Weight = int32_t;
  using Sum = int32_t;
  using Vector __attribute__((vector_size(kVectorBytes))) = int32_t;
  static Vector initial(const SparseTask& task, int64_t row) { return Vector{} + task.initial[row]; }
  static Vector broadcast(Weight weight) { return Vector{} + weight; }
  static Vector step(Vector sum, Vector cells, Vector weight) {
#if PQK_ISA_LEVEL >= 2
    return (Vector)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)cells, (__m512i)weight);
#elif PQK_ISA_LEVEL == 1
    return sum + (Vector)_mm256_madd_epi16((__m256i)cells, (__m256i)weight);
#elif defined(PQK_X86_64)
    return sum + (Vector)_mm_madd_epi16((__m128i)cells, (__m128i)weight);
#else
    const Vector low = (cells << 16 >> 16) * (weight << 16 >> 16), high = (cells >> 16) * (weight >> 16);
    return sum + low + high;
#endif
  }
};

// Lanes of a panel that are real output pixels and neighbours in the output.
struct Segment {
  int64_t lane, length;
  int64_t output;  // elements from the output's first, channel 0
};

int64_t make_segments(const SparseTask& task, int64_t first, int64_t begin, int64_t end, Segment* segments) {
  const SparseLayout& layout = task.layout;
  int64_t count = 0;
  for (int64_t position = begin; position < end;) {
    const int64_t x = position % layout.columns, line = position / layout.columns;
    const int64_t y = line % layout.rows, image = first + line / layout.rows;
    const int64_t step = std::min(layout.columns - x, end - position);
    const int64_t length = std::min(step, task.shape.out_width - x);
    if (length > 0 && y < task.shape.out_height && image < task.input.images) {
      const int64_t pixel = y * task.shape.out_width + x;
      segments[count++] = {position - begin, length,
                           image * task.output.image_stride + pixel * task.output.position_stride};
    }
    position += step;
  }
  return count;
}

template <class Output>
void store_block(const SparseTask& task, const Segment* segments, int64_t count, int64_t row, int64_t rows,
                 const Output (*block)[kMaxPanel]) {
  Output* out = static_cast<Output*>(task.output.data) + row * task.output.channel_stride;
  const int64_t channel_stride = task.output.channel_stride;
  for (int64_t s = 0; s < count; ++s) {
    const Segment& segment = segments[s];
    if (task.output.position_stride == 1 && segment.length > 1) {
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(out + r * channel_stride + segment.output, block[r] + segment.lane,
                    static_cast<size_t>(segment.length) * sizeof(Output));
      }
      continue;
    }
    for (int64_t i = 0; i < segment.length; ++i) {
      Output* pixel = out + segment.output + i * task.output.position_stride;
      for (int64_t r = 0; r < rows; ++r) pixel[r * channel_stride] = block[r][segment.lane + i];
    }
  }
}

// Lanes is a constant so that these loops have no tail; lanes that are no output hold anything.
template <int Lanes, class Value>
void finish(const SparseTask& task, int64_t row, const Value* sums, Value* out) {
  const auto* bias = static_cast<const Value*>(task.epilogue.bias);
  if (bias == nullptr) {
    std::memcpy(out, sums, Lanes * sizeof(Value));
    return;
  }
  const Value shift = bias[row];
  for (int i = 0; i < Lanes; ++i) out[i] = sums[i] + shift;
}

template <int Lanes>
void finish(const SparseTask& task, int64_t row, const int32_t* sums, float* out) {
  const float multiplier = task.epilogue.multiplier[row];
  const float bias = static_cast<const float*>(task.epilogue.bias)[row];
  for (int i = 0; i < Lanes; ++i) out[i] = rescale(sums[i], multiplier, bias);
}

template <int Lanes>
void finish(const SparseTask& task, int64_t row, const int32_t* sums, uint8_t* out) {
  const float multiplier = task.epilogue.multiplier[row];
  const float bias = static_cast<const float*>(task.epilogue.bias)[row];
  const float low = static_cast<float>(task.epilogue.quant_min),
              high = static_cast<float>(task.epilogue.quant_max);
  for (int i = 0; i < Lanes; ++i) out[i] = to_code(rescale(sums[i], multiplier, bias), low, high);
}

// One weight of a row applied to a panel.
template <class Unit, int Vectors>
inline void apply(const SparseTask& task, const typename Unit::Cell* cells, int64_t at,
                  typename Unit::Vector (&sum)[Vectors]) {
  using Vector = typename Unit::Vector;
  constexpr int64_t kLanes = kVectorBytes / sizeof(typename Unit::Cell);
  const auto* from = cells + task.layout.offset.data()[task.weight.col_indices[at]];
  const Vector factor = Unit::broadcast(static_cast<const typename Unit::Weight*>(task.weight.values)[at]);
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) {
    Vector lanes;
    std::memcpy(&lanes, from + v * kLanes, sizeof lanes);
    sum[v] = Unit::step(sum[v], lanes, factor);
  }
}

template <class Unit, int Vectors>
void sum_row(const SparseTask& task, const typename Unit::Cell* cells, int64_t row, typename Unit::Sum* sums) {
  typename Unit::Vector sum[Vectors];
  for (int v = 0; v < Vectors; ++v) sum[v] = Unit::initial(task, row);
  const int64_t end = task.weight.crow_indices[row + 1];
  for (int64_t at = task.weight.crow_indices[row]; at < end; ++at) apply<Unit, Vectors>(task, cells, at, sum);
  std::memcpy(sums, sum, sizeof sum);
}

// Four rows side by side: in a panel of one vector a single row would wait for each of its own sums.
template <class Unit>
void sum_four_rows(const SparseTask& task, const typename Unit::Cell* cells, int64_t row,
                   typename Unit::Sum (*sums)[kMaxPanel]) {
  using Vector = typename Unit::Vector;
  const int32_t* crow = task.weight.crow_indices + row;
  Vector a[1] = {Unit::initial(task, row)}, b[1] = {Unit::initial(task, row + 1)};
  Vector c[1] = {Unit::initial(task, row + 2)}, d[1] = {Unit::initial(task, row + 3)};
  int64_t shared = crow[1] - crow[0];
  for (int r = 1; r < 4; ++r) shared = std::min<int64_t>(shared, crow[r + 1] - crow[r]);
  for (int64_t i = 0; i < shared; ++i) {
    apply<Unit, 1>(task, cells, crow[0] + i, a);
    apply<Unit, 1>(task, cells, crow[1] + i, b);
    apply<Unit, 1>(task, cells, crow[2] + i, c);
    apply<Unit, 1>(task, cells, crow[3] + i, d);
  }
  for (int64_t at = crow[0] + shared; at < crow[1]; ++at) apply<Unit, 1>(task, cells, at, a);
  for (int64_t at = crow[1] + shared; at < crow[2]; ++at) apply<Unit, 1>(task, cells, at, b);
  for (int64_t at = crow[2] + shared; at < crow[3]; ++at) apply<Unit, 1>(task, cells, at, c);
  for (int64_t at = crow[3] + shared; at < crow[4]; ++at) apply<Unit, 1>(task, cells, at, d);
  std::memcpy(sums[0], a, sizeof a);
  std::memcpy(sums[1], b, sizeof b);
  std::memcpy(sums[2], c, sizeof c);
  std::memcpy(sums[3], d, sizeof d);
}

template <class Unit, class Output, int Vectors>
void run_panel(const SparseTask& task, int64_t first, const typename Unit::Cell* cells, int64_t begin,
               int64_t end, int64_t row_begin, int64_t row_end) {
  constexpr int kLanes = Vectors * kVectorBytes / static_cast<int>(sizeof(typename Unit::Cell));
  alignas(64) typename Unit::Sum sums[4][kMaxPanel];
  alignas(64) Output block[kRowBlock][kMaxPanel];
  Segment segments[kMaxPanel];
  const int64_t count = make_segments(task, first, begin, end, segments);
  if (count == 0) return;
  const int64_t group_rows = task.shape.out_channels / task.shape.groups;
  const int64_t group_pitch = task.layout.units_per_group * task.layout.unit_pitch();
  for (int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, row_end - row);
    for (int64_t r = 0; r < rows;) {
      const auto* group = cells + (row + r) / group_rows * group_pitch + begin;
      const bool four = Vectors == 1 && r + 4 <= rows && (row + r) / group_rows == (row + r + 3) / group_rows;
      if (four) {
        sum_four_rows<Unit>(task, group, row + r, sums);
      } else {
        sum_row<Unit, Vectors>(task, group, row + r, sums[0]);
      }
      const int64_t done = four ? 4 : 1;
      for (int64_t i = 0; i < done; ++i, ++r) finish<kLanes>(task, row + r, sums[i], block[r]);
    }
    store_block(task, segments, count, row, rows, block);
  }
}

template <class Unit, class Output>
void run_rows(const SparseTask& task, int64_t first, const void* cells, int64_t begin, int64_t end,
              int64_t row_begin, int64_t row_end) {
  constexpr int64_t kLanes = kVectorBytes / sizeof(typename Unit::Cell);
  const auto* from = static_cast<const typename Unit::Cell*>(cells);
  const int64_t vectors = (end - begin + kLanes - 1) / kLanes;
  if (vectors <= 1) {
    run_panel<Unit, Output, 1>(task, first, from, begin, end, row_begin, row_end);
  } else if (vectors <= 2) {
    run_panel<Unit, Output, 2>(task, first, from, begin, end, row_begin, row_end);
  } else if (vectors <= 4) {
    run_panel<Unit, Output, 4>(task, first, from, begin, end, row_begin, row_end);
  } else {
    run_panel<Unit, Output, kVectors>(task, first, from, begin, end, row_begin, row_end);
  }
}

}  // namespace

int64_t sparse_panel_kernel(SparseType type) { return type == SparseType::kDouble ? kMaxPanel / 2 : kMaxPanel; }

void sparse_rows_kernel(const SparseTask& task, int64_t first, const void* cells, int64_t begin, int64_t end,
                        int64_t row_begin, int64_t row_end) {
  switch (task.type) {
    case SparseType::kFloat:
      return run_rows<FloatCell<float>, float>(task, first, cells, begin, end, row_begin, row_end);
    case SparseType::kDouble:
      return run_rows<FloatCell<double>, double>(task, first, cells, begin, end, row_begin, row_end);
    case SparseType::kInt8:
      return task.epilogue.float_output
                 ? run_rows<Int8Cell, float>(task, first, cells, begin, end, row_begin, row_end)
                 : run_rows<Int8Cell, uint8_t>(task, first, cells, begin, end, row_begin, row_end);
  }
}

#include "core/isa_end.h"
