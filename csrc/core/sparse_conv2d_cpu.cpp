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
constexpr int kVectorBytes = 64, kVectors = 4, kChannelsPerCell = 4;
#elif PQK_ISA_LEVEL == 1
constexpr int kVectorBytes = 32, kVectors = 8, kChannelsPerCell = 2;
#else
constexpr int kVectorBytes = 16, kVectors = 8, kChannelsPerCell = 2;
#endif
constexpr int kMaxPanel = kVectorBytes * kVectors / 4;
constexpr int64_t kRowBlock = 16;  // output channels that are stored together

// What one type of cell is: how it is read from the input, and how a weight is applied to a vector of them.
template <class Value>
struct FloatCell {
  using Cell = Value;
  using Source = Value;
  using Weight = Value;
  using Sum = Value;
  using Vector __attribute__((vector_size(kVectorBytes))) = Value;

  static Cell border(const SparseTask&) { return 0; }
  static Cell load(const Source* source, int64_t, int64_t) { return *source; }
  static Vector initial(const SparseTask&, int64_t) { return Vector{}; }
  static Vector broadcast(Weight weight) { return Vector{} + weight; }
  static Vector step(Vector sum, Vector cells, Vector weight) {
    const Vector product = cells * weight;
    return sum + product;
  }
};

struct Int8Cell {
  using Cell = uint32_t;
  using Source = uint8_t;
  using Weight = int32_t;
  using Sum = int32_t;
  using Vector __attribute__((vector_size(kVectorBytes))) = int32_t;
  static constexpr int kBits = 32 / kChannelsPerCell;

  static Cell border(const SparseTask& task) {
    const uint32_t code = static_cast<uint32_t>(task.epilogue.input_zero_point);
    return kChannelsPerCell == 4 ? code * 0x01010101u : code * 0x00010001u;
  }
  static Cell load(const Source* source, int64_t channel_stride, int64_t channels) {
    Cell cell = 0;
    for (int64_t c = 0; c < channels; ++c) cell |= static_cast<Cell>(source[c * channel_stride]) << (c * kBits);
    return cell;
  }
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

template <class Unit>
void fill_row(typename Unit::Cell* out, const typename Unit::Source* in, int64_t channel_stride,
              int64_t channels, int64_t column_stride, int64_t count) {
  if (channels == kChannelsPerCell && column_stride == 1) {
    for (int64_t q = 0; q < count; ++q) out[q] = Unit::load(in + q, channel_stride, kChannelsPerCell);
  } else if (channels == kChannelsPerCell && channel_stride == 1) {
    for (int64_t q = 0; q < count; ++q) out[q] = Unit::load(in + q * column_stride, 1, kChannelsPerCell);
  } else {
    for (int64_t q = 0; q < count; ++q) out[q] = Unit::load(in + q * column_stride, channel_stride, channels);
  }
}

// The input pixels that one row of a slot holds: columns [begin, end) come from `source` on, the others are
// border.
struct RowSource {
  int64_t begin, end;
  int64_t source;  // elements from the tensor's first
};

RowSource row_source(const SparseTask& task, int64_t image, int64_t row, int64_t row_phase,
                     int64_t column_phase) {
  const Conv2dShape& shape = task.shape;
  const int64_t y = row_phase + row * shape.stride_height - shape.pad_top;
  if (image >= task.input.images || y < 0 || y >= shape.in_height) return {0, 0, 0};
  const int64_t x = column_phase - shape.pad_left, stride = shape.stride_width;
  const int64_t begin = x >= 0 ? 0 : (-x + stride - 1) / stride;
  const int64_t inside = x >= shape.in_width ? 0 : (shape.in_width - x + stride - 1) / stride;
  const int64_t end = std::min(inside, task.layout.columns);
  if (begin >= end) return {0, 0, 0};
  return {begin, end,
          image * task.input.image_stride + y * task.input.row_stride +
              (x + begin * stride) * task.input.column_stride};
}

// 1x1 images with neighbouring channels (a linear layer): a transpose, 16 images at a time.
template <class Unit>
void fill_transposed(const SparseTask& task, int64_t first, int64_t unit_begin, int64_t unit_end,
                     typename Unit::Cell* cells) {
  constexpr int64_t kBlock = 16;
  const SparseLayout& layout = task.layout;
  const auto* source = static_cast<const typename Unit::Source*>(task.input.data);
  const int64_t images = std::min(layout.images, task.input.images - first);
  const int64_t channels = task.shape.in_channels, whole = channels / layout.group;
  for (int64_t t = 0; t < images; t += kBlock) {
    const int64_t count = std::min(kBlock, images - t);
    const auto* from = source + (first + t) * task.input.image_stride;
    for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
      auto* out = cells + unit * layout.unit_pitch() + t;
      const auto* in = from + unit * layout.group;
      if (unit < whole && count == kBlock) {
        for (int64_t i = 0; i < kBlock; ++i) {
          out[i] = Unit::load(in + i * task.input.image_stride, 1, sizeof(*out) == 4 ? kChannelsPerCell : 1);
        }
        continue;
      }
      const int64_t present = std::min(layout.group, channels - unit * layout.group);
      for (int64_t i = 0; i < count; ++i) out[i] = Unit::load(in + i * task.input.image_stride, 1, present);
    }
  }
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    auto* out = cells + unit * layout.unit_pitch();
    std::fill(out + images, out + layout.unit_pitch(), 0);
  }
}

