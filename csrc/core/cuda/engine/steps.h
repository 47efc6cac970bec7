// The device program: what a graph becomes on a GPU. A flat list of steps without pointers, so that it can be
// copied anywhere; each says where its values lie in an image's arena and where its constants lie in one block.
//
// Adding a kind of step: its struct here, a line in PQK_DEVICE_STEPS, a function `run(step, frame, team)` in
// one of the .cuh files, and the code of program*.cpp that makes it from a node.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/float_map.h"
#include "core/numerics.h"

namespace pqk::engine::device {

// The memory of the images that go through a step together, as engine::Frame.
struct Frame {
  uint8_t* arena;
  const float* input;
  float* output;
  const uint8_t* constants;
  // By image: kNoNaN, or ~index of the first NaN in the input that is reported so far.
  uint32_t* nan;
  int64_t arena_step;               // bytes
  int64_t input_step, output_step;  // floats
  int images;
};
inline constexpr uint32_t kNoNaN = 0;

// The threads that share a step: all of them come to `run`, and whole warps. The last ones may find no work.
struct Team {
  int thread, threads;
  // Registers suffice for convolutions of that many pairs of channel tiles a warp.
  static constexpr int kMostPairs = 4;
};
// Of a block large enough that its threads have fewer registers.
struct ResidentTeam : Team {
  static constexpr int kMostPairs = 2;
};

// Constants of a step, at a multiple of 256 bytes.
template <class T>
struct Constant {
  int64_t offset;
  PQK_HOST_DEVICE const T* at(const Frame& frame) const {
    return reinterpret_cast<const T*>(frame.constants + offset);
  }
};

// n / divisor for n < 2^31, without a division (Granlund and Montgomery 1994).
struct Divisor {
  uint32_t divisor, multiplier, shift;

  static Divisor of(int64_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(divisor)) ++shift;
    const uint64_t rest = (uint64_t{1} << shift) - static_cast<uint64_t>(divisor);
    return {static_cast<uint32_t>(divisor),
            static_cast<uint32_t>((rest << 32) / static_cast<uint64_t>(divisor) + 1), shift};
  }
  PQK_HOST_DEVICE int divide(int n) const {
    const auto high = static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
    return static_cast<int>((high + static_cast<uint32_t>(n)) >> shift);
  }
  // n = quotient * divisor + rest; returns the rest.
  PQK_HOST_DEVICE int split(int n, int& quotient) const {
    quotient = divide(n);
    return n - quotient * static_cast<int>(divisor);
  }
};

// An NHWC image of codes in the arena: ImageSlot. Strides in bytes.
struct Codes {
  int64_t offset;  // of pixel (0, 0)
  int row_stride, pixel_stride;
};

// float32 values of any layout: FloatSlot. Strides in floats.
struct Floats {
  enum class Memory : int { kArena, kInput, kOutput };
  Memory memory;
  int64_t offset;  // in the arena, in bytes
  int channel_stride, row_stride, pixel_stride;
};

// What a step computes: `images` times (channels, height, width), in quads of channels or single ones.
struct Extent {
  int channels, height, width;
  Divisor by_channels;  // or by quads
  Divisor by_width, by_pixels;
};

struct Quantize {
  Floats input;
  Codes output;
  Extent extent;  // quads
  float inv_scale, zero_point, quant_min, quant_max;
  int tells;  // of NaN: the input is the graph's
};

struct Dequantize {
  Codes input;
  Floats output;
  Extent extent;
  float scale, zero_point;
};

struct Add {
  Codes a, b, output;
  Extent extent;  // quads
  int zero_point_a, zero_point_b;
  float multiplier_a, multiplier_b, bias, quant_min, quant_max;
};

struct Affine {
  Codes input, output;
  Extent extent;
  Constant<uint8_t> zero_point;
  Constant<float> multiplier, bias;
  float quant_min, quant_max;
};

struct Lookup {
  Codes input, output;
  Extent extent;  // quads
  Constant<uint8_t> table;
};

// The positions of the image under a pool's window along one axis: `count` from `begin` to before `end`.
struct alignas(16) Span {
  int begin, end, step, count;
};

struct MaxPool {
  Codes input, output;
  Extent extent;                 // quads
  Constant<Span> rows, columns;  // by row and column of the output
};

struct AvgPool {
  Codes input, output;
  Extent extent;  // quads
  Constant<Span> rows, columns;
  int divisor;  // 0: the positions of the window
  int zero_point;
  float multiplier, bias, quant_min, quant_max;
};

