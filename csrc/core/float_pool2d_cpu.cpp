#include "core/float_pool2d.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_vector_cpu.h"

namespace {

int64_t positions(const FloatSpan& span) { return (span.end - span.begin + span.step - 1) / span.step; }

// Of one output pixel: `take` joins what it has with one more position.
template <class Take>
inline void pool_pixel(const FloatSpan& rows, const FloatSpan& columns, const ConstNhwcImage& input,
                       int64_t channels, float start, float* out, const Take& take, Floats factor) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t count = channels - c < kLanes ? channels - c : kLanes;
    Floats result = broadcast(start);
    for (int64_t y = rows.begin; y < rows.end; y += rows.step) {
      const float* in = input.row(y) + c;
      for (int64_t x = columns.begin; x < columns.end; x += columns.step) {
        const float* at = in + x * input.pixel_stride;
        result = take(result, count == kLanes ? load_floats(at) : load_some(at, count));
      }
    }
    store_some(out + c, result * factor, count);
  }
}

}  // namespace

void float_max_pool2d_kernel(const FloatPool2dParams& p, const ConstNhwcImage& input, const NhwcImage& output,
                             int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.out_width; ++x) {
      pool_pixel(
          p.rows[y], p.columns[x], input, p.channels, -__builtin_inff(),
          output.row(y) + x * output.pixel_stride,
          [](Floats a, Floats b) __attribute__((always_inline)) { return a > b ? a : b; }, broadcast(1.0f));
    }
  }
}

void float_avg_pool2d_kernel(const FloatPool2dParams& p, const ConstNhwcImage& input, const NhwcImage& output,
                             int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.out_width; ++x) {
      const int64_t area = p.divisor != 0 ? p.divisor : positions(p.rows[y]) * positions(p.columns[x]);
      pool_pixel(
          p.rows[y], p.columns[x], input, p.channels, 0.0f, output.row(y) + x * output.pixel_stride,
          [](Floats a, Floats b) __attribute__((always_inline)) { return a + b; },
          broadcast(1.0f / static_cast<float>(area)));
    }
  }
}

#include "core/isa_end.h"
