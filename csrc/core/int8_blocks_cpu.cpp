// Convolution with weights sparse in blocks of four input channels; lanes are output positions. See
// int8_blocks_plan.h.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/int8_blocks_codes_cpu.h"
#include "core/int8_blocks_lines_cpu.h"
#include "core/int8_blocks_plan.h"
#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

namespace {

// The weights of a block, for every lane.
#if PQK_ISA_LEVEL >= 2
struct BlockWeight {
  Ints quads;
};
inline BlockWeight load_weight(const Int8Block& block) {
  int32_t quad;
  memcpy(&quad, block.weight, 4);
  return {_mm512_set1_epi32(quad)};
}
inline Ints add_block(Ints sum, const BlockWeight& weight, const uint8_t* line) {
  return _mm512_dpbusd_epi32(sum, _mm512_load_si512(line), weight.quads);
}
#elif defined(PQK_X86_64)
struct BlockWeight {
  Ints even, odd;  // 16-bit weights of channels 0 and 2, and of 1 and 3
};
inline BlockWeight load_weight(const Int8Block& block) {
  int32_t quad;
  memcpy(&quad, block.weight, 4);
  const Ints quads = set_ints(quad);
#if PQK_ISA_LEVEL >= 1
  return {_mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8), _mm256_srai_epi16(quads, 8)};
#else
  return {_mm_srai_epi16(_mm_slli_epi16(quads, 8), 8), _mm_srai_epi16(quads, 8)};
#endif
}
inline Ints add_block(Ints sum, const BlockWeight& weight, const uint8_t* line) {
  const Quads codes = split_quads(load_ints(reinterpret_cast<const int32_t*>(line)));
#if PQK_ISA_LEVEL >= 1
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes.even, weight.even));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(codes.odd, weight.odd));
#else
  sum = _mm_add_epi32(sum, _mm_madd_epi16(codes.even, weight.even));
  return _mm_add_epi32(sum, _mm_madd_epi16(codes.odd, weight.odd));
#endif
}
#else
struct BlockWeight {
  const int8_t* quads;
};
inline BlockWeight load_weight(const Int8Block& block) { return {block.weight}; }
inline Ints add_block(Ints sum, const BlockWeight& weight, const uint8_t* line) {
  for (int i = 0; i < 4; ++i) sum += line[i] * weight.quads[i];
  return sum;
}
#endif

// One output channel of a panel.
template <int N>
struct ChannelSums {
  Ints vector[N];
};

// With few vectors, sums of several blocks at a time, so that there are enough chains of additions to hide
// their latency.
constexpr int sum_sets(int vectors) { return vectors == 1 ? 4 : vectors <= 4 ? 2 : 1; }

template <int N>
inline void add_block(const Int8Block& block, const uint8_t* lines, ChannelSums<N>& sums) {
  const BlockWeight weight = load_weight(block);
  const uint8_t* line = lines + block.offset;
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    sums.vector[v] = add_block(sums.vector[v], weight, line + v * kLineBytes);
#if defined(PQK_X86_64) && defined(__GNUC__)
    asm("" : "+v"(sums.vector[v]));  // keeps gcc from copying every sum in every round
#endif
  }
}

template <int N>
[[gnu::always_inline]] inline ChannelSums<N> multiply_channel(const Int8BlocksPlan& p, const Panel& panel,
                                                              int64_t slot, int64_t channel) {
  constexpr int kSets = sum_sets(N);
  ChannelSums<N> sums[kSets];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    sums[0].vector[v] = panel.slice == 0 ? set_ints(p.epilogue.compensation[channel])
                                         : load_ints(panel.sums + (channel * N + v) * kLanes);
#pragma GCC unroll 4
    for (int set = 1; set < kSets; ++set) sums[set].vector[v] = set_ints(0);
  }
  const Int8Block* block = p.blocks + p.begin[slot];
  const Int8Block* const end = p.blocks + p.begin[slot + 1];
#pragma GCC unroll 1
  for (; end - block >= kSets; block += kSets) {
#pragma GCC unroll 4
    for (int set = 0; set < kSets; ++set) add_block(block[set], panel.lines, sums[set]);
  }
