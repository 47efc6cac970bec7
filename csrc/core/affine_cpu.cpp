#include "core/affine.h"

#include "core/code_block_cpu.h"
#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

#if defined(PQK_X86_64)

// One block of channels, whose constants stay in registers over all rows.
template <bool clamps_early>
void affine_block(const AffineParams& p, int64_t first, const Int8Image& input, const Int8Image& output,
                  int64_t row_begin, int64_t row_end) {
  const int64_t left = p.channels - first, count = left < kBlock ? left : kBlock;
  float unbiased[kBlock];
  for (int64_t c = 0; c < count; ++c) unbiased[c] = unbias(p.zero_point[first + c]);
  const FloatBlock zero_point = load_constants(unbiased, count);
  const FloatBlock multiplier = load_constants(p.multiplier + first, count);
  const FloatBlock bias = load_constants(p.bias + first, count);
  const CodeRange range(p.quant_min, p.quant_max);
  const int64_t width = p.width, in_step = input.pixel_stride, out_step = output.pixel_stride;
  for (int64_t y = row_begin; y < row_end; ++y) {
    const uint8_t* in = input.data + y * input.row_stride + first;
    uint8_t* out = output.data + y * output.row_stride + first;
    for (int64_t x = 0; x < width; ++x, in += in_step, out += out_step) {
      FloatBlock value = biased_floats(load_bytes(in));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Floats product =
            multiply(add_by_product(value.vector[i], zero_point.vector[i]), multiplier.vector[i]);
        value.vector[i] = add_by_product(product, bias.vector[i]);
      }
      store_first(out, range.codes<clamps_early>(value), count);
    }
  }
}

void affine_channels(const AffineParams& p, int64_t first, const Int8Image& input, const Int8Image& output,
                     int64_t row_begin, int64_t row_end) {
  p.fits_int32 ? affine_block<false>(p, first, input, output, row_begin, row_end)
               : affine_block<true>(p, first, input, output, row_begin, row_end);
}

#else

constexpr int64_t kBlock = 64;

void affine_channels(const AffineParams& p, int64_t first, const Int8Image& input, const Int8Image& output,
                     int64_t row_begin, int64_t row_end) {
  const int64_t end = first + kBlock < p.channels ? first + kBlock : p.channels;
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.width; ++x) {
      const uint8_t* in = input.data + y * input.row_stride + x * input.pixel_stride;
      uint8_t* out = output.data + y * output.row_stride + x * output.pixel_stride;
      for (int64_t c = first; c < end; ++c) {
        out[c] = to_code(rescale(in[c] - p.zero_point[c], p.multiplier[c], p.bias[c]), low, high);
      }
    }
  }
}

#endif

}  // namespace

void affine_kernel(const AffineParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                   int64_t row_end) {
  for (int64_t c = 0; c < p.channels; c += kBlock) affine_channels(p, c, input, output, row_begin, row_end);
}

#include "core/isa_end.h"
