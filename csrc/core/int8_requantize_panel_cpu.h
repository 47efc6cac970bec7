// From int32 sums to codes, up to four tiles of channels at once, whose order may differ from that of the
// output. As int8_requantize_cpu.h, with fewer instructions; for layers whose outputs are all codes of fewer
// than 2^30 steps before they are clamped.
#pragma once

#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

#if PQK_ISA_LEVEL >= 2

namespace {

// Four vectors of sums give 64 codes: of one pixel with four or three tiles, of two with two, of four with one.
template <int Tiles>
struct PanelShape {
  static constexpr int kPerPixel = Tiles == 3 ? 4 : Tiles;  // vectors
  static constexpr int kPixels = 4 / kPerPixel;
  static constexpr int kBytes = kPerPixel * kOutTile;
};

template <int Tiles, bool HasResidual>
struct PanelConstants {
  Floats multiplier[Tiles], bias[Tiles], residual_multiplier;
  Ints residual_zero_point, residual_order[Tiles], order, low, high;

  PanelConstants(const Int8Epilogue& e, const PanelOrder& channels, int64_t constants)
      : residual_multiplier(set_floats(e.residual_multiplier)),
        residual_zero_point(set_ints(e.residual_zero_point)),
        order(_mm512_load_si512(channels.output)),
        low(_mm512_set1_epi8(static_cast<char>(e.quant_min))),
        high(_mm512_set1_epi8(static_cast<char>(e.quant_max))) {
    for (int t = 0; t < Tiles; ++t) {
      multiplier[t] = load_floats(e.multiplier + constants + t * kLanes);
      bias[t] = load_floats(e.bias + constants + t * kLanes);
      residual_order[t] = load_codes(channels.residual + t * kLanes);
    }
  }

  // rescale and rescale_residual of numerics.h.
  [[gnu::always_inline]] Ints code_ints(const int32_t* sums, int t, const uint8_t* residual) const {
    Floats value = multiply(to_floats(load_ints(sums)), multiplier[t]);
    if constexpr (HasResidual) {
      const Ints code =
          _mm512_maskz_permutexvar_epi8(0x1111111111111111, residual_order[t], _mm512_loadu_si512(residual));
      value = add(value, multiply(to_floats(subtract(code, residual_zero_point)), residual_multiplier));
    }
    return round_to_ints(add(value, bias[t]));
  }
};

template <int Tiles>
[[gnu::always_inline]] inline void store_panel(Ints codes, int64_t channels, const OutputPixel* output) {
  using Shape = PanelShape<Tiles>;
  if (channels < Shape::kBytes) {
    alignas(64) uint8_t bytes[64];
    _mm512_store_si512(bytes, codes);
    for (int m = 0; m < Shape::kPixels; ++m) memcpy(output[m].output, bytes + m * Shape::kBytes, channels);
  } else if (output[Shape::kPixels - 1].output == output[0].output + 64 - Shape::kBytes) {
    _mm512_storeu_si512(output[0].output, codes);  // the pixels are neighbours
  } else if constexpr (Shape::kPixels == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output[0].output), _mm512_castsi512_si256(codes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output[1].output), _mm512_extracti64x4_epi64(codes, 1));
  } else {
    store_codes(output[0].output, _mm512_castsi512_si128(codes));
    store_codes(output[1].output, _mm512_extracti32x4_epi32(codes, 1));
    store_codes(output[2].output, _mm512_extracti32x4_epi32(codes, 2));
    store_codes(output[3].output, _mm512_extracti32x4_epi32(codes, 3));
  }
}

template <int Tiles, bool HasResidual>
void requantize_panel(const Int8Epilogue& e, const PanelOrder& order, const int32_t* sums, int64_t pixels,
                      int64_t constants, int64_t channels, const OutputPixel* output) {
  using Shape = PanelShape<Tiles>;
  const PanelConstants<Tiles, HasResidual> in_registers(e, order, constants);
  for (int64_t m = 0; m < pixels; m += Shape::kPixels) {
    Ints codes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int pixel = i / Shape::kPerPixel, tile = i % Shape::kPerPixel;
      codes[i] = tile < Tiles ? in_registers.code_ints(sums + ((m + pixel) * Tiles + tile) * kOutTile, tile,
                                                       output[m + pixel].residual)
                              : _mm512_setzero_si512();
    }
    const Ints bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(codes[0], codes[1]), _mm512_packs_epi32(codes[2], codes[3]));
    const Ints clamped = _mm512_min_epu8(_mm512_max_epu8(bytes, in_registers.low), in_registers.high);
    store_panel<Tiles>(_mm512_permutexvar_epi8(in_registers.order, clamped), channels, output + m);
  }
}

template <int Tiles>
void requantize_panel(const Int8Epilogue& e, const PanelOrder& order, const int32_t* sums, int64_t pixels,
                      int64_t constants, int64_t channels, const OutputPixel* output) {
  e.has_residual ? requantize_panel<Tiles, true>(e, order, sums, pixels, constants, channels, output)
                 : requantize_panel<Tiles, false>(e, order, sums, pixels, constants, channels, output);
}

// The sums of `pixels` pixels x `tiles` tiles of channels, [pixel][tile][16], whose packed constants begin at
// `constants`; only `channels` of these channels exist. The arrays go on for three more pixels, whose sums may
// be anything and whose outputs must take 64 bytes.
inline void requantize_panel(const Int8Epilogue& e, const PanelOrder& order, const int32_t* sums,
                             int64_t pixels, int64_t tiles, int64_t constants, int64_t channels,
                             const OutputPixel* output) {
  switch (tiles) {
    case 1:
      return requantize_panel<1>(e, order, sums, pixels, constants, channels, output);
    case 2:
      return requantize_panel<2>(e, order, sums, pixels, constants, channels, output);
    case 3:
      return requantize_panel<3>(e, order, sums, pixels, constants, channels, output);
    default:
      return requantize_panel<4>(e, order, sums, pixels, constants, channels, output);
  }
}

}  // namespace

#endif

#include "core/isa_end.h"
