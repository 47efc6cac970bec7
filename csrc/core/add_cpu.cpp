#include "core/add.h"

#include "core/code_block_cpu.h"
#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

#if defined(PQK_X86_64)

struct Term {
  Floats unbiased, multiplier;

  Term(int32_t zero_point, float multiplier)
      : unbiased(set_floats(unbias(zero_point))), multiplier(set_floats(multiplier)) {}
  Floats operator()(Floats biased) const { return multiply(add_by_product(biased, unbiased), multiplier); }
};

template <bool clamps_early>
void add_blocks(const AddParams& p, const uint8_t* a, const uint8_t* b, uint8_t* out, int64_t count) {
  const Term first(p.zero_point_a, p.multiplier_a), second(p.zero_point_b, p.multiplier_b);
  const Floats bias = set_floats(p.bias);
  const CodeRange range(p.quant_min, p.quant_max);
  for (int64_t i = 0; i < count; i += kBlock) {
    FloatBlock sum = biased_floats(load_bytes(a + i));
    const FloatBlock other = biased_floats(load_bytes(b + i));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      sum.vector[v] = add(add(first(sum.vector[v]), second(other.vector[v])), bias);
    }
    store_first(out + i, range.codes<clamps_early>(sum), count - i);
  }
}

void add_run(const AddParams& p, const uint8_t* a, const uint8_t* b, uint8_t* out, int64_t count) {
  p.fits_int32 ? add_blocks<false>(p, a, b, out, count) : add_blocks<true>(p, a, b, out, count);
}

#else

void add_run(const AddParams& p, const uint8_t* a, const uint8_t* b, uint8_t* out, int64_t count) {
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t i = 0; i < count; ++i) {
    const float first = static_cast<float>(a[i] - p.zero_point_a) * p.multiplier_a;
    const float second = static_cast<float>(b[i] - p.zero_point_b) * p.multiplier_b;
    const float sum = first + second;
    out[i] = to_code(sum + p.bias, low, high);
  }
}

#endif

}  // namespace

void add_kernel(const AddParams& p, const Int8Image& a, const Int8Image& b, const Int8Image& output,
                int64_t row_begin, int64_t row_end) {
  // Bytes between pixels may hold anything, so rows of equal layout are one run.
  const bool whole_rows = a.pixel_stride == b.pixel_stride && a.pixel_stride == output.pixel_stride &&
                          output.pixel_stride - p.channels < 4;
  const int64_t runs = whole_rows ? 1 : p.width;
  const int64_t length = whole_rows ? p.width * output.pixel_stride : p.channels;
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < runs; ++x) {
      add_run(p, a.data + y * a.row_stride + x * a.pixel_stride, b.data + y * b.row_stride + x * b.pixel_stride,
              output.data + y * output.row_stride + x * output.pixel_stride, length);
    }
  }
}

#include "core/isa_end.h"
