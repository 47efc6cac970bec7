// What pack_conv2d prepares and the kernels of int8_*_cpu.cpp read. Private to the integer convolution.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

// Output channels of one vector of accumulators; groups are padded to whole tiles.
constexpr int64_t kOutTile = 16;

// How the packed weights of four input channels (a quad) and one tile lie:
//   kQuads: int8 [16 channels][4], the operand of vpdpbusd;
//   kPairs: int16 [2 pairs][16 channels][2], the operand of vpmaddwd, which no u8 x s8 pair can saturate; pair
//   0
//     is inputs 0 and 2, pair 1 inputs 1 and 3, as masking and shifting 16-bit lanes of the codes gives them.
enum class WeightFormat { kQuads, kPairs };

// 64-byte aligned, zero-filled memory.
template <class T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t count) : size_(count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

struct Int8ConvPlan {
  Conv2dShape shape;
  // Per group: input and output channels, tiles of output channels. Packed constants of tile t of group g start
  // at (g * tiles + t) * kOutTile.
  int64_t group_in, group_out, tiles;
  int64_t tap_quads;  // quads of one tap: group_in / 4, rounded up
  // Tiles that one kernel call computes together. The weights of panel tiles [t, t + n) of a group start at
  // tile t's place and are [ky][kx][quad][n] blocks, n being `panel` but for a group's last panel.
  int64_t panel;
  int64_t tile_bytes;  // of one tile's blocks
  const uint8_t* weight;
  const int32_t* compensation;  // -input_zero_point * sum of the channel's weights
  const float* multiplier;
  const float* bias;
  float quant_min, quant_max;
  bool float_output;
  bool has_residual;
  float residual_multiplier;
  int32_t residual_zero_point;
};

using Int8ConvKernel = void(const Int8ConvPlan&, const Int8Image& input, const Int8Image* residual,
                            const Int8Image& output, float* float_output, int64_t row_begin, int64_t row_end);
struct Int8DirectFormat {
  WeightFormat weight;
  int64_t max_panel;
};
using Int8DirectFormatOf = Int8DirectFormat();
PQK_CPU_KERNEL(Int8ConvKernel, int8_direct_kernel)
PQK_CPU_KERNEL(Int8DirectFormatOf, int8_direct_format)

}  // namespace pqk
