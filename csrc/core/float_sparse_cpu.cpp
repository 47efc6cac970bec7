#include <algorithm>
#include <array>
#include <utility>

#include "core/float_sparse.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_vector_cpu.h"

#include "core/float_finish_cpu.h"
#include "core/float_transpose_cpu.h"

namespace {

constexpr int kMaxVectors = 8, kMaxPanel = kMaxVectors * kLanes;  // of positions
constexpr int64_t kBlock = 16;                                    // output channels that are stored together

// Sums of R output channels side by side: one alone would wait for its own sums where there are few vectors.
template <int R, int V>
inline void sum_rows(const float* cells, const FloatSparseEntry* entries, const int32_t* rows, float* sums) {
  Floats sum[R][V] = {};
  const auto add = [&](int r, int64_t at) __attribute__((always_inline)) {
    const FloatSparseEntry& entry = entries[at];
    const Floats weight = broadcast(entry.weight);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sum[r][v] = multiply_add(load_floats(cells + entry.cell + v * kLanes), weight, sum[r][v]);
    }
  };
  int64_t shared = rows[1] - rows[0];
  for (int r = 1; r < R; ++r) shared = std::min<int64_t>(shared, rows[r + 1] - rows[r]);
  for (int64_t i = 0; i < shared; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) add(r, rows[r] + i);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    for (int64_t at = rows[r] + shared; at < rows[r + 1]; ++at) add(r, at);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_floats(sums + r * kMaxPanel + v * kLanes, sum[r][v]);
  }
}

constexpr int rows_together(int vectors) { return vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1; }

// The sums of `count` output channels, kMaxPanel floats apart.
template <int V>
void sum_block(const float* cells, const FloatSparseEntry* entries, const int32_t* rows, int64_t count,
               float* sums) {
  constexpr int kTogether = rows_together(V);
  int64_t r = 0;
  for (; r + kTogether <= count; r += kTogether) {
    sum_rows<kTogether, V>(cells, entries, rows + r, sums + r * kMaxPanel);
  }
  for (; r < count; ++r) sum_rows<1, V>(cells, entries, rows + r, sums + r * kMaxPanel);
}

using BlockFunction = void(const float*, const FloatSparseEntry*, const int32_t*, int64_t, float*);

template <int... V>
constexpr std::array<BlockFunction*, kMaxVectors> list_blocks(std::integer_sequence<int, V...>) {
  return {&sum_block<V + 1>...};
}
constexpr std::array<BlockFunction*, kMaxVectors> kBlocks =
    list_blocks(std::make_integer_sequence<int, kMaxVectors>());

// Rows [row, row + rows) of some images.
class SparseRun {
 public:
  SparseRun(const FloatSparsePlan& plan, const FloatConvImages& images, int64_t row, int64_t rows)
      : plan_(plan), images_(images), row_(row), rows_(rows) {
    const SparseLayout& layout = plan.layout;
    columns_ = layout.columns;
    lines_ = rows + layout.rows - plan.shape.out_height;
    cells_ = reinterpret_cast<float*>(images.scratch);
  }