// out[c, y, x] = in at (index * step + start) / divisor along each axis, or `fill` where that is no position.
struct Axis {
  int start, step, divisor, size;
};
struct MoveCodes {
  Codes input, output;
  int output_channel_stride;
  Extent extent;
  Axis axes[3];  // C, H, W
  int fill;
};
struct MoveFloats {
  Floats input, output;
  Extent extent;
  Axis axes[3];
  int tells;
};

struct Softmax {
  Floats input, output;
  int channels;
};

// From the int32 sums of a layer to its values; constants by channel, with room for 16 more.
struct Epilogue {
  Constant<int32_t> start;  // what the zero point of the input adds
  Constant<float> multiplier, bias;
  Codes output, residual;
  Floats floats;  // of a float32 layer
  int float_output, has_residual;
  int words;  // four channels can be stored at once
  int residual_zero_point;
  float residual_multiplier, quant_min, quant_max;
};

// A convolution or linear layer by tensor cores: rows are output pixels of all images, columns channels of a
// group, and the sum goes over taps and input channels in blocks of 64 bytes. Of each block a lane of a quad
// takes 16 bytes, in one, four or sixteen loads, as the layout of the input allows.
struct Conv {
  enum class Load : int { kBytes, kWords, kVectors };
  Codes input;
  Epilogue epilogue;
  Constant<int8_t> weight;    // [groups][channel tiles][blocks][2][32 lanes][16]: see pack_weight
  Constant<int32_t> offsets;  // bytes from a window's first, by load
  Load load;
  int row_tiles, pair_tiles;        // a warp's tile: this many times 16 rows, 16 channels
  int row_step, column_step;        // bytes from a window to the next
  int origin;                       // bytes from pixel (0, 0) to the first window
  int groups, group_in, group_out;  // input bytes and output channels of a group
  int channel_tiles;                // of 16, of a group
  int blocks;
  Divisor by_pixels, by_width;
  Divisor by_channels, by_groups;  // of tiles
};

// One input and one output channel a group.
struct Depthwise {
  Codes input;
  Epilogue epilogue;
  Constant<int8_t> weight;  // [taps][quads][4]
  Extent extent;            // quads
  int kernel_height, kernel_width;
  int tap_row, tap_column;  // bytes from a tap to the next
  int row_step, column_step, origin;
};

struct FloatConv {
  Floats input, residual, output;
  Constant<float> weight;  // [taps][input channels of a group][output channels]
  Constant<float> multiplier, bias;
  Extent extent;
  int kernel_height, kernel_width;
  int tap_row, tap_column, row_step, column_step, origin;  // floats
  int group_in;
  Divisor by_group_out;
  int has_residual;
  float clamp_min, clamp_max;
};

struct FloatAdd {
  Floats a, b, output;
  Extent extent;
  float clamp_min, clamp_max;
};

struct FloatAffine {
  Floats input, output;
  Extent extent;
  Constant<float> multiplier, bias;
  float clamp_min, clamp_max;
};

struct FloatMapStep {
  Floats input, output;
  Extent extent;
  FloatMap function;
};

struct FloatPool {
  Floats input, output;
  Extent extent;
  Constant<Span> rows, columns;
  int largest;    // else the mean
  float divisor;  // 0: the positions of the window
};

// All of them.
#define PQK_DEVICE_STEPS(X) \
  X(Quantize)               \
  X(Dequantize)             \
  X(Add)                    \
  X(Affine)                 \
  X(Lookup)                 \
  X(MaxPool)                \
  X(AvgPool)                \
  X(MoveCodes)              \
  X(MoveFloats)             \
  X(Softmax)                \
  X(Conv)                   \
  X(Depthwise)              \
  X(FloatConv)              \
  X(FloatAdd)               \
  X(FloatAffine)            \
  X(FloatMapStep)           \
  X(FloatPool)

enum class StepKind : int {
#define PQK_KIND(Name) k##Name,
  PQK_DEVICE_STEPS(PQK_KIND)
#undef PQK_KIND
};

struct Step {
  StepKind kind;
  union {
#define PQK_MEMBER(Name) Name as_##Name;
    PQK_DEVICE_STEPS(PQK_MEMBER)
#undef PQK_MEMBER
  };
#define PQK_CONSTRUCTOR(Name) \
  Step(const Name& step) : kind(StepKind::k##Name), as_##Name(step) {}
  PQK_DEVICE_STEPS(PQK_CONSTRUCTOR)
#undef PQK_CONSTRUCTOR
};

// Bytes of an arena that hold `value` before the first image.
struct Border {
  int64_t offset, bytes;
  uint8_t value;
};

}  // namespace pqk::engine::device
