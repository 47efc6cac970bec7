// Depthwise 3x3 convolution on NHWC images, two output rows at a time. A quad holds four input rows of a
// channel at one column: rows 0..2 are the taps of the upper output row, rows 1..3 those of the lower one. A
// column's quads serve three neighbouring outputs, so its bytes are interleaved once for six times four
// products.
#include <algorithm>

#include "core/int8_vector_cpu.h"

#include "core/isa_begin.h"

#if PQK_ISA_LEVEL >= 2

namespace {

constexpr int kTaps = 3, kHalfVectors = 2, kHalfChannels = kHalfVectors * kLanes;
constexpr int64_t kHeldColumns = 128;

// Which channels of a block a half is; see Int8Depthwise3x3Plan.
enum class Part { kLower, kUpper, kSpread };

// Two output rows (or the last one alone) of one image, some columns of them.
struct Strip {
  const uint8_t* input;  // first tap of the upper row's first output
  uint8_t* output;
  int64_t width;
  bool two_rows;
};

// One half of a block's channels.
struct Half {
  const uint8_t* weight;
  const int32_t* compensation;
  const float *multiplier, *bias;
  int64_t row_step, pixel_step;                // of the input
  int64_t output_row_step, output_pixel_step;  // of the output
  int64_t channels;                            // of the block, that exist
  int32_t quant_min, quant_max;
  uint8_t* lower;  // [column of all strips][64]: what the lower half has left for the upper
};

struct Vectors {
  Ints vector[kHalfVectors];
};

template <Part part>
inline Vectors interleave_rows(const uint8_t* row0, const uint8_t* row1, const uint8_t* row2,
                               const uint8_t* row3) {
  if constexpr (part == Part::kSpread) {
    // Bytes c of the four rows side by side; the second vector's channels are 4 further.
    const Ints first = _mm512_setr_epi32(0x60402000, 0x61412101, 0x62422202, 0x63432303, 0x68482808, 0x69492909,
                                         0x6a4a2a0a, 0x6b4b2b0b, 0x70503010, 0x71513111, 0x72523212, 0x73533313,
                                         0x78583818, 0x79593919, 0x7a5a3a1a, 0x7b5b3b1b);
    const Ints second = _mm512_add_epi8(first, _mm512_set1_epi8(4));
    const auto load = [](const uint8_t* low, const uint8_t* high) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
      return _mm512_inserti64x4(_mm512_castsi256_si512(bytes),
                                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)), 1);
    };
    const Ints rows01 = load(row0, row1), rows23 = load(row2, row3);
    return {
        {_mm512_permutex2var_epi8(rows01, first, rows23), _mm512_permutex2var_epi8(rows01, second, rows23)}};
  } else {
    const Ints a = _mm512_loadu_si512(row0), b = _mm512_loadu_si512(row1);
    const Ints c = _mm512_loadu_si512(row2), d = _mm512_loadu_si512(row3);
    constexpr bool lower = part == Part::kLower;
    const Ints ab = lower ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b);
    const Ints cd = lower ? _mm512_unpacklo_epi8(c, d) : _mm512_unpackhi_epi8(c, d);
    return {{_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)}};
  }
}

// The sums of one output of both rows, and what turns them into codes.
struct Sums {
  Vectors row[2];
};

struct Rescale {
  Floats multiplier[kHalfVectors], bias[kHalfVectors];
  Ints quant_min, quant_max;

  explicit Rescale(const Half& half)
      : quant_min(_mm512_set1_epi8(static_cast<char>(half.quant_min))),
        quant_max(_mm512_set1_epi8(static_cast<char>(half.quant_max))) {
    for (int i = 0; i < kHalfVectors; ++i) {
      multiplier[i] = load_floats(half.multiplier + i * kLanes);
      bias[i] = load_floats(half.bias + i * kLanes);
    }
  }

  // rescale of numerics.h; the packs saturate to 0..255. Every 16 bytes are 8 codes of the upper row and the
  // same channels' of the lower row.
  template <bool clamps>
  Ints codes(const Sums& sums) const {
    Ints words[2];
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row) {
      Ints codes[kHalfVectors];
#pragma GCC unroll 2
      for (int i = 0; i < kHalfVectors; ++i) {
        codes[i] = round_to_ints(add(multiply(to_floats(sums.row[row].vector[i]), multiplier[i]), bias[i]));
      }
      words[row] = _mm512_packs_epi32(codes[0], codes[1]);
    }
    const Ints codes = _mm512_packus_epi16(words[0], words[1]);
    return clamps ? _mm512_max_epu8(_mm512_min_epu8(codes, quant_max), quant_min) : codes;
  }
};

