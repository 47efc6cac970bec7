// Depthwise convolution on NHWC images. The bytes of four neighbouring pixels are interleaved, so that a 32-bit
// lane holds four horizontal taps of one channel, and one multiply-add applies them all. With unit stride the
// same four pixels also serve the next output pixel, with weights moved by one tap.
#include <algorithm>

#include "core/code_block_cpu.h"
#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

#if defined(PQK_X86_64)

namespace {

struct Interleaved {
  Ints vector[4];
};

// Four pixels' channels as quads, in the packed order of channels.
inline Interleaved interleave(Ints a, Ints b, Ints c, Ints d) {
  // Keeps gcc 12 from loading every pixel twice, once for each half, and from spilling what it has loaded.
  asm("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d));
  const Ints ab_low = low_bytes(a, b), ab_high = high_bytes(a, b);
  const Ints cd_low = low_bytes(c, d), cd_high = high_bytes(c, d);
  return {{low_words(ab_low, cd_low), high_words(ab_low, cd_low), low_words(ab_high, cd_high),
           high_words(ab_high, cd_high)}};
}

struct Sums {
  Ints vector[4];
};
// Two outputs need 8 registers for their sums and 4 for what they share, beside the constants; with a residual
// there is one.
constexpr int64_t kMaxOutputs = PQK_ISA_LEVEL >= 2 ? 2 : 1;

// One block of channels. Kernels copy it, so that the compiler knows no store can change it.
struct Block {
  int64_t height, windows, last_tap;  // last_tap: of a kernel row
  int64_t row_step, tap_step;         // of the input, between taps
  int64_t window_bytes;
  const uint8_t* weight;
  const int32_t* compensation;
  const float *multiplier, *bias;
  int64_t channels;  // that exist
  int32_t quant_min, quant_max, residual_zero_point;
  float residual_multiplier;
};

// The sums of `Outputs` neighbouring output pixels; `input` is the first one's first tap.
template <int Outputs>
inline void multiply_window(const Block& block, const uint8_t* input, Sums (&sums)[Outputs]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Ints compensation = load_ints(block.compensation + i * kLanes);
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) sums[o].vector[i] = compensation;
  }
  // The last pixel that this many outputs need: a window's further pixels have zero weights and are not read.
  const int64_t last = block.last_tap + Outputs - 1;
  const uint8_t* weight = block.weight;
  for (int64_t ky = 0; ky < block.height; ++ky) {
    const uint8_t* row = input + ky * block.row_step;
#pragma GCC unroll 1
    for (int64_t first = 0; first < block.windows * 4; first += 4, weight += block.window_bytes) {
      const Interleaved quads = interleave(load_bytes(row + first * block.tap_step),
                                           load_bytes(row + std::min(first + 1, last) * block.tap_step),
                                           load_bytes(row + std::min(first + 2, last) * block.tap_step),
                                           load_bytes(row + std::min(first + 3, last) * block.tap_step));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Quads x = split_quads(quads.vector[i]);
#pragma GCC unroll 2
        for (int o = 0; o < Outputs; ++o) {
          sums[o].vector[i] =
              add_products(sums[o].vector[i], x, weight + (o * 4 + i) * kVectorWeights, kVectorWeights / 2);
        }
      }
    }
  }
}

// rescale and rescale_residual of numerics.h.
template <bool HasResidual>
inline void real_values(const Block& block, const Sums& sums, const uint8_t* residual, Floats (&values)[4]) {
  [[maybe_unused]] Interleaved others;
  if constexpr (HasResidual) {
    const Ints zero = set_ints(0);
    others = interleave(load_bytes(residual), zero, zero, zero);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Floats value = multiply(to_floats(sums.vector[i]), load_floats(block.multiplier + i * kLanes));
    if constexpr (HasResidual) {
      const Ints difference = subtract(others.vector[i], set_ints(block.residual_zero_point));
      value = add(value, multiply(to_floats(difference), set_floats(block.residual_multiplier)));
    }
    values[i] = add(value, load_floats(block.bias + i * kLanes));
  }
}