#pragma GCC unroll 1
  for (; kSets > 1 && block != end; ++block) add_block(*block, panel.lines, sums[0]);
#pragma GCC unroll 4
  for (int set = 1; set < kSets; ++set) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) sums[0].vector[v] = add_ints(sums[0].vector[v], sums[set].vector[v]);
  }
  return sums[0];
}

// A tile of channels in a slice that is not the last.
template <int N>
void compute_slice(const Int8BlocksPlan& p, const Panel& panel, int64_t tile, int64_t channels) {
  const int64_t first = panel.first_slot + tile * kOutTile;
  for (int64_t slot = first; slot < first + channels; ++slot) {
    const int64_t channel = tile * kOutTile + p.channel[slot];
    const ChannelSums<N> sums = multiply_channel<N>(p, panel, slot, channel);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) store_ints(panel.sums + (channel * N + v) * kLanes, sums.vector[v]);
  }
}

// Sums of a tile's channels for `positions` positions to sums of positions.
inline void transpose(const int32_t (*rows)[kMaxPositions], int64_t positions, int32_t* sums) {
#if defined(PQK_X86_64)
  for (int64_t i = 0; i < positions; i += 4) {
    for (int64_t channel = 0; channel < kOutTile; channel += 4) {
      __m128i row[4];
      for (int k = 0; k < 4; ++k)
        row[k] = _mm_load_si128(reinterpret_cast<const __m128i*>(rows[channel + k] + i));
      const __m128i low01 = _mm_unpacklo_epi32(row[0], row[1]), high01 = _mm_unpackhi_epi32(row[0], row[1]);
      const __m128i low23 = _mm_unpacklo_epi32(row[2], row[3]), high23 = _mm_unpackhi_epi32(row[2], row[3]);
      const __m128i column[4] = {_mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
                                 _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
      for (int k = 0; k < 4; ++k) {
        _mm_store_si128(reinterpret_cast<__m128i*>(sums + (i + k) * kOutTile + channel), column[k]);
      }
    }
  }
#else
  for (int64_t i = 0; i < positions; ++i) {
    for (int64_t channel = 0; channel < kOutTile; ++channel) sums[i * kOutTile + channel] = rows[channel][i];
  }
#endif
}

// A tile of channels by way of its sums in memory.
template <int N>
void compute_by_sums(const Int8BlocksPlan& p, const Panel& panel, int64_t tile, int64_t channels) {
  alignas(64) int32_t rows[kOutTile][kMaxPositions] = {}, sums[kMaxPositions * kOutTile];
  const int64_t first = panel.first_slot + tile * kOutTile;
  for (int64_t slot = first; slot < first + channels; ++slot) {
    const int64_t channel = p.channel[slot];
    const ChannelSums<N> sum = multiply_channel<N>(p, panel, slot, tile * kOutTile + channel);
    for (int v = 0; v < N; ++v) store_ints(rows[channel] + v * kLanes, sum.vector[v]);
  }
  transpose(rows, N * kLanes, sums);
  const int64_t code_offset = tile * kOutTile;
  const int64_t output_offset = code_offset * (p.epilogue.float_output ? sizeof(float) : 1);
  OutputPixel output[kMaxPositions];
  for (int64_t i = 0; i < panel.positions; ++i) {
    output[i].output = panel.output + panel.output_offset[i] + output_offset;
    output[i].residual =
        p.epilogue.has_residual ? panel.residual + panel.residual_offset[i] + code_offset : nullptr;
  }
  requantize(p.epilogue, sums, panel.positions, 1, tile * kOutTile, channels, output);
}

#if PQK_ISA_LEVEL >= 2

// A tile of channels whose codes stay in registers until they are bytes. They are clamped as bytes: the layer's
// values before are in the range of int32 (see pack_blocks), and the packs saturate.
template <int N, bool HasResidual>
void compute_codes(const Int8BlocksPlan& p, const Panel& panel, int64_t tile, int64_t channels) {
  constexpr int kGroups = (N + 3) / 4;
  TileCodes codes;
  const Int8Epilogue& e = p.epilogue;
  if (HasResidual) load_residual(panel, tile * kOutTile, kGroups, codes);
  const Floats other = set_floats(e.residual_multiplier);
  const Ints low = _mm512_set1_epi8(static_cast<char>(e.quant_min)),
             high = _mm512_set1_epi8(static_cast<char>(e.quant_max)), zero = set_ints(e.residual_zero_point);
  // Takes bytes 4 v to 4 v + 3 of every 128-bit lane to the lane's numbers.
  const Ints first_bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1));
  const int64_t first = panel.first_slot + tile * kOutTile;
  for (int64_t slot = first; slot < first + channels; ++slot) {
    const int64_t in_tile = p.channel[slot], channel = tile * kOutTile + in_tile;
    const ChannelSums<N> sums = multiply_channel<N>(p, panel, slot, channel);
    const Floats multiplier = set_floats(e.multiplier[channel]), bias = set_floats(e.bias[channel]);
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      uint8_t* const bytes = codes.group[g][in_tile];
      Ints code[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        if (g * 4 + v >= N) {
          code[v] = _mm512_setzero_si512();
          continue;
        }
        Floats value = multiply(to_floats(sums.vector[g * 4 + v]), multiplier);
        if (HasResidual) {
          const Ints places = _mm512_add_epi8(first_bytes, set_ints(4 * v));
          const Ints residual = _mm512_shuffle_epi8(_mm512_load_si512(bytes), places);
          value = add(value, multiply(to_floats(subtract(residual, zero)), other));
        }
        code[v] = round_to_ints(add(value, bias));
      }
      const Ints packed =
          _mm512_packus_epi16(_mm512_packs_epi32(code[0], code[1]), _mm512_packs_epi32(code[2], code[3]));
      _mm512_store_si512(bytes, _mm512_min_epu8(_mm512_max_epu8(packed, low), high));
    }
  }
  store_tile(panel, tile * kOutTile, channels, kGroups, codes);
}

