#include <algorithm>
#include <cstring>

#include "core/sparse_conv2d.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

// Four bytes for the byte products of VNNI, else two of 16 bits for the word products that every x86 has.
constexpr int kChannelsPerCell = PQK_ISA_LEVEL >= 2 ? 4 : 2;

// How a cell of one type is read from the input.
template <class Value>
struct FloatCell {
  using Cell = Value;
  using Source = Value;

  static Cell border(const SparseTask&) { return 0; }
  static Cell load(const Source* source, int64_t, int64_t) { return *source; }
};

struct Int8Cell {
  using Cell = uint32_t;
  using Source = uint8_t;
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
};

#if defined(PQK_X86_64)
// The cells of 16 neighbouring pixels from whole channels.
void interleave_16(uint32_t* out, const uint8_t* in, int64_t channel_stride) {
  __m128i plane[kChannelsPerCell];
  for (int c = 0; c < kChannelsPerCell; ++c) {
    plane[c] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + c * channel_stride));
  }
#if PQK_ISA_LEVEL >= 2
  const __m128i low_a = _mm_unpacklo_epi8(plane[0], plane[1]), high_a = _mm_unpackhi_epi8(plane[0], plane[1]);
  const __m128i low_b = _mm_unpacklo_epi8(plane[2], plane[3]), high_b = _mm_unpackhi_epi8(plane[2], plane[3]);
#else
  const __m128i zero = _mm_setzero_si128();
  const __m128i low_a = _mm_unpacklo_epi8(plane[0], zero), high_a = _mm_unpackhi_epi8(plane[0], zero);
  const __m128i low_b = _mm_unpacklo_epi8(plane[1], zero), high_b = _mm_unpackhi_epi8(plane[1], zero);
#endif
  auto* cells = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(cells, _mm_unpacklo_epi16(low_a, low_b));
  _mm_storeu_si128(cells + 1, _mm_unpackhi_epi16(low_a, low_b));
  _mm_storeu_si128(cells + 2, _mm_unpacklo_epi16(high_a, high_b));
  _mm_storeu_si128(cells + 3, _mm_unpackhi_epi16(high_a, high_b));
}
#endif

// The same for any number of pixels; the last 16 may overlap those before. Returns false where it does not
// apply.
bool interleave(uint32_t* out, const uint8_t* in, int64_t channel_stride, int64_t count) {
#if defined(PQK_X86_64)
  if (count < 16) return false;
  int64_t q = 0;
  for (; q + 16 <= count; q += 16) interleave_16(out + q, in + q, channel_stride);
  if (q < count) interleave_16(out + count - 16, in + count - 16, channel_stride);
  return true;
#else
  (void)out, (void)in, (void)channel_stride, (void)count;
  return false;
#endif
}

template <class Value>
void fill_row(Value* out, const Value* in, int64_t, int64_t, int64_t column_stride, int64_t count) {
  if (column_stride == 1) {
    std::memcpy(out, in, static_cast<size_t>(count) * sizeof(Value));
    return;
  }
  for (int64_t q = 0; q < count; ++q) out[q] = in[q * column_stride];
}

void fill_row(uint32_t* out, const uint8_t* in, int64_t channel_stride, int64_t channels, int64_t column_stride,
              int64_t count) {
  const bool whole = channels == kChannelsPerCell;
  if (whole && column_stride == 1 && interleave(out, in, channel_stride, count)) return;
  if (whole && channel_stride == 1) {
    for (int64_t q = 0; q < count; ++q) out[q] = Int8Cell::load(in + q * column_stride, 1, kChannelsPerCell);
    return;
  }
  for (int64_t q = 0; q < count; ++q) out[q] = Int8Cell::load(in + q * column_stride, channel_stride, channels);
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
  int64_t within = unit_begin % layout.units_per_group * layout.group;
  int64_t channel = unit_begin / layout.units_per_group * group_channels + within;
  const int64_t pitch = layout.unit_pitch(), column_stride = task.input.column_stride * task.shape.stride_width;
  for (int64_t unit = unit_begin; unit < unit_end; ++unit, out += pitch) {
    const int64_t channels = std::min(layout.group, group_channels - within);
    for (int64_t q = 0; q < row.begin; ++q) out[q] = border;
    if (row.begin < row.end) {
      fill_row(out + row.begin, source + channel * task.input.channel_stride, task.input.channel_stride,
               channels, column_stride, row.end - row.begin);
    }
    for (int64_t q = row.end; q < layout.columns; ++q) out[q] = border;
    channel += channels;
    within += channels;
    if (within == group_channels) within = 0;
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

}  // namespace

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

#include "core/isa_end.h"
