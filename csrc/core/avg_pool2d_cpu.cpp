#include "core/avg_pool2d.h"

#include "core/code_block_cpu.h"
#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

struct Window {
  const uint8_t* first;  // its first pixel's first channel of the block
  int64_t row_stride, pixel_stride;
  int64_t rows, columns;

  int32_t positions() const { return static_cast<int32_t>(rows * columns); }
};

// What turns the sum of a window into a code: rescale(sum - offset, multiplier, bias).
struct Mean {
  int32_t offset;
  float multiplier, bias;

  Mean(const AvgPool2dParams& p, const Window& window)
      : offset(window.positions() * p.zero_point),
        multiplier(p.multiplier / static_cast<float>(p.divisor != 0 ? p.divisor : window.positions())),
        bias(p.bias) {}
};

#if defined(PQK_X86_64)

constexpr int64_t kMostInWord = 257;  // codes whose sum fits 16 bits

inline void add_wide(IntBlock& sums, Ints low, Ints high) {
  const Ints zero = set_ints(0);
  sums.vector[0] = add_ints(sums.vector[0], low_words(low, zero));
  sums.vector[1] = add_ints(sums.vector[1], high_words(low, zero));
  sums.vector[2] = add_ints(sums.vector[2], low_words(high, zero));
  sums.vector[3] = add_ints(sums.vector[3], high_words(high, zero));
}

inline IntBlock sum_window(const Window& window) {
  const Ints zero = set_ints(0);
  IntBlock sums{{zero, zero, zero, zero}};
  Ints low = zero, high = zero;  // sums of 16 bits
  int64_t left = kMostInWord;
  for (int64_t y = 0; y < window.rows; ++y) {
    const uint8_t* in = window.first + y * window.row_stride;
    for (int64_t x = 0; x < window.columns; ++x, in += window.pixel_stride) {
      const Ints codes = load_bytes(in);
      low = add_words(low, low_bytes(codes, zero));
      high = add_words(high, high_bytes(codes, zero));
      if (--left > 0) continue;
      add_wide(sums, low, high);
      low = high = zero;
      left = kMostInWord;
    }
  }
  add_wide(sums, low, high);
  return sums;
}

void pool_block(const AvgPool2dParams& p, const Window& window, int64_t count, uint8_t* out) {
  const Mean mean(p, window);
  const CodeRange range(p.quant_min, p.quant_max);
  const Floats multiplier = set_floats(mean.multiplier), bias = set_floats(mean.bias);
  const Ints offset = set_ints(mean.offset);
  const IntBlock sums = sum_window(window);
  FloatBlock values;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    values.vector[i] = add(multiply(to_floats(subtract(sums.vector[i], offset)), multiplier), bias);
  }
  store_first(out, p.fits_int32 ? range.codes<false>(values) : range.codes<true>(values), count);
}

#else

constexpr int64_t kBlock = 64;

void pool_block(const AvgPool2dParams& p, const Window& window, int64_t count, uint8_t* out) {
  const Mean mean(p, window);
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t c = 0; c < count && c < kBlock; ++c) {
    int32_t sum = 0;
    for (int64_t y = 0; y < window.rows; ++y) {
      for (int64_t x = 0; x < window.columns; ++x) {
        sum += window.first[y * window.row_stride + x * window.pixel_stride + c];
      }
    }
    out[c] = to_code(rescale(sum - mean.offset, mean.multiplier, mean.bias), low, high);
  }
}

#endif

}  // namespace

void avg_pool2d_kernel(const AvgPool2dParams& p, const Int8Image& input, const Int8Image& output,
                       int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const PoolSpan rows = p.rows[y];
    for (int64_t x = 0; x < p.out_width; ++x) {
      const PoolSpan columns = p.columns[x];
      Window window{input.data + rows.begin * input.row_stride + columns.begin * input.pixel_stride,
                    input.row_stride, input.pixel_stride, rows.end - rows.begin, columns.end - columns.begin};
      uint8_t* out = output.data + y * output.row_stride + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; c += kBlock, window.first += kBlock) {
        pool_block(p, window, p.channels - c, out + c);
      }
    }
  }
}

#include "core/isa_end.h"