#endif

template <int N>
void compute_tile(const Int8BlocksPlan& p, const Panel& panel, int64_t tile, int64_t channels) {
  if (panel.slice < p.slices - 1) return compute_slice<N>(p, panel, tile, channels);
#if PQK_ISA_LEVEL >= 2
  if (!p.epilogue.float_output) {
    p.epilogue.has_residual ? compute_codes<N, true>(p, panel, tile, channels)
                            : compute_codes<N, false>(p, panel, tile, channels);
    return;
  }
#endif
  compute_by_sums<N>(p, panel, tile, channels);
}

using TileFunction = void(const Int8BlocksPlan&, const Panel&, int64_t tile, int64_t channels);
template <int... N>
constexpr auto tile_table(std::integer_sequence<int, N...>) {
  return std::array<TileFunction*, kMaxVectors>{&compute_tile<N + 1>...};
}
constexpr auto kTiles = tile_table(std::make_integer_sequence<int, kMaxVectors>());  // [vectors - 1]

void compute_panel(const Int8BlocksPlan& p, const Int8Image& input, Panel& panel) {
  const int64_t positions = panel.positions;
  uint8_t* const lines = panel.lines;
  for (panel.slice = 0; panel.slice < p.slices; ++panel.slice) {
    panel.first_quad = panel.slice * p.slice_quads;
    panel.quads = std::min(p.slice_quads, p.quads - panel.first_quad);
    panel.first_slot = panel.slice * p.slots;
    write_streams(p, input, panel);
    for (int64_t first = 0; first < positions; first += kMaxPositions) {
      panel.positions = std::min<int64_t>(kMaxPositions, positions - first);
      panel.lines = lines + first * 4;
      panel.residual_offset = panel.residual_offsets + first;
      panel.output_offset = panel.output_offsets + first;
      const int64_t vectors = (panel.positions + kLanes - 1) / kLanes;
      for (int64_t tile = panel.tile_begin; tile < panel.tile_end; ++tile) {
        const int64_t channels = std::min(kOutTile, p.shape.out_channels - tile * kOutTile);
        kTiles[vectors - 1](p, panel, tile, channels);
      }
    }
    panel.positions = positions;
    panel.lines = lines;
  }
}