// Puts one column's codes where they belong.
template <Part part>
inline void store(const Half& half, Ints codes, uint8_t* lower, uint8_t* output, bool two_rows) {
  if constexpr (part == Part::kLower) {
    _mm512_store_si512(lower, codes);
  } else if constexpr (part == Part::kUpper) {
    const Ints other = _mm512_load_si512(lower);
    const Ints row0 = _mm512_unpacklo_epi64(other, codes), row1 = _mm512_unpackhi_epi64(other, codes);
    if (half.channels >= 2 * kHalfChannels) {
      _mm512_storeu_si512(output, row0);
      if (two_rows) _mm512_storeu_si512(output + half.output_row_step, row1);
    } else {
      const __mmask64 exist = (__mmask64{1} << half.channels) - 1;
      _mm512_mask_storeu_epi8(output, exist, row0);
      if (two_rows) _mm512_mask_storeu_epi8(output + half.output_row_step, exist, row1);
    }
  } else {
    const Ints rows = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), codes);
    const __m256i row0 = _mm512_castsi512_si256(rows), row1 = _mm512_extracti64x4_epi64(rows, 1);
    const __mmask32 exist = static_cast<__mmask32>((uint64_t{1} << half.channels) - 1);
    if (half.channels == kHalfChannels) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(output), row0);
      if (two_rows) _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + half.output_row_step), row1);
    } else {
      _mm256_mask_storeu_epi8(output, exist, row0);
      if (two_rows) _mm256_mask_storeu_epi8(output + half.output_row_step, exist, row1);
    }
  }
}

inline Ints load_weight(const uint8_t* weight, int index) { return _mm512_load_si512(weight + index * 64); }

// The sums move left by one output a column: `last` takes its third tap, `next` its second, a new one its
// first.
template <Part part, bool clamps>
[[gnu::noinline]] void multiply_unit_stride(const Half& shared, const Strip* strips, int64_t count) {
  const Half half = shared;
  const Rescale rescale(half);
  Ints weight[kTaps][2][kHalfVectors], compensation[kHalfVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kTaps * 2 * kHalfVectors; ++i)
    weight[i / 4][i / 2 % 2][i % 2] = load_weight(half.weight, i);
#pragma GCC unroll 2
  for (int i = 0; i < kHalfVectors; ++i) compensation[i] = load_ints(half.compensation + i * kLanes);
  uint8_t* lower = half.lower;
  for (int64_t s = 0; s < count; ++s) {
    const Strip strip = strips[s];
    const uint8_t *row0 = strip.input, *row1 = row0 + half.row_step, *row2 = row1 + half.row_step;
    const uint8_t* row3 = strip.two_rows ? row2 + half.row_step : row2;
    uint8_t* output = strip.output;
    Sums last{}, next{};
    for (int64_t x = -2; x < strip.width; ++x) {
      const Vectors quads = interleave_rows<part>(row0, row1, row2, row3);
      row0 += half.pixel_step, row1 += half.pixel_step, row2 += half.pixel_step, row3 += half.pixel_step;
      if (x >= 0) {
        Sums done;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          done.row[i / 2].vector[i % 2] =
              _mm512_dpbusd_epi32(last.row[i / 2].vector[i % 2], quads.vector[i % 2], weight[2][i / 2][i % 2]);
        }
        store<part>(half, rescale.codes<clamps>(done), lower, output, strip.two_rows);
        output += half.output_pixel_step;
        lower += 64;
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        last.row[i / 2].vector[i % 2] =
            _mm512_dpbusd_epi32(next.row[i / 2].vector[i % 2], quads.vector[i % 2], weight[1][i / 2][i % 2]);
        next.row[i / 2].vector[i % 2] =
            _mm512_dpbusd_epi32(compensation[i % 2], quads.vector[i % 2], weight[0][i / 2][i % 2]);
      }
    }
  }
}

