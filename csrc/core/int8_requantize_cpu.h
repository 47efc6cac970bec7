// From int32 sums to codes or floats: the formulas of numerics.h on vectors. Only for int8_*_cpu.cpp.
#pragma once

#include <cstring>

#include "core/int8_vector_cpu.h"

#include "core/isa_begin.h"

namespace {

// One output pixel: where a tile's first channel lies in the residual image, if there is one, and in the
// output, codes or floats.
struct OutputPixel {
  const uint8_t* residual;
  uint8_t* output;
};

// The constants of one tile of channels in registers: the compiler must take every store of codes for a change
// of whatever lies in memory.
template <bool HasResidual>
struct TileConstants {
  Floats multiplier[kVectors], bias[kVectors], high, residual_multiplier;
  Ints residual_zero_point;

  TileConstants(const Int8Epilogue& epilogue, int64_t constants)
      : high(set_floats(static_cast<float>(epilogue.quant_max))),
        residual_multiplier(set_floats(epilogue.residual_multiplier)),
        residual_zero_point(set_ints(epilogue.residual_zero_point)) {
    for (int i = 0; i < kVectors; ++i) {
      multiplier[i] = load_floats(epilogue.multiplier + constants + i * kLanes);
      bias[i] = load_floats(epilogue.bias + constants + i * kLanes);
    }
  }

  // rescale and rescale_residual of numerics.h for vector `i` of the tile.
  Floats real(const int32_t* sums, int i, const OutputPixel& pixel, int64_t offset) const {
    Floats value = multiply(to_floats(load_ints(sums + i * kLanes)), multiplier[i]);
    if constexpr (HasResidual) {
      const Ints difference = subtract(load_codes(pixel.residual + offset + i * kLanes), residual_zero_point);
      value = add(value, multiply(to_floats(difference), residual_multiplier));
    }
    return add(value, bias[i]);
  }

  // Codes before the clamp to quant_min. quant_max is clamped before the conversion; a value below the range of
  // int32 converts to INT32_MIN, which the saturating pack takes to 0.
  TileAccumulator code_ints(const int32_t* sums, const OutputPixel& pixel, int64_t offset) const {
    TileAccumulator codes;
    for (int i = 0; i < kVectors; ++i) {
      codes.vector[i] = round_to_ints(minimum(real(sums, i, pixel, offset), high));
    }
    return codes;
  }
};

// One tile of channels of several pixels.
struct TileSums {
  const int32_t* sums;
  int64_t step;  // from a pixel's sums to the next's
  int64_t pixels;
  int64_t offset;  // of the tile's first channel from the output pixel's
  int64_t channels;
};

template <bool HasResidual>
void store_floats(const TileConstants<HasResidual>& constants, const TileSums& t, const OutputPixel* output) {
  for (int64_t m = 0; m < t.pixels; ++m) {
    float values[kOutTile];
    for (int i = 0; i < kVectors; ++i) {
      store_floats(values + i * kLanes, constants.real(t.sums + m * t.step, i, output[m], t.offset));
    }
    memcpy(reinterpret_cast<float*>(output[m].output) + t.offset, values, t.channels * sizeof(float));
  }
}

// Inlined so that the constants stay in registers.
template <bool HasResidual>
[[gnu::always_inline]] inline void store_codes(const TileConstants<HasResidual>& constants, Codes low,
                                               const TileSums& t, const OutputPixel* output) {
  int64_t m = 0;
#if PQK_ISA_LEVEL >= 2
  // Four pixels at a time: the packs leave 4 codes of each pixel in every 128-bit lane, one permutation puts
  // each pixel's 16 codes together.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i lows = _mm512_broadcast_i32x4(low);
  for (; t.channels == kOutTile && m + 4 <= t.pixels; m += 4) {
    const OutputPixel* out = output + m;
    const int32_t* sums = t.sums + m * t.step;
    const __m512i code0 = constants.code_ints(sums, out[0], t.offset).vector[0];
    const __m512i code1 = constants.code_ints(sums + t.step, out[1], t.offset).vector[0];
    const __m512i code2 = constants.code_ints(sums + 2 * t.step, out[2], t.offset).vector[0];
    const __m512i code3 = constants.code_ints(sums + 3 * t.step, out[3], t.offset).vector[0];
    const __m512i bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(code0, code1), _mm512_packs_epi32(code2, code3));
    const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_max_epu8(bytes, lows));
    store_codes(out[0].output + t.offset, _mm512_castsi512_si128(codes));
    store_codes(out[1].output + t.offset, _mm512_extracti32x4_epi32(codes, 1));
    store_codes(out[2].output + t.offset, _mm512_extracti32x4_epi32(codes, 2));
    store_codes(out[3].output + t.offset, _mm512_extracti32x4_epi32(codes, 3));
  }
#endif
  for (; m < t.pixels; ++m) {
    const int32_t* sums = t.sums + m * t.step;
    const Codes codes = maximum(pack(constants.code_ints(sums, output[m], t.offset)), low);
    if (t.channels == kOutTile) {
      store_codes(output[m].output + t.offset, codes);
    } else {
      uint8_t bytes[kOutTile];
      store_codes(bytes, codes);
      memcpy(output[m].output + t.offset, bytes, t.channels);
    }
  }
}

template <bool HasResidual>
void requantize_tile(const Int8Epilogue& epilogue, int64_t constants, const TileSums& t,
                     const OutputPixel* output) {
  const TileConstants<HasResidual> in_registers(epilogue, constants);
  if (epilogue.float_output) {
    store_floats(in_registers, t, output);
  } else {
    store_codes(in_registers, set_codes(static_cast<uint8_t>(epilogue.quant_min)), t, output);
  }
}

// The sums of `pixels` pixels x `panel` tiles of channels, [pixel][tile][16], whose packed constants begin at
// `constants`; only `channels` of these channels exist.
inline void requantize(const Int8Epilogue& epilogue, const int32_t* sums, int64_t pixels, int64_t panel,
                       int64_t constants, int64_t channels, const OutputPixel* output) {
  for (int64_t tile = 0; tile < panel; ++tile) {
    const int64_t first = tile * kOutTile;
    const int64_t exist = channels - first < kOutTile ? channels - first : kOutTile;
    const TileSums t{sums + first, panel * kOutTile, pixels, first, exist};
    epilogue.has_residual ? requantize_tile<true>(epilogue, constants + first, t, output)
                          : requantize_tile<false>(epilogue, constants + first, t, output);
  }
}

}  // namespace

#include "core/isa_end.h"