template <bool HasResidual>
inline void store_pixel(const Block& block, const Sums& sums, const uint8_t* residual, uint8_t* output) {
  Floats values[4];
  real_values<HasResidual>(block, sums, residual, values);
  // As in TileConstants::code_ints; the packs bring the channels back into order.
  const Floats high = set_floats(static_cast<float>(block.quant_max));
  Ints codes[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) codes[i] = round_to_ints(minimum(values[i], high));
  const Ints bytes = maximum_bytes(pack_bytes(pack_words(codes[0], codes[1]), pack_words(codes[2], codes[3])),
                                   set_bytes(static_cast<uint8_t>(block.quant_min)));
  if (block.channels == kBlock) {
    store_bytes(output, bytes);
  } else {
    store_bytes(output, bytes, block.channels);
  }
}

// One row of outputs of one block of channels: bytes from a pixel to the next, and the first pixel.
struct Row {
  const uint8_t *input, *residual;
  uint8_t* output;
  int64_t width, input_step, residual_step, output_step;
};

template <int Outputs, bool HasResidual>
void multiply_row(const Block& shared, const Row& shared_row) {
  const Block block = shared;
  const Row row = shared_row;
  int64_t x = 0;
  for (; x + Outputs <= row.width; x += Outputs) {
    Sums sums[Outputs];
    multiply_window<Outputs>(block, row.input + x * row.input_step, sums);
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) {
      store_pixel<HasResidual>(block, sums[o], row.residual + (x + o) * row.residual_step,
                               row.output + (x + o) * row.output_step);
    }
  }
  if (x < row.width) {
    Sums sums[1];
    multiply_window<1>(block, row.input + x * row.input_step, sums);
    store_pixel<HasResidual>(block, sums[0], row.residual + x * row.residual_step,
                             row.output + x * row.output_step);
  }
}

using RowFunction = void(const Block&, const Row&);

RowFunction* row_function(int64_t outputs, bool has_residual) {
  if (has_residual) return &multiply_row<1, true>;
  return outputs == 1 ? &multiply_row<1, false> : &multiply_row<kMaxOutputs, false>;
}

void multiply_image(const Int8DepthwisePlan& p, const Int8ConvImages& images, int64_t row_begin,
                    int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const Int8Epilogue& e = p.epilogue;
  const Int8Image& input = images.input;
  const Int8Image residual = e.has_residual ? *images.residual : Int8Image{images.input.data, 0, 0};
  const Int8Image& output = images.output;
  RowFunction* const run = row_function(p.outputs, e.has_residual);
  const int64_t window_bytes = p.outputs * 4 * kVectorWeights;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const int64_t channel = b * kBlock;
    const Block block{s.kernel_height,
                      p.windows,
                      s.kernel_width - 1,
                      s.dilation_height * input.row_stride,
                      s.dilation_width * input.pixel_stride,
                      window_bytes,
                      p.weight + b * s.kernel_height * p.windows * window_bytes,
                      e.compensation + channel,
                      e.multiplier + channel,
                      e.bias + channel,
                      std::min(kBlock, s.out_channels - channel),
                      e.quant_min,
                      e.quant_max,
                      e.residual_zero_point,
                      e.residual_multiplier};
    for (int64_t y = row_begin; y < row_end; ++y) {
      run(block,
          {input.data + channel + (y * s.stride_height - s.pad_top) * input.row_stride -
               s.pad_left * input.pixel_stride,
           residual.data + channel + y * residual.row_stride, output.data + channel + y * output.row_stride,
           s.out_width, s.stride_width * input.pixel_stride, residual.pixel_stride, output.pixel_stride});
    }
  }
}

}  // namespace

Int8DepthwiseFormat int8_depthwise_format() { return {kWeightFormat, kLanes, kMaxOutputs}; }

void int8_depthwise_kernel(const Int8DepthwisePlan& p, const Int8ConvImages& images, int64_t row_begin,
                           int64_t row_end) {
  for (int64_t i = 0; i < images.count; ++i) {
    Int8Image residual;
    multiply_image(p, one_image(images, i, &residual), row_begin, row_end);
  }
}

#else

Int8DepthwiseFormat int8_depthwise_format() { return {WeightFormat::kQuads, 0, 0}; }

void int8_depthwise_kernel(const Int8DepthwisePlan&, const Int8ConvImages&, int64_t, int64_t) {}

#endif

#include "core/isa_end.h"
