#include "core/quantize_image.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

struct Quantizer {
  float inv_scale, zero_point, low, high;
  // A NaN, whose cast would be undefined, becomes `low`.
  int32_t operator()(float x) const {
    return static_cast<int32_t>(x != x ? low : quantize_value(x, inv_scale, zero_point, low, high));
  }
};

// A row of at most 4 channel planes: the codes of a pixel are one 32-bit word.
template <int Channels>
int quantize_planes(const Quantizer& quantizer, const float* __restrict in, int64_t channel_stride,
                    uint32_t* __restrict words, int64_t width) {
  const Quantizer code = quantizer;
  int nan = 0;
  for (int64_t x = 0; x < width; ++x) {
    uint32_t word = 0;
    for (int c = 0; c < Channels; ++c) {
      const float value = in[c * channel_stride + x];
      nan |= value != value;
      word |= static_cast<uint32_t>(code(value)) << (8 * c);
    }
    words[x] = word;
  }
  return nan;
}

// Channels of one pixel, or a vector.
int quantize_run(const Quantizer& quantizer, const float* __restrict in, uint8_t* __restrict out,
                 int64_t count) {
  const Quantizer code = quantizer;
  int32_t nan = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = in[i];
    nan |= value != value;
    out[i] = static_cast<uint8_t>(code(value));
  }
  return nan;
}

int quantize_row(const QuantizeImageParams& p, const Quantizer& code, const ConstFloatImage& input, int64_t y,
                 const Int8Image& output) {
  const float* in = input.data + y * input.row_stride;
  uint8_t* out = output.data + y * output.row_stride;
  int nan = 0;
  if (input.channel_stride == 1) {
    for (int64_t x = 0; x < p.width; ++x) {
      nan |= quantize_run(code, in + x * input.pixel_stride, out + x * output.pixel_stride, p.channels);
    }
    return nan;
  }
  if (p.channels == 1 && input.pixel_stride == 1 && output.pixel_stride == 1) {
    return quantize_run(code, in, out, p.width);
  }
  if (output.pixel_stride == 4 && input.pixel_stride == 1) {
    using Planes = int (*)(const Quantizer&, const float*, int64_t, uint32_t*, int64_t);
    static constexpr Planes planes[] = {quantize_planes<1>, quantize_planes<2>, quantize_planes<3>,
                                        quantize_planes<4>};
    uint32_t* words = reinterpret_cast<uint32_t*>(out);
    return planes[p.channels - 1](code, in, input.channel_stride, words, p.width);
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    const float* plane = in + c * input.channel_stride;
    for (int64_t x = 0; x < p.width; ++x) {
      const float value = plane[x * input.pixel_stride];
      nan |= value != value;
      out[x * output.pixel_stride + c] = static_cast<uint8_t>(code(value));
    }
  }
  return nan;
}

constexpr int64_t kNarrow = 64;  // rows shorter than this leave most of a vector loop's lanes empty
constexpr int64_t kNarrowCodes = 1024;

// Rows of one channel that follow each other in memory: quantized together, then moved to their places.
int quantize_narrow(const QuantizeImageParams& p, const Quantizer& code, const float* in, int64_t row_begin,
                    int64_t row_end, const Int8Image& output) {
  uint8_t codes[kNarrowCodes];
  const int64_t most = kNarrowCodes / p.width;
  int nan = 0;
  for (int64_t y = row_begin; y < row_end; y += most) {
    const int64_t rows = row_end - y < most ? row_end - y : most;
    nan |= quantize_run(code, in + y * p.width, codes, rows * p.width);
    for (int64_t row = 0; row < rows; ++row) {
      memcpy(output.data + (y + row) * output.row_stride, codes + row * p.width, static_cast<size_t>(p.width));
    }
  }
  return nan;
}

int64_t find_nan(const QuantizeImageParams& p, const ConstFloatImage& input, int64_t row_begin,
                 int64_t row_end) {
  for (int64_t c = 0; c < p.channels; ++c) {
    for (int64_t y = row_begin; y < row_end; ++y) {
      for (int64_t x = 0; x < p.width; ++x) {
        const float value =
            input.data[c * input.channel_stride + y * input.row_stride + x * input.pixel_stride];
        if (value != value) return (c * p.height + y) * p.width + x;
      }
    }
  }
  return -1;
}

}  // namespace

int64_t quantize_image_kernel(const QuantizeImageParams& p, const ConstFloatImage& input,
                              const Int8Image& output, int64_t row_begin, int64_t row_end) {
  const Quantizer code{p.inv_scale, static_cast<float>(p.zero_point), static_cast<float>(p.quant_min),
                       static_cast<float>(p.quant_max)};
  int nan = 0;
  if (p.channels == 1 && input.pixel_stride == 1 && output.pixel_stride == 1 && input.row_stride == p.width &&
      p.width < kNarrow) {
    nan = quantize_narrow(p, code, input.data, row_begin, row_end, output);
  } else {
    for (int64_t y = row_begin; y < row_end; ++y) nan |= quantize_row(p, code, input, y, output);
  }
  return nan != 0 ? find_nan(p, input, row_begin, row_end) : -1;
}

void dequantize_image_kernel(const DequantizeImageParams& p, const Int8Image& input, const FloatImage& output,
                             int64_t row_begin, int64_t row_end) {
  const float zero_point = static_cast<float>(p.zero_point);
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.width; ++x) {
      const uint8_t* in = input.data + y * input.row_stride + x * input.pixel_stride;
      float* out = output.data + y * output.row_stride + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; ++c) {
        out[c * output.channel_stride] = dequantize_value(static_cast<float>(in[c]), p.scale, zero_point);
      }
    }
  }
}

#include "core/isa_end.h"