  void run(int64_t first_image, int64_t count) {
    first_image_ = first_image;
    for (int64_t image = 0; image < count; ++image) fill(image);
    // Behind the last pixel's position nothing is asked for.
    const int64_t positions = ((count - 1) * lines_ + rows_ - 1) * columns_ + plan_.shape.out_width;
    const int64_t vectors = (positions + kLanes - 1) / kLanes;
    const int64_t panels = (vectors + kMaxVectors - 1) / kMaxVectors;
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t begin = vectors * i / panels, end = vectors * (i + 1) / panels;
      run_panel(begin * kLanes, end - begin, std::min(end * kLanes, positions));
    }
  }

 private:
  // The planar copy of an image: what every phase of the stride reads of it. Cells that no output needs are
  // left.
  void fill(int64_t image) {
    const Conv2dShape& s = plan_.shape;
    const SparseLayout& layout = plan_.layout;
    const ConstNhwcImage& in = images_.input;
    // Past the last tap of the last window, counted from the first tap of the first.
    const int64_t end_y = (rows_ - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1;
    const int64_t end_x = (s.out_width - 1) * s.stride_width + (s.kernel_width - 1) * s.dilation_width + 1;
    const float* origin = in.row(row_ * s.stride_height - s.pad_top) - s.pad_left * in.pixel_stride +
                          (first_image_ + image) * images_.input_step;
    const int64_t step_x = s.stride_width * in.pixel_stride, step_y = s.stride_height * in.row_stride;
    const int64_t pitch = layout.unit_pitch();
    float* to = cells_ + image * lines_ * columns_;
    for (const int64_t y : layout.row_phase) {
      const int64_t lines = std::min(lines_, (end_y - y + s.stride_height - 1) / s.stride_height);
      for (const int64_t x : layout.column_phase) {
        const int64_t pixels = std::min(columns_, (end_x - x + s.stride_width - 1) / s.stride_width);
        const float* from = origin + y * in.row_stride + x * in.pixel_stride;
        if (step_y == columns_ * step_x && pixels == columns_) {
          transpose(from, step_x, lines * columns_, s.in_channels, to, pitch);
        } else {
          for (int64_t line = 0; line < lines; ++line) {
            transpose(from + line * step_y, step_x, pixels, s.in_channels, to + line * columns_, pitch);
          }
        }
        to += layout.slot_pitch;
      }
    }
  }

  void run_panel(int64_t begin, int64_t vectors, int64_t end) const {
    const Conv2dShape& s = plan_.shape;
    const int64_t group_out = s.out_channels / s.groups;
    const int64_t group_cells = s.in_channels / s.groups * plan_.layout.unit_pitch();
    alignas(64) float sums[kBlock * kMaxPanel], pixels[kMaxPanel * kBlock];
    for (int64_t channel = 0; channel < s.out_channels;) {
      const int64_t group = channel / group_out;
      const int64_t count = std::min(kBlock, (group + 1) * group_out - channel);
      kBlocks[vectors - 1](cells_ + group * group_cells + begin, plan_.entries, plan_.rows + channel, count,
                           sums);
      transpose(sums, kMaxPanel, kBlock, vectors * kLanes, pixels, kBlock);
      store(begin, end, channel, count, pixels);
      channel += count;
    }
  }

  // Channels [channel, channel + count) of the positions that are output pixels.
  void store(int64_t begin, int64_t end, int64_t channel, int64_t count, const float* pixels) const {
    const Channels finish(plan_.epilogue, channel, count);
    const NhwcImage& out = images_.output;
    const ConstNhwcImage& other = images_.residual;
    for (int64_t position = begin; position < end;) {
      const int64_t x = position % columns_, line = position / columns_;
      const int64_t image = first_image_ + line / lines_, y = line % lines_;
      const int64_t next = std::min(position - x + columns_, end);
      if (y < rows_) {
        float* to = out.row(row_ + y) + image * images_.output_step + channel;
        const float* residual =
            other.data == nullptr ? nullptr : other.row(row_ + y) + image * images_.residual_step + channel;
        const int64_t last = std::min(next - position + x, plan_.shape.out_width);
        for (int64_t i = x; i < last; ++i) {
          finish.finish(pixels + (position - begin + i - x) * kBlock,
                        residual == nullptr ? nullptr : residual + i * other.pixel_stride,
                        to + i * out.pixel_stride);
        }
      }
      position = next;
    }
  }

  const FloatSparsePlan& plan_;
  const FloatConvImages& images_;
  const int64_t row_, rows_;
  int64_t columns_, lines_;  // of an image's positions
  int64_t first_image_ = 0;
  float* cells_;
};

}  // namespace

void float_sparse_kernel(const FloatSparsePlan& plan, const FloatConvImages& images, int64_t row_begin,
                         int64_t row_end) {
  SparseRun run(plan, images, row_begin, row_end - row_begin);
  for (int64_t image = 0; image < images.count; image += plan.layout.images) {
    run.run(image, std::min(plan.layout.images, images.count - image));
  }
}

#include "core/isa_end.h"