// Every output has columns of its own but for one, which it shares with its neighbour.
template <Part part, bool clamps>
[[gnu::noinline]] void multiply_stride_2(const Half& shared, const Strip* strips, int64_t count) {
  const Half half = shared;
  const Rescale rescale(half);
  Ints weight[kTaps][kHalfVectors], compensation[kHalfVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kTaps * kHalfVectors; ++i) weight[i / 2][i % 2] = load_weight(half.weight, i);
#pragma GCC unroll 2
  for (int i = 0; i < kHalfVectors; ++i) compensation[i] = load_ints(half.compensation + i * kLanes);
  uint8_t* lower = half.lower;
  for (int64_t s = 0; s < count; ++s) {
    const Strip strip = strips[s];
    const int64_t step = half.row_step, second = strip.two_rows ? 2 * step : 0;
    const uint8_t* input = strip.input;
    uint8_t* output = strip.output;
    const auto column = [&](const uint8_t* at, int row) {
      const uint8_t* top = at + row * second;
      return interleave_rows<part>(top, top + step, top + 2 * step, top + 2 * step);
    };
    Vectors first[2] = {column(input, 0), column(input, 1)};
    for (int64_t x = 0; x < strip.width; ++x) {
      Sums sums;
#pragma GCC unroll 2
      for (int row = 0; row < 2; ++row) {
        const Vectors middle = column(input + half.pixel_step, row);
        const Vectors end = column(input + 2 * half.pixel_step, row);
#pragma GCC unroll 2
        for (int i = 0; i < kHalfVectors; ++i) {
          Ints sum = _mm512_dpbusd_epi32(compensation[i], first[row].vector[i], weight[0][i]);
          sum = _mm512_dpbusd_epi32(sum, middle.vector[i], weight[1][i]);
          sums.row[row].vector[i] = _mm512_dpbusd_epi32(sum, end.vector[i], weight[2][i]);
        }
        first[row] = end;
      }
      store<part>(half, rescale.codes<clamps>(sums), lower, output, strip.two_rows);
      input += 2 * half.pixel_step;
      output += half.output_pixel_step;
      lower += 64;
    }
  }
}

template <Part part>
void multiply_half(const Half& half, int64_t stride, const Strip* strips, int64_t count) {
  const bool clamps = half.quant_min > 0 || half.quant_max < 255;
  if (stride == 1) {
    clamps ? multiply_unit_stride<part, true>(half, strips, count)
           : multiply_unit_stride<part, false>(half, strips, count);
  } else {
    clamps ? multiply_stride_2<part, true>(half, strips, count)
           : multiply_stride_2<part, false>(half, strips, count);
  }
}

// Strips at channel 0, which all channels take in turn.
void multiply_strips(const Int8Depthwise3x3Plan& p, const Int8ConvImages& images, Strip* strips,
                     int64_t count) {
  alignas(64) uint8_t lower[kHeldColumns * 64];
  const Int8Epilogue& e = p.epilogue;
  const int64_t rows = p.shape.stride_height == 1 ? 2 : 1;
  for (int64_t h = 0; h < p.halves; ++h) {
    const int64_t packed = h * kHalfChannels, block = h / 2 * 2 * kHalfChannels;
    const Half half{p.weight + h * kTaps * rows * kHalfVectors * 64,
                    e.compensation + packed,
                    e.multiplier + packed,
                    e.bias + packed,
                    images.input.row_stride,
                    images.input.pixel_stride,
                    images.output.row_stride,
                    images.output.pixel_stride,
                    p.shape.out_channels - block,
                    e.quant_min,
                    e.quant_max,
                    lower};
    const int64_t stride = p.shape.stride_height;
    if (p.spread && h == p.halves - 1) {
      multiply_half<Part::kSpread>(half, stride, strips, count);
      return;
    }
    if (h % 2 == 0) {
      multiply_half<Part::kLower>(half, stride, strips, count);
      continue;
    }
    multiply_half<Part::kUpper>(half, stride, strips, count);
    for (int64_t s = 0; s < count; ++s)
      strips[s].input += 2 * kHalfChannels, strips[s].output += 2 * kHalfChannels;
  }
}

}  // namespace

int64_t int8_depthwise3x3_lanes() { return kLanes; }

void int8_depthwise3x3_kernel(const Int8Depthwise3x3Plan& p, const Int8ConvImages& images, int64_t row_begin,
                              int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const Int8Image &input = images.input, &output = images.output;
  Strip strips[kHeldColumns];
  int64_t count = 0, columns = 0;
  for (int64_t image = 0; image < images.count; ++image) {
    for (int64_t y = row_begin; y < row_end; y += 2) {
      for (int64_t x = 0; x < s.out_width; x += kHeldColumns) {
        const int64_t width = std::min(kHeldColumns, s.out_width - x);
        if (columns + width > kHeldColumns) {
          multiply_strips(p, images, strips, count);
          count = columns = 0;
        }
        strips[count++] = {input.data + image * images.step +
                               (y * s.stride_height - s.pad_top) * input.row_stride +
                               (x * s.stride_width - s.pad_left) * input.pixel_stride,
                           output.data + image * images.step + y * output.row_stride + x * output.pixel_stride,
                           width, y + 1 < row_end};
        columns += width;
      }
    }
  }
  if (count > 0) multiply_strips(p, images, strips, count);
}

#else

int64_t int8_depthwise3x3_lanes() { return 0; }

void int8_depthwise3x3_kernel(const Int8Depthwise3x3Plan&, const Int8ConvImages&, int64_t, int64_t) {}

#endif

#include "core/isa_end.h"
