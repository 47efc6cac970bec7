// A panel of output positions, and the lines of quads that its windows cover. Only for int8_blocks_cpu.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/int8_blocks_plan.h"
#include "core/int8_vector_cpu.h"

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 1
constexpr int kMaxVectors = PQK_ISA_LEVEL >= 2 ? 8 : 4;
#else
constexpr int kMaxVectors = 4;
#endif
constexpr int kMaxPositions = kMaxVectors * kLanes;
constexpr int kMaxPanelPositions = 16 * kLanes;
constexpr int64_t kLineBytes = kLanes * 4;

// How far positions are from the first one, in bytes.
struct Steps {
  int64_t image, row, column;
};

// `count` positions from number `first` on, in order of image, row, column, `rows` rows of `width` an image.
void set_offsets(const Steps& steps, int64_t rows, int64_t width, int64_t first, int64_t count,
                 int64_t* offset) {
  int64_t image = first / (rows * width), y = first / width % rows, x = first % width;
  while (count > 0) {
    const int64_t run = std::min(width - x, count),
                  start = image * steps.image + y * steps.row + x * steps.column;
    for (int64_t i = 0; i < run; ++i) offset[i] = start + i * steps.column;
    offset += run;
    count -= run;
    x = 0;
    if (++y == rows) y = 0, ++image;
  }
}

struct Panel {
  int64_t tile_begin, tile_end;  // of output channels
  int64_t positions;
  // Relative to the first position of the images, whose addresses follow.
  int64_t input_offset[kMaxStreamPositions];
  int64_t residual_offsets[kMaxPanelPositions], output_offsets[kMaxPanelPositions];
  const int64_t *residual_offset, *output_offset;  // of the positions that are computed together
  const uint8_t* input;                            // of the window's first tap
  const uint8_t* residual;
  uint8_t* output;
  uint8_t* lines;
  // Of the slice in work: its number, quads and first slot, and the sums of slices before, [channel][vector].
  int64_t slice, first_quad, quads, first_slot;
  int32_t* sums;
};

// Where the positions of one vector lie: each by its own offset, or each four at a constant distance.
struct AnyPositions {
  const uint8_t* input;
  const int64_t* offset;
  AnyPositions(const uint8_t* first, const int64_t* offsets, int64_t) : input(first), offset(offsets) {}
  const uint8_t* at(int i) const { return input + offset[i]; }
};
struct FoursInRows {
  const uint8_t* four[(kLanes + 3) / 4];
  int64_t step;
  FoursInRows(const uint8_t* first, const int64_t* offset, int64_t distance) : step(distance) {
    for (int i = 0; i < kLanes; i += 4) four[i / 4] = first + offset[i];
  }
  const uint8_t* at(int i) const { return four[i / 4] + i % 4 * step; }
};

#if defined(PQK_X86_64)

