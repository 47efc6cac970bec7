// Codes of a tile of channels as a row of bytes for each channel, and from and to NHWC. Only for
// int8_blocks_cpu.cpp.
#pragma once

#include <algorithm>

#include "core/int8_blocks_lines_cpu.h"

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2

// Codes of 16 channels x up to 64 positions are kept as a row of bytes for each channel, in the order that
// packing four vectors of sums gives: byte 4 v + i of 128-bit lane l is position 16 v + 4 l + i.
struct CodeRows {
  __m512i row[kOutTile];
};
inline int64_t code_position(int64_t byte, int64_t lane) { return byte / 4 * 16 + lane * 4 + byte % 4; }

// Exchanges rows and bytes in every 128-bit lane. Each round rotates the bits of (row, byte) by one.
inline void transpose(CodeRows& codes) {
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    CodeRows next;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next.row[2 * i] = _mm512_unpacklo_epi8(codes.row[i], codes.row[i + 8]);
      next.row[2 * i + 1] = _mm512_unpackhi_epi8(codes.row[i], codes.row[i + 8]);
    }
    codes = next;
  }
}

constexpr int kMaxGroups = kMaxVectors / 4;  // of 64 positions
struct TileCodes {
  alignas(64) uint8_t group[kMaxGroups][kOutTile][64];
};

// Brings the residual codes of a tile into rows.
void load_residual(const Panel& panel, int64_t offset, int64_t groups, TileCodes& tile) {
  for (int64_t g = 0; g < groups; ++g) {
    CodeRows codes;
#pragma GCC unroll 16
    for (int k = 0; k < kOutTile; ++k) {
      const auto load = [&](int lane) {
        // Positions behind the last repeat it.
        const int64_t position = std::min(g * 64 + code_position(k, lane), panel.positions - 1);
        return _mm_loadu_si128(
            reinterpret_cast<const __m128i*>(panel.residual + panel.residual_offset[position] + offset));
      };
      __m512i lanes = _mm512_castsi128_si512(load(0));
      lanes = _mm512_mask_broadcast_i32x4(lanes, 0x00f0, load(1));
      lanes = _mm512_mask_broadcast_i32x4(lanes, 0x0f00, load(2));
      codes.row[k] = _mm512_mask_broadcast_i32x4(lanes, 0xf000, load(3));
    }
    transpose(codes);
    for (int k = 0; k < kOutTile; ++k) _mm512_store_si512(tile.group[g][k], codes.row[k]);
  }
}

void store_tile(const Panel& panel, int64_t offset, int64_t channels, int64_t groups, const TileCodes& tile) {
  const __mmask16 exist = static_cast<__mmask16>((1u << channels) - 1);
  for (int64_t g = 0; g < groups; ++g) {
    CodeRows codes;
    for (int k = 0; k < kOutTile; ++k) codes.row[k] = _mm512_load_si512(tile.group[g][k]);
    transpose(codes);
    const bool whole = channels == kOutTile && panel.positions >= g * 64 + 64;
    uint8_t* const output = panel.output + offset;
    const int64_t* const position_offset = panel.output_offset + g * 64;
#pragma GCC unroll 16
    for (int k = 0; k < kOutTile; ++k) {
      const __m128i lane[4] = {_mm512_castsi512_si128(codes.row[k]), _mm512_extracti32x4_epi32(codes.row[k], 1),
                               _mm512_extracti32x4_epi32(codes.row[k], 2),
                               _mm512_extracti32x4_epi32(codes.row[k], 3)};
#pragma GCC unroll 4
      for (int l = 0; l < 4; ++l) {
        const int64_t position = code_position(k, l);
        if (whole) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(output + position_offset[position]), lane[l]);
        } else if (g * 64 + position < panel.positions) {
          _mm_mask_storeu_epi8(output + position_offset[position], exist, lane[l]);
        }
      }
    }
  }
}

#endif

}  // namespace

#include "core/isa_end.h"