template <class Unit>
void fill_slot_row(const SparseTask& task, const RowSource& row, int64_t unit_begin, int64_t unit_end,
                   typename Unit::Cell* out) {
  const SparseLayout& layout = task.layout;
  const int64_t group_channels = task.shape.in_channels / task.shape.groups;
  const auto border = Unit::border(task);
  const auto* source = static_cast<const typename Unit::Source*>(task.input.data) + row.source;
  for (int64_t unit = unit_begin; unit < unit_end; ++unit, out += layout.unit_pitch()) {
    const int64_t within = unit % layout.units_per_group * layout.group;
    const int64_t channel = unit / layout.units_per_group * group_channels + within;
    std::fill(out, out + row.begin, border);
    if (row.begin < row.end) {
      fill_row<Unit>(out + row.begin, source + channel * task.input.channel_stride, task.input.channel_stride,
                     std::min(layout.group, group_channels - within),
                     task.input.column_stride * task.shape.stride_width, row.end - row.begin);
    }
    std::fill(out + row.end, out + layout.columns, border);
  }
}

template <class Unit>
void fill(const SparseTask& task, int64_t first, int64_t unit_begin, int64_t unit_end,
          typename Unit::Cell* cells) {
  const SparseLayout& layout = task.layout;
  const bool last = unit_end == task.shape.groups * layout.units_per_group;
  if (last) std::fill(cells + unit_end * layout.unit_pitch(), cells + layout.cells, 0);
  if (layout.rows * layout.columns == 1 && layout.row_phase.size() * layout.column_phase.size() == 1 &&
      task.shape.in_height * task.shape.in_width == 1 && task.shape.groups == 1 && task.shape.pad_top == 0 &&
      task.shape.pad_left == 0 && task.input.channel_stride == 1) {
    fill_transposed<Unit>(task, first, unit_begin, unit_end, cells);
    return;
  }
  auto* slot = cells + unit_begin * layout.unit_pitch();
  for (const int64_t row_phase : layout.row_phase) {
    for (const int64_t column_phase : layout.column_phase) {
      for (int64_t at = 0; at < layout.images * layout.rows; ++at) {
        const RowSource row =
            row_source(task, first + at / layout.rows, at % layout.rows, row_phase, column_phase);
        fill_slot_row<Unit>(task, row, unit_begin, unit_end, slot + at * layout.columns);
      }
      for (int64_t unit = 0; unit < unit_end - unit_begin; ++unit) {
        auto* out = slot + unit * layout.unit_pitch();
        std::fill(out + layout.positions, out + layout.slot_pitch, 0);
      }
      slot += layout.slot_pitch;
    }
  }
}

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