#if PQK_ISA_LEVEL >= 2
inline Ints low_ints(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
inline Ints high_ints(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
inline Ints low_pairs(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
inline Ints high_pairs(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
#elif PQK_ISA_LEVEL == 1
inline Ints low_ints(Ints a, Ints b) { return _mm256_unpacklo_epi32(a, b); }
inline Ints high_ints(Ints a, Ints b) { return _mm256_unpackhi_epi32(a, b); }
inline Ints low_pairs(Ints a, Ints b) { return _mm256_unpacklo_epi64(a, b); }
inline Ints high_pairs(Ints a, Ints b) { return _mm256_unpackhi_epi64(a, b); }
#else
inline Ints low_ints(Ints a, Ints b) { return _mm_unpacklo_epi32(a, b); }
inline Ints high_ints(Ints a, Ints b) { return _mm_unpackhi_epi32(a, b); }
inline Ints low_pairs(Ints a, Ints b) { return _mm_unpacklo_epi64(a, b); }
inline Ints high_pairs(Ints a, Ints b) { return _mm_unpackhi_epi64(a, b); }
#endif

// Four quads of up to kLanes pixels, a quad of all pixels in each vector.
struct QuadVectors {
  Ints quad[kQuadsAtOnce];
};

// Of pixels [0, kPixels) of `positions`, from byte `offset` of each on.
template <int kPixels, class Positions>
[[gnu::always_inline]] inline QuadVectors load_quads(const Positions& positions, int64_t offset) {
  const auto load = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(positions.at(i) + offset));
  };
  Ints pixel[4];  // 128-bit lane l of vector i: four quads of position 4 l + i
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#if PQK_ISA_LEVEL >= 2
    pixel[i] = i < kPixels ? _mm512_castsi128_si512(load(i)) : pixel[0];
    if (4 + i < kPixels) pixel[i] = _mm512_mask_broadcast_i32x4(pixel[i], 0x00f0, load(4 + i));
    if (8 + i < kPixels) pixel[i] = _mm512_mask_broadcast_i32x4(pixel[i], 0x0f00, load(8 + i));
    if (12 + i < kPixels) pixel[i] = _mm512_mask_broadcast_i32x4(pixel[i], 0xf000, load(12 + i));
#elif PQK_ISA_LEVEL == 1
    pixel[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(4 + i), 1);
#else
    pixel[i] = load(i);
#endif
  }
  const Ints low01 = low_ints(pixel[0], pixel[1]), high01 = high_ints(pixel[0], pixel[1]);
  const Ints low23 = low_ints(pixel[2], pixel[3]), high23 = high_ints(pixel[2], pixel[3]);
  return {low_pairs(low01, low23), high_pairs(low01, low23), low_pairs(high01, high23),
          high_pairs(high01, high23)};
}

#endif

// Writes the codes of all channels of one vector of positions as lines, `pitch` bytes from quad to quad.
template <class Positions>
void write_lines(const Positions& positions, int64_t quads, uint8_t* to, int64_t pitch) {
#if defined(PQK_X86_64)
  for (int64_t quad = 0; quad < quads; quad += kQuadsAtOnce, to += kQuadsAtOnce * pitch) {
    const QuadVectors vectors = load_quads<kLanes>(positions, quad * 4);
#pragma GCC unroll 4
    for (int i = 0; i < kQuadsAtOnce; ++i)
      store_ints(reinterpret_cast<int32_t*>(to + i * pitch), vectors.quad[i]);
  }
#else
  for (int64_t quad = 0; quad < quads; ++quad, to += pitch) memcpy(to, positions.at(0) + quad * 4, 4);
#endif
}

// A stream of any geometry.
template <class Positions>
void write_stream(const Int8BlocksPlan& p, const Int8Image& image, const Panel& panel,
                  const Int8BlocksStream& stream) {
  const Conv2dShape& s = p.shape;
  const int64_t positions = panel.positions + stream.more_rows * s.out_width;
  const int64_t pitch = p.lines * kLineBytes, step = s.stride_width * image.pixel_stride;
  for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
    const uint8_t* input = panel.input + stream.row * image.row_stride +
                           kx * s.dilation_width * image.pixel_stride + panel.first_quad * 4;
    uint8_t* to = panel.lines + (stream.first_line + kx * stream.lines) * kLineBytes;
    for (int64_t first = 0; first < positions; first += kLanes, to += kLineBytes) {
      const int64_t* const offset = panel.input_offset + first;
      if (first + kLanes <= positions) {
        write_lines(Positions(input, offset, step), panel.quads, to, pitch);
        continue;
      }
      int64_t existing[kLanes];  // with the last position again where there is none
      for (int64_t i = 0; i < kLanes; ++i) existing[i] = offset[std::min(i, positions - 1 - first)];
      write_lines(AnyPositions(input, existing, step), panel.quads, to, pitch);
    }
  }
}

// Kernels 3 taps wide, of stride 1, over rows of whole lines or of half lines.
inline bool takes_three_taps(const Int8BlocksPlan& p) {
  const Conv2dShape& s = p.shape;
  return PQK_ISA_LEVEL >= 2 && p.panel_rows > 0 && s.kernel_width == 3 && s.stride_width == 1 &&
         s.dilation_width == 1 && (s.out_width % kLanes == 0 || s.out_width == kLanes / 2);
}

