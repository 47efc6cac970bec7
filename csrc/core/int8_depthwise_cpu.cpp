// Depthwise convolution on NHWC images. The bytes of four neighbouring pixels are interleaved, so that a 32-bit
// lane holds four horizontal taps of one channel, and one multiply-add applies them all. With unit stride the
// same four pixels also serve the next output pixel, with weights moved by one tap.
#include <algorithm>

#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

#if defined(PQK_X86_64)

namespace {

constexpr int64_t kBlock = kLanes * 4;  // channels

struct Window {
  Quads vector[4];
};

#if PQK_ISA_LEVEL >= 2
inline Ints load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(uint8_t* p, Ints a) { _mm512_storeu_si512(p, a); }
inline Ints low_bytes(Ints a, Ints b) { return _mm512_unpacklo_epi8(a, b); }
inline Ints high_bytes(Ints a, Ints b) { return _mm512_unpackhi_epi8(a, b); }
inline Ints low_words(Ints a, Ints b) { return _mm512_unpacklo_epi16(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm512_unpackhi_epi16(a, b); }
inline Ints pack_words(Ints a, Ints b) { return _mm512_packs_epi32(a, b); }
inline Ints pack_bytes(Ints a, Ints b) { return _mm512_packus_epi16(a, b); }
inline Ints maximum_bytes(Ints a, Ints b) { return _mm512_max_epu8(a, b); }
inline Ints set_bytes(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
#elif PQK_ISA_LEVEL == 1
inline Ints load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_bytes(uint8_t* p, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline Ints low_bytes(Ints a, Ints b) { return _mm256_unpacklo_epi8(a, b); }
inline Ints high_bytes(Ints a, Ints b) { return _mm256_unpackhi_epi8(a, b); }
inline Ints low_words(Ints a, Ints b) { return _mm256_unpacklo_epi16(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm256_unpackhi_epi16(a, b); }
inline Ints pack_words(Ints a, Ints b) { return _mm256_packs_epi32(a, b); }
inline Ints pack_bytes(Ints a, Ints b) { return _mm256_packus_epi16(a, b); }
inline Ints maximum_bytes(Ints a, Ints b) { return _mm256_max_epu8(a, b); }
inline Ints set_bytes(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
#else
inline Ints load_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store_bytes(uint8_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }
inline Ints low_bytes(Ints a, Ints b) { return _mm_unpacklo_epi8(a, b); }
inline Ints high_bytes(Ints a, Ints b) { return _mm_unpackhi_epi8(a, b); }
inline Ints low_words(Ints a, Ints b) { return _mm_unpacklo_epi16(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm_unpackhi_epi16(a, b); }
inline Ints pack_words(Ints a, Ints b) { return _mm_packs_epi32(a, b); }
inline Ints pack_bytes(Ints a, Ints b) { return _mm_packus_epi16(a, b); }
inline Ints maximum_bytes(Ints a, Ints b) { return _mm_max_epu8(a, b); }
inline Ints set_bytes(uint8_t x) { return _mm_set1_epi8(static_cast<char>(x)); }
#endif

// Four pixels' channels as quads, in the packed order of channels.
inline void interleave(Ints a, Ints b, Ints c, Ints d, Ints (&quads)[4]) {
  const Ints ab_low = low_bytes(a, b), ab_high = high_bytes(a, b);
  const Ints cd_low = low_bytes(c, d), cd_high = high_bytes(c, d);
  quads[0] = low_words(ab_low, cd_low);
  quads[1] = high_words(ab_low, cd_low);
  quads[2] = low_words(ab_high, cd_high);
  quads[3] = high_words(ab_high, cd_high);
}

struct Sums {
  Ints vector[4];
};

struct Block {
  const Int8DepthwisePlan* plan;
  const uint8_t* weight;
  int64_t constants;           // index of the block's first channel in the packed constants
  int64_t channels;            // that exist
  int64_t row_step, tap_step;  // of the input, between taps
};

// The sums of `Outputs` neighbouring output pixels; `input` is the first one's first tap.
template <int Outputs>
inline void multiply_window(const Block& block, const uint8_t* input, Sums (&sums)[Outputs]) {
  const Int8DepthwisePlan& p = *block.plan;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Ints compensation = load_ints(p.epilogue.compensation + block.constants + i * kLanes);
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) sums[o].vector[i] = compensation;
  }
  // The last pixel that this many outputs need: a window's further pixels have zero weights and are not read.
  const int64_t last = p.shape.kernel_width + Outputs - 2;
  const int64_t window_bytes = p.outputs * 4 * kVectorWeights;
  const uint8_t* weight = block.weight;
  for (int64_t ky = 0; ky < p.shape.kernel_height; ++ky) {
    const uint8_t* row = input + ky * block.row_step;
#pragma GCC unroll 1
    for (int64_t first = 0; first < p.windows * 4; first += 4, weight += window_bytes) {
      Ints pixels[4], quads[4];
#pragma GCC unroll 4
      for (int64_t t = 0; t < 4; ++t) pixels[t] = load_bytes(row + std::min(first + t, last) * block.tap_step);
      interleave(pixels[0], pixels[1], pixels[2], pixels[3], quads);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Quads x = split_quads(quads[i]);
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
inline void real_values(const Int8Epilogue& e, int64_t constants, const Sums& sums, const uint8_t* residual,
                        Floats (&values)[4]) {
  Ints others[4];
  if constexpr (HasResidual) {
    const Ints zero = set_ints(0);
    interleave(load_bytes(residual), zero, zero, zero, others);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Floats value = multiply(to_floats(sums.vector[i]), load_floats(e.multiplier + constants + i * kLanes));
    if constexpr (HasResidual) {
      const Ints difference = subtract(others[i], set_ints(e.residual_zero_point));
      value = add(value, multiply(to_floats(difference), set_floats(e.residual_multiplier)));
    }
    values[i] = add(value, load_floats(e.bias + constants + i * kLanes));
  }
}

template <bool HasResidual>
inline void store_pixel(const Block& block, const Sums& sums, const uint8_t* residual, uint8_t* output) {
  const Int8Epilogue& e = block.plan->epilogue;
  Floats values[4];
  real_values<HasResidual>(e, block.constants, sums, residual, values);
  if (e.float_output) {
    float packed[4 * kLanes];
    for (int i = 0; i < 4; ++i) store_floats(packed + i * kLanes, values[i]);
    for (int64_t c = 0; c < block.channels; ++c) {
      const int64_t vector = c % 16 / 4, lane = c / 16 * 4 + c % 4;
      memcpy(output + c * sizeof(float), packed + vector * kLanes + lane, sizeof(float));
    }
    return;
  }
  // As in TileConstants::code_ints; the packs bring the channels back into order.
  const Floats high = set_floats(static_cast<float>(e.quant_max));
  Ints codes[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) codes[i] = round_to_ints(minimum(values[i], high));
  const Ints bytes = maximum_bytes(pack_bytes(pack_words(codes[0], codes[1]), pack_words(codes[2], codes[3])),
                                   set_bytes(static_cast<uint8_t>(e.quant_min)));
  if (block.channels == kBlock) {
    store_bytes(output, bytes);
  } else {
    uint8_t packed[kBlock];
    store_bytes(packed, bytes);
    memcpy(output, packed, block.channels);
  }
}

// One row of one block of channels.
template <int Outputs, bool HasResidual>
void multiply_row(const Block& block, const uint8_t* input, int64_t input_step, const uint8_t* residual,
                  int64_t residual_step, uint8_t* output, int64_t output_step) {
  const int64_t width = block.plan->shape.out_width;
  int64_t x = 0;
  for (; x + Outputs <= width; x += Outputs) {
    Sums sums[Outputs];
    multiply_window<Outputs>(block, input + x * input_step, sums);
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) {
      store_pixel<HasResidual>(block, sums[o], residual + (x + o) * residual_step,
                               output + (x + o) * output_step);
    }
  }
  for (; x < width; ++x) {
    Sums sums[1];
    multiply_window<1>(block, input + x * input_step, sums);
    store_pixel<HasResidual>(block, sums[0], residual + x * residual_step, output + x * output_step);
  }
}

}  // namespace

Int8DepthwiseFormat int8_depthwise_format() { return {kWeightFormat, kLanes}; }

void int8_depthwise_kernel(const Int8DepthwisePlan& p, const Int8ConvImages& images, int64_t row_begin,
                           int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const Int8Image& input = images.input;
  const bool has_residual = p.epilogue.has_residual;
  const Int8Image residual = has_residual ? *images.residual : Int8Image{images.input.data, 0, 0};
  const bool floats = p.epilogue.float_output;
  const int64_t output_step = floats ? s.out_channels * int64_t{sizeof(float)} : images.output.pixel_stride;
  const int64_t output_row = floats ? s.out_width * output_step : images.output.row_stride;
  uint8_t* output = floats ? reinterpret_cast<uint8_t*>(images.float_output) : images.output.data;
  const auto run = p.outputs == 2 ? (has_residual ? &multiply_row<2, true> : &multiply_row<2, false>)
                                  : (has_residual ? &multiply_row<1, true> : &multiply_row<1, false>);
  Block block;
  block.plan = &p;
  block.row_step = s.dilation_height * input.row_stride;
  block.tap_step = s.dilation_width * input.pixel_stride;
  const int64_t block_bytes = s.kernel_height * p.windows * p.outputs * 4 * kVectorWeights;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const int64_t channel = b * kBlock;
    block.weight = p.weight + b * block_bytes;
    block.constants = channel;
    block.channels = std::min(kBlock, s.out_channels - channel);
    for (int64_t y = row_begin; y < row_end; ++y) {
      run(block,
          input.data + channel + (y * s.stride_height - s.pad_top) * input.row_stride -
              s.pad_left * input.pixel_stride,
          s.stride_width * input.pixel_stride, residual.data + channel + y * residual.row_stride,
          residual.pixel_stride, output + channel * (floats ? sizeof(float) : 1) + y * output_row, output_step);
    }
  }
}

#else

Int8DepthwiseFormat int8_depthwise_format() { return {WeightFormat::kQuads, 0}; }

void int8_depthwise_kernel(const Int8DepthwisePlan&, const Int8ConvImages&, int64_t, int64_t) {}

#endif

#include "core/isa_end.h"
