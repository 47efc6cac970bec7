#include "core/cuda/mma.h"

#include <string>

namespace pqk::cuda::emulation {
namespace {

constexpr int kRows = 16, kColumns = 8, kKept = 32;

const MmaRequest& mma_lane(Request* const* lanes, int lane) { return *static_cast<MmaRequest*>(lanes[lane]); }

// "Multiplicand A" of mma.m16n8k32 for 8-bit integers: element a_i, i = 0 ... 15, of a lane. Four elements are
// one register, the lowest byte first. Sparse A's kept elements lie the same way.
struct Place {
  int row, column;
};
Place place_in_a(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  const bool upper = (i < 4) || (i >= 8 && i < 12);
  return {upper ? group : group + 8,
          i < 8 ? thread_in_group * 4 + (i & 3) : thread_in_group * 4 + (i & 3) + 16};
}
// "Multiplicand B": b_i, i = 0 ... 7, or 15 where sparse A has 64 columns: 16 more rows with every register.
Place place_in_b(int lane, int i) { return {(lane % 4) * 4 + (i & 3) + 16 * (i / 4), lane >> 2}; }
// "Accumulators": c_i, i = 0 ... 3.
Place place_in_c(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? group : group + 8, thread_in_group * 2 + (i & 1)};
}

template <class T>
int element(const uint32_t* registers, int i) {
  return static_cast<T>(registers[i / 4] >> (8 * (i % 4)));
}

// Two bits a kept element; in a group of 4 columns the first must have the smaller index.
void check_metadata(uint32_t metadata) {
  for (int bits = 0; bits < 32; bits += 4) {
    const uint32_t first = metadata >> bits & 3, second = metadata >> (bits + 2) & 3;
    if (first >= second) fail("sparse mma: metadata 0x" + std::to_string(metadata) + " is not in order");
  }
}

// The index within its group of 4 of a kept column: a lane's metadata is that of half a row, in the order of
// columns.
int kept_index(Request* const* lanes, int row, int column) {
  const int lane = row % 8 * 4 + row / 8 + column / 16 * 2;
  return static_cast<int>(mma_lane(lanes, lane).metadata >> (2 * (column % 16)) & 3);
}

}  // namespace

void require_whole_warp(Request* const* lanes) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if (lanes[lane] == nullptr) fail("a warp of fewer than 32 threads calls what all 32 must call");
  }
}

template <class A, class B, bool kSparse>
void complete_mma(Request* const* lanes) {
  require_whole_warp(lanes);
  constexpr int kDepth = kSparse ? 2 * kKept : kKept;
  int16_t a[kRows][kDepth] = {}, b[kColumns][kDepth];
  for (int lane = 0; lane < kWarp; ++lane) {
    const MmaRequest& request = mma_lane(lanes, lane);
    if (kSparse) check_metadata(request.metadata);
    for (int i = 0; i < 16; ++i) {
      auto [row, column] = place_in_a(lane, i);
      // Kept columns 2g and 2g + 1 come from columns 4g ... 4g + 3.
      if (kSparse) column = column / 2 * 4 + kept_index(lanes, row, column);
      a[row][column] = static_cast<int16_t>(element<A>(request.a, i));
    }
    for (int i = 0; i < kDepth / 4; ++i) {
      const auto [row, column] = place_in_b(lane, i);
      b[column][row] = static_cast<int16_t>(element<B>(request.b, i));
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto [row, column] = place_in_c(lane, i);
      int sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      int& d = mma_lane(lanes, lane).d[i];
      d = static_cast<int>(static_cast<uint32_t>(d) + static_cast<uint32_t>(sum));
    }
  }
}

template void complete_mma<int8_t, int8_t, false>(Request* const*);
template void complete_mma<uint8_t, int8_t, false>(Request* const*);
template void complete_mma<int8_t, uint8_t, false>(Request* const*);
template void complete_mma<int8_t, int8_t, true>(Request* const*);
template void complete_mma<uint8_t, int8_t, true>(Request* const*);
template void complete_mma<int8_t, uint8_t, true>(Request* const*);

void complete_ldmatrix(Request* const* lanes) {
  require_whole_warp(lanes);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (reinterpret_cast<uintptr_t>(static_cast<LdmatrixRequest*>(lanes[lane])->row) % 16 != 0) {
      fail("ldmatrix_x4: a row at an address that is no multiple of 16");
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto* source = static_cast<LdmatrixRequest*>(lanes[matrix * 8 + lane / 4]);
      memcpy(&static_cast<LdmatrixRequest*>(lanes[lane])->r[matrix], source->row + 4 * (lane % 4), 4);
    }
  }
}

}  // namespace pqk::cuda::emulation
