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

// The output pixels of a tile, one after the other: from a list, or of a row at equal distances.
struct PixelList {
  const OutputPixel* pixel;
  OutputPixel next() { return *pixel++; }
};
struct PixelRow {
  OutputPixel pixel;
  int64_t residual_step, output_step;
  OutputPixel next() {
    const OutputPixel result = pixel;
    pixel.residual += residual_step;
    pixel.output += output_step;
    return result;
  }
  void skip(int64_t count) {
    pixel.residual += count * residual_step;
    pixel.output += count * output_step;
  }
};

// The constants of one tile of channels in registers: the compiler must take every store of codes for a change
// of whatever lies in memory.
template <bool HasResidual, bool ClampsHigh>
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

  // Codes before the clamp to quant_min. quant_max is clamped before the conversion, unless the saturating pack
  // does; a value below the range of int32 converts to INT32_MIN, which the pack takes to 0.
  TileAccumulator code_ints(const int32_t* sums, const OutputPixel& pixel, int64_t offset) const {
    TileAccumulator codes;
    for (int i = 0; i < kVectors; ++i) {
      Floats value = real(sums, i, pixel, offset);
      if constexpr (ClampsHigh) value = minimum(value, high);
      codes.vector[i] = round_to_ints(value);
    }
    return codes;
  }
};

// The sums of a tile: `pixels` pixels x `panel` tiles of channels, [pixel][tile][16]; only `channels` of these
// channels exist. `constants` is the index of the first in the packed constants.
struct TileSums {
  const int32_t* sums;
  int64_t pixels, panel, constants, channels;
};

#if PQK_ISA_LEVEL >= 2
// The codes of four pixels, 16 bytes each: the packs leave 4 codes of each pixel in every 128-bit lane, one
// permutation puts each pixel's codes together.
inline __m512i pack_pixels(Ints a, Ints b, Ints c, Ints d, Codes low) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  return _mm512_permutexvar_epi32(order, _mm512_max_epu8(bytes, _mm512_broadcast_i32x4(low)));
}
#endif

// One tile of channels of a tile's sums: of `pixels` pixels, whose sums are `step` apart; it lies `offset`
// channels behind the output pixels' first. Only `channels` of it exist.
struct ChannelTile {
  const int32_t* sums;
  int64_t step, pixels, constants, offset, channels;
};

// The codes of a ChannelTile; all its channels exist if it is `Whole`. Not inlined: apart, each variant keeps
// its constants in registers.
template <bool HasResidual, bool ClampsHigh, bool Whole, class Pixels>
[[gnu::noinline]] void requantize_codes(const Int8Epilogue& epilogue, const ChannelTile& t, const Pixels& all) {
  Pixels pixels = all;
  const TileConstants<HasResidual, ClampsHigh> constants(epilogue, t.constants);
  const Codes low = set_codes(static_cast<uint8_t>(epilogue.quant_min));
  const int64_t offset = t.offset, channels = t.channels, step = t.step;
  const int32_t* sums = t.sums;
  const auto next = [&](uint8_t*& output) {
    const OutputPixel pixel = pixels.next();
    output = pixel.output + offset;
    const TileAccumulator codes = constants.code_ints(sums, pixel, offset);
    sums += step;
    return codes;
  };
  const auto store = [&](uint8_t* output, Codes codes) {
    Whole ? store_codes(output, codes) : store_codes(output, codes, channels);
  };
  int64_t left = t.pixels;
#if PQK_ISA_LEVEL >= 2
#pragma GCC unroll 1
  for (; left >= 4; left -= 4) {
    uint8_t* out[4];
    const Ints a = next(out[0]).vector[0], b = next(out[1]).vector[0];
    const Ints c = next(out[2]).vector[0], d = next(out[3]).vector[0];
    const __m512i codes = pack_pixels(a, b, c, d, low);
    store(out[0], _mm512_castsi512_si128(codes));
    store(out[1], _mm512_extracti32x4_epi32(codes, 1));
    store(out[2], _mm512_extracti32x4_epi32(codes, 2));
    store(out[3], _mm512_extracti32x4_epi32(codes, 3));
  }
#endif
#pragma GCC unroll 1
  for (; left > 0; --left) {
    uint8_t* out;
    const TileAccumulator ints = next(out);
    store(out, maximum(pack(ints), low));
  }
}

template <bool HasResidual, class Pixels>
[[gnu::noinline]] void rescale_floats(const Int8Epilogue& epilogue, const ChannelTile& t, const Pixels& all) {
  Pixels pixels = all;
  const TileConstants<HasResidual, true> constants(epilogue, t.constants);
  for (int64_t m = 0; m < t.pixels; ++m) {
    const OutputPixel pixel = pixels.next();
    float values[kOutTile];
    for (int i = 0; i < kVectors; ++i) {
      store_floats(values + i * kLanes, constants.real(t.sums + m * t.step, i, pixel, t.offset));
    }
    memcpy(reinterpret_cast<float*>(pixel.output) + t.offset, values, t.channels * sizeof(float));
  }
}

template <bool HasResidual, class Pixels>
void requantize_tile(const Int8Epilogue& e, const ChannelTile& t, const Pixels& pixels) {
  if (e.float_output) {
    rescale_floats<HasResidual>(e, t, pixels);
  } else if (t.channels == kOutTile) {
    e.clamps_high ? requantize_codes<HasResidual, true, true>(e, t, pixels)
                  : requantize_codes<HasResidual, false, true>(e, t, pixels);
  } else {
    e.clamps_high ? requantize_codes<HasResidual, true, false>(e, t, pixels)
                  : requantize_codes<HasResidual, false, false>(e, t, pixels);
  }
}

// `pixels` is a PixelRow or a PixelList.
template <class Pixels>
void requantize(const Int8Epilogue& epilogue, const TileSums& t, const Pixels& pixels) {
  for (int64_t offset = 0; offset < t.panel * kOutTile; offset += kOutTile) {
    const int64_t channels = t.channels - offset < kOutTile ? t.channels - offset : kOutTile;
    const ChannelTile tile{t.sums + offset, t.panel * kOutTile, t.pixels, t.constants + offset, offset,
                           channels};
    epilogue.has_residual ? requantize_tile<true>(epilogue, tile, pixels)
                          : requantize_tile<false>(epilogue, tile, pixels);
  }
}

inline void requantize(const Int8Epilogue& epilogue, const int32_t* sums, int64_t pixels, int64_t panel,
                       int64_t constants, int64_t channels, const OutputPixel* output) {
  requantize(epilogue, TileSums{sums, pixels, panel, constants, channels}, PixelList{output});
}

}  // namespace

#include "core/isa_end.h"
