#include <algorithm>

#include "core/int8_conv2d_plan.h"
#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

// Adds the products of one quad of input channels to a tile of accumulators.
inline void add_quad(int32_t* accumulator, const uint8_t* x, const int8_t* weight) {
  for (int64_t lane = 0; lane < kOutTile; ++lane) {
    int32_t sum = 0;
    for (int64_t i = 0; i < 4; ++i) sum += x[i] * weight[lane * 4 + i];
    accumulator[lane] += sum;
  }
}

struct Pixel {
  const uint8_t* residual;  // of the same pixel and first channel, or null
  uint8_t* output;
  float* float_output;
};

inline void store_tile(const Int8ConvPlan& p, const int32_t* accumulator, int64_t constants, int64_t channels,
                       const Pixel& pixel) {
  const float* multiplier = p.multiplier + constants;
  const float* bias = p.bias + constants;
  for (int64_t lane = 0; lane < channels; ++lane) {
    const float value = p.has_residual
                            ? rescale_residual(accumulator[lane], multiplier[lane], pixel.residual[lane],
                                               p.residual_zero_point, p.residual_multiplier, bias[lane])
                            : rescale(accumulator[lane], multiplier[lane], bias[lane]);
    if (p.float_output) {
      pixel.float_output[lane] = value;
    } else {
      pixel.output[lane] = to_code(value, p.quant_min, p.quant_max);
    }
  }
}

}  // namespace

WeightFormat int8_weight_format() { return WeightFormat::kQuads; }

void int8_direct_kernel(const Int8ConvPlan& p, const Int8Image& input, const Int8Image* residual,
                        const Int8Image& output, float* float_output, int64_t row_begin, int64_t row_end) {
  const Conv2dShape& s = p.shape;
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < s.out_width; ++x) {
      for (int64_t tile = 0; tile < s.groups * p.tiles; ++tile) {
        const int64_t group = tile / p.tiles, first = tile % p.tiles * kOutTile;
        const int64_t channel = group * p.group_out + first;
        const uint8_t* in = input.data + (y * s.stride_height - s.pad_top) * input.row_stride +
                            (x * s.stride_width - s.pad_left) * input.pixel_stride + group * p.group_in;
        const int8_t* weight = reinterpret_cast<const int8_t*>(p.weight + tile * p.tile_bytes);
        int32_t accumulator[kOutTile];
        std::copy_n(p.compensation + tile * kOutTile, kOutTile, accumulator);
        for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
          for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
            const uint8_t* tap =
                in + ky * s.dilation_height * input.row_stride + kx * s.dilation_width * input.pixel_stride;
            for (int64_t quad = 0; quad < p.tap_quads; ++quad, weight += kOutTile * 4) {
              add_quad(accumulator, tap + quad * 4, weight);
            }
          }
        }
        const Pixel pixel{
            residual ? residual->data + y * residual->row_stride + x * residual->pixel_stride + channel
                     : nullptr,
            p.float_output ? nullptr : output.data + y * output.row_stride + x * output.pixel_stride + channel,
            p.float_output ? float_output + (y * s.out_width + x) * s.out_channels + channel : nullptr};
        store_tile(p, accumulator, tile * kOutTile, std::min(kOutTile, p.group_out - first), pixel);
      }
    }
  }
}

#include "core/isa_end.h"