// The images' geometry, and panels of it.
struct Walk {
  const Int8BlocksPlan& p;
  const Int8ConvImages& images;
  int64_t row_begin, rows;
  bool own_addresses;  // whoever writes lines needs no offsets of positions
  Steps input, residual, output;
  Panel panel;

  Walk(const Int8BlocksPlan& plan, const Int8ConvImages& all, const Int8BlocksPart& part)
      : p(plan),
        images(all),
        row_begin(part.row_begin),
        rows(part.row_end - part.row_begin),
        own_addresses(takes_three_taps(plan)),
        residual{} {
    const Conv2dShape& s = p.shape;
    input = {images.step, s.stride_height * images.input.row_stride,
             s.stride_width * images.input.pixel_stride};
    if (images.residual != nullptr) {
      residual = {images.step, images.residual->row_stride, images.residual->pixel_stride};
    }
    const int64_t pixel = s.out_channels * static_cast<int64_t>(sizeof(float));
    if (p.epilogue.float_output) {
      output = {images.float_step * static_cast<int64_t>(sizeof(float)), s.out_width * pixel, pixel};
    } else {
      output = {images.step, images.output.row_stride, images.output.pixel_stride};
    }
    panel.tile_begin = part.tile_begin;
    panel.tile_end = part.tile_end;
    panel.lines = images.scratch;
    const int64_t line_quads = (p.slice_quads + kQuadsAtOnce - 1) / kQuadsAtOnce * kQuadsAtOnce;
    panel.sums = reinterpret_cast<int32_t*>(images.scratch + line_quads * p.lines * kLineBytes);
  }

  // Addresses of row `row` of image `image`.
  void move_to(int64_t image, int64_t row) {
    const Conv2dShape& s = p.shape;
    panel.input = images.input.data + image * input.image + row * input.row -
                  s.pad_top * images.input.row_stride - s.pad_left * images.input.pixel_stride;
    if (images.residual != nullptr) {
      panel.residual = images.residual->data + image * residual.image + row * residual.row;
    }
    uint8_t* const first =
        p.epilogue.float_output ? reinterpret_cast<uint8_t*>(images.float_output) : images.output.data;
    panel.output = first + image * output.image + row * output.row;
  }

  // `count` positions from number `first` of rows [0, of_rows) of the images on; input offsets go `more`
  // further.
  void set_positions(int64_t of_rows, int64_t first, int64_t count, int64_t more) {
    const int64_t width = p.shape.out_width;
    panel.positions = count;
    if (!own_addresses) set_offsets(input, of_rows, width, first, count + more, panel.input_offset);
    set_offsets(output, of_rows, width, first, count, panel.output_offsets);
    if (images.residual != nullptr) set_offsets(residual, of_rows, width, first, count, panel.residual_offsets);
  }

  void run_rows() {
    int64_t more = 0;
    for (int64_t i = 0; i < p.stream_count; ++i) more = std::max(more, p.streams[i].more_rows);
    int64_t ready = 0;  // rows for which the offsets are set
    for (int64_t image = 0; image < images.count; ++image) {
      for (int64_t row = 0; row < rows; row += p.panel_rows) {
        const int64_t count = std::min(p.panel_rows, rows - row);
        if (count != ready) {
          ready = count;
          set_positions(count + more, 0, count * p.shape.out_width, more * p.shape.out_width);
        }
        move_to(image, row_begin + row);
        compute_panel(p, images.input, panel);
      }
    }
  }

  void run_positions() {
    const int64_t all = images.count * rows * p.shape.out_width;
    move_to(0, row_begin);
    for (int64_t first = 0; first < all; first += p.vectors * kLanes) {
      set_positions(rows, first, std::min(p.vectors * kLanes, all - first), 0);
      compute_panel(p, images.input, panel);
    }
  }
};

}  // namespace

Int8BlocksFormat int8_blocks_format() { return {kLanes, kMaxVectors, kMaxPanelPositions / kLanes}; }

void int8_blocks_kernel(const Int8BlocksPlan& p, const Int8ConvImages& images, const Int8BlocksPart& part) {
  Walk walk(p, images, part);
  p.panel_rows > 0 ? walk.run_rows() : walk.run_positions();
}

#include "core/isa_end.h"
