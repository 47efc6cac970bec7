#include "core/max_pool2d.h"

#include "core/code_block_cpu.h"

#include "core/isa_begin.h"

namespace {

struct Taps {
  int64_t begin, end;  // of the kernel, inside the image
};

inline Taps clip(int64_t start, int64_t size, int64_t kernel, int64_t dilation) {
  const int64_t begin = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int64_t inside = start < size ? (size - 1 - start) / dilation + 1 : 0;
  return {begin, inside < kernel ? inside : kernel};
}

// The taps of a window that lie in the image.
struct Window {
  const uint8_t* first;
  int64_t rows, columns, row_step, column_step;
};

#if defined(PQK_X86_64)

inline void pool_block(const Window& window, int64_t count, uint8_t* out) {
  Ints largest = load_bytes(window.first);
  for (int64_t y = 0; y < window.rows; ++y) {
    const uint8_t* in = window.first + y * window.row_step;
    for (int64_t x = 0; x < window.columns; ++x, in += window.column_step) {
      largest = maximum_bytes(largest, load_bytes(in));
    }
  }
  store_first(out, largest, count);
}

#else

constexpr int64_t kBlock = 64;

inline void pool_block(const Window& window, int64_t count, uint8_t* out) {
  for (int64_t c = 0; c < count && c < kBlock; ++c) {
    uint8_t largest = 0;
    for (int64_t y = 0; y < window.rows; ++y) {
      for (int64_t x = 0; x < window.columns; ++x) {
        const uint8_t code = window.first[y * window.row_step + x * window.column_step + c];
        largest = code > largest ? code : largest;
      }
    }
    out[c] = largest;
  }
}

#endif

}  // namespace

void max_pool2d_kernel(const MaxPool2dParams& p, const Int8Image& input, const Int8Image& output,
                       int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const int64_t top = y * p.stride_height - p.pad_top;
    const Taps rows = clip(top, p.in_height, p.kernel_height, p.dilation_height);
    for (int64_t x = 0; x < p.out_width; ++x) {
      const int64_t left = x * p.stride_width - p.pad_left;
      const Taps columns = clip(left, p.in_width, p.kernel_width, p.dilation_width);
      Window window{input.data + (top + rows.begin * p.dilation_height) * input.row_stride +
                        (left + columns.begin * p.dilation_width) * input.pixel_stride,
                    rows.end - rows.begin, columns.end - columns.begin, p.dilation_height * input.row_stride,
                    p.dilation_width * input.pixel_stride};
      uint8_t* out = output.data + y * output.row_stride + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; c += kBlock, window.first += kBlock) {
        pool_block(window, p.channels - c, out + c);
      }
    }
  }
}

#include "core/isa_end.h"
