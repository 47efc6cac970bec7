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
  int64_t positions;
  // Relative to the first position of the images, whose addresses follow.
  int64_t input_offset[kMaxStreamPositions];
  int64_t residual_offset[kMaxPositions], output_offset[kMaxPositions];
  const uint8_t* input;  // of the window's first tap
  const uint8_t* residual;
  uint8_t* output;
  uint8_t* lines;
};

// Writes the codes of all channels of one vector of positions as lines, `pitch` bytes from quad to quad.
void write_lines(const uint8_t* input, const int64_t* offset, int64_t quads, uint8_t* to, int64_t pitch) {
#if PQK_ISA_LEVEL >= 2
  for (int64_t quad = 0; quad < quads;
       quad += kQuadsAtOnce, input += 4 * kQuadsAtOnce, to += kQuadsAtOnce * pitch) {
    const auto load = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(input + offset[i]));
    };
    __m512i pixel[4];  // 128-bit lane l of vector i: four quads of position 4 l + i
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      pixel[i] = _mm512_castsi128_si512(load(i));
      pixel[i] = _mm512_mask_broadcast_i32x4(pixel[i], 0x00f0, load(4 + i));
      pixel[i] = _mm512_mask_broadcast_i32x4(pixel[i], 0x0f00, load(8 + i));
      pixel[i] = _mm512_mask_broadcast_i32x4(pixel[i], 0xf000, load(12 + i));
    }
    const __m512i low01 = _mm512_unpacklo_epi32(pixel[0], pixel[1]),
                  high01 = _mm512_unpackhi_epi32(pixel[0], pixel[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(pixel[2], pixel[3]),
                  high23 = _mm512_unpackhi_epi32(pixel[2], pixel[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(to + pitch, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(to + 2 * pitch, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(to + 3 * pitch, _mm512_unpackhi_epi64(high01, high23));
  }
#else
  for (int64_t quad = 0; quad < quads; ++quad, input += 4, to += pitch) {
    for (int i = 0; i < kLanes; ++i) memcpy(to + i * 4, input + offset[i], 4);
  }
#endif
}

void write_streams(const Int8BlocksPlan& p, const Int8Image& image, const Panel& panel) {
  const int64_t vectors = (panel.positions + kLanes - 1) / kLanes, pitch = p.lines * kLineBytes;
  for (int64_t i = 0; i < p.stream_count; ++i) {
    const Int8BlocksStream& stream = p.streams[i];
    const uint8_t* input = panel.input + stream.row * image.row_stride + stream.column * image.pixel_stride;
    const int64_t lines = vectors + stream.more_rows * p.shape.out_width / kLanes;
    uint8_t* to = panel.lines + stream.first_line * kLineBytes;
    const int64_t positions = panel.positions + stream.more_rows * p.shape.out_width;
    for (int64_t line = 0; line < lines; ++line) {
      if ((line + 1) * kLanes > positions) {  // the last position again where there is none
        int64_t offset[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          offset[lane] = panel.input_offset[std::min(line * kLanes + lane, positions - 1)];
        }
        write_lines(input, offset, p.quads, to + line * kLineBytes, pitch);
        break;
      }
      write_lines(input, panel.input_offset + line * kLanes, p.quads, to + line * kLineBytes, pitch);
    }
  }
}

}  // namespace

#include "core/isa_end.h"