#if PQK_ISA_LEVEL >= 2

// For them every pixel is brought into vectors once, and the taps' copies are taken from two neighbouring
// vectors.
class ThreeTapStream {
 public:
  ThreeTapStream(const Int8BlocksPlan& p, const Int8Image& image, const Panel& panel,
                 const Int8BlocksStream& stream)
      : input_(panel.input + stream.row * image.row_stride + panel.first_quad * 4),
        row_step_(p.shape.stride_height * image.row_stride),
        step_(image.pixel_stride),
        width_(p.shape.out_width),
        rows_(panel.positions / width_ + stream.more_rows),
        pitch_(p.lines * kLineBytes),
        copy_(stream.lines * kLineBytes) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // The upper half of a line of two rows begins with the second vector.
    const __m512i places = width_ == 8 ? _mm512_mask_add_epi32(lane, 0xff00, lane, _mm512_set1_epi32(8)) : lane;
    for (int kx = 0; kx < 3; ++kx) places_[kx] = _mm512_add_epi32(places, _mm512_set1_epi32(kx));
    uint8_t* to = panel.lines + stream.first_line * kLineBytes;
    for (int64_t quad = 0; quad < panel.quads; quad += kQuadsAtOnce, to += kQuadsAtOnce * pitch_) {
      width_ == 8 ? write_row_pairs(quad * 4, to) : write_rows(quad * 4, to);
    }
  }

 private:
  struct Pixels {
    const uint8_t* first;
    int64_t step;
    const uint8_t* at(int i) const { return first + i * step; }
  };
  Pixels pixels(int64_t row, int64_t x) const { return {input_ + row * row_step_ + x * step_, step_}; }

  void write_rows(int64_t offset, uint8_t* to) const {
    for (int64_t row = 0; row < rows_; ++row) {
      QuadVectors here = load_quads<16>(pixels(row, 0), offset);
      for (int64_t x = 16; x < width_; x += 16, to += kLineBytes) {
        const QuadVectors next = load_quads<16>(pixels(row, x), offset);
        write_copies<false>(here, next, to);
        here = next;
      }
      write_copies<false>(here, load_quads<2>(pixels(row, width_), offset), to);
      to += kLineBytes;
    }
  }

  void write_row_pairs(int64_t offset, uint8_t* to) const {
    for (int64_t row = 0; row < rows_; row += 2, to += kLineBytes) {
      const int64_t second = std::min(row + 1, rows_ - 1);
      write_copies<true>(load_quads<10>(pixels(row, 0), offset), load_quads<10>(pixels(second, 0), offset), to);
    }
  }

  template <bool kPairs>
  [[gnu::always_inline]] void write_copies(const QuadVectors& a, const QuadVectors& b, uint8_t* to) const {
#pragma GCC unroll 4
    for (int i = 0; i < kQuadsAtOnce; ++i, to += pitch_) {
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx) {
        const bool as_is = !kPairs && kx == 0;
        _mm512_store_si512(to + kx * copy_,
                           as_is ? a.quad[i] : _mm512_permutex2var_epi32(a.quad[i], places_[kx], b.quad[i]));
      }
    }
  }

  const uint8_t* input_;
  int64_t row_step_, step_, width_, rows_, pitch_, copy_;
  __m512i places_[3];
};

#endif

void write_streams(const Int8BlocksPlan& p, const Int8Image& image, const Panel& panel) {
  for (int64_t i = 0; i < p.stream_count; ++i) {
#if PQK_ISA_LEVEL >= 2
    if (takes_three_taps(p)) {
      ThreeTapStream(p, image, panel, p.streams[i]);
      continue;
    }
#endif
    if (p.shape.out_width % 4 == 0) {
      write_stream<FoursInRows>(p, image, panel, p.streams[i]);
    } else {
      write_stream<AnyPositions>(p, image, panel, p.streams[i]);
    }
  }
}

}  // namespace

#include "core/isa_end.h"