void finish(const SparseTask& task, int64_t row, const float* sums, int64_t lanes, float* out) {
  const auto* bias = static_cast<const float*>(task.epilogue.bias);
  for (int64_t i = 0; i < lanes; ++i) out[i] = bias == nullptr ? sums[i] : sums[i] + bias[row];
}

void finish(const SparseTask& task, int64_t row, const double* sums, int64_t lanes, double* out) {
  const auto* bias = static_cast<const double*>(task.epilogue.bias);
  for (int64_t i = 0; i < lanes; ++i) out[i] = bias == nullptr ? sums[i] : sums[i] + bias[row];
}

void finish(const SparseTask& task, int64_t row, const int32_t* sums, int64_t lanes, float* out) {
  const float multiplier = task.epilogue.multiplier[row];
  const float bias = static_cast<const float*>(task.epilogue.bias)[row];
  for (int64_t i = 0; i < lanes; ++i) out[i] = rescale(sums[i], multiplier, bias);
}

void finish(const SparseTask& task, int64_t row, const int32_t* sums, int64_t lanes, uint8_t* out) {
  const float multiplier = task.epilogue.multiplier[row];
  const float bias = static_cast<const float*>(task.epilogue.bias)[row];
  const float low = static_cast<float>(task.epilogue.quant_min),
              high = static_cast<float>(task.epilogue.quant_max);
  for (int64_t i = 0; i < lanes; ++i) out[i] = to_code(rescale(sums[i], multiplier, bias), low, high);
}

template <class Unit, int Vectors>
void sum_row(const SparseTask& task, const typename Unit::Cell* cells, int64_t row, typename Unit::Sum* sums) {
  using Vector = typename Unit::Vector;
  constexpr int64_t kLanes = kVectorBytes / sizeof(typename Unit::Cell);
  const int32_t* offset = task.layout.offset.data();
  const int32_t* column = task.weight.col_indices;
  const auto* weight = static_cast<const typename Unit::Weight*>(task.weight.values);
  const int64_t end = task.weight.crow_indices[row + 1];
  Vector sum[Vectors];
  for (int v = 0; v < Vectors; ++v) sum[v] = Unit::initial(task, row);
  for (int64_t at = task.weight.crow_indices[row]; at < end; ++at) {
    const auto* from = cells + offset[column[at]];
    const Vector factor = Unit::broadcast(weight[at]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      Vector lanes;
      std::memcpy(&lanes, from + v * kLanes, sizeof lanes);
      sum[v] = Unit::step(sum[v], lanes, factor);
    }
  }
  std::memcpy(sums, sum, sizeof sum);
}

template <class Unit, class Output, int Vectors>
void run_panel(const SparseTask& task, int64_t first, const typename Unit::Cell* cells, int64_t begin,
               int64_t end, int64_t row_begin, int64_t row_end) {
  alignas(64) typename Unit::Sum sums[kMaxPanel];
  alignas(64) Output block[kRowBlock][kMaxPanel];
  Segment segments[kMaxPanel];
  const int64_t count = make_segments(task, first, begin, end, segments);
  if (count == 0) return;
  const int64_t group_rows = task.shape.out_channels / task.shape.groups;
  const int64_t group_pitch = task.layout.units_per_group * task.layout.unit_pitch();
  for (int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, row_end - row);
    for (int64_t r = 0; r < rows; ++r) {
      const auto* group = cells + (row + r) / group_rows * group_pitch + begin;
      sum_row<Unit, Vectors>(task, group, row + r, sums);
      finish(task, row + r, sums, end - begin, block[r]);
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

int64_t sparse_group_kernel() { return kChannelsPerCell; }

void sparse_fill_kernel(const SparseTask& task, int64_t first, int64_t unit_begin, int64_t unit_end,
                        void* cells) {
  switch (task.type) {
    case SparseType::kFloat:
      return fill<FloatCell<float>>(task, first, unit_begin, unit_end, static_cast<float*>(cells));
    case SparseType::kDouble:
      return fill<FloatCell<double>>(task, first, unit_begin, unit_end, static_cast<double*>(cells));
    case SparseType::kInt8:
      return fill<Int8Cell>(task, first, unit_begin, unit_end, static_cast<uint32_t*>(cells));
  }
}

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
