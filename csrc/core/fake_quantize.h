// Fake-quantize: y = (clamp(rint(x / scale) + zero_point) - zero_point) * scale, with its straight-through and
// LSQ (learned step size) gradients. Forward and backward each read their tensors once.
//
// Tensors are dense and read in memory order, seen as (outer, channels, inner); the order of dimensions is the
// caller's affair as long as it is one order for all of them.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/quantize.h"

namespace pqk {

// Float32 and bfloat16 elements are computed in float32 and have float32 scales; float64 is computed in
// float64.
enum class FloatType { kFloat32, kFloat64, kBFloat16 };

struct FakeQuantizeParams {
  FloatType type;
  ChannelView view;
  const void* scale;       // [channels], float or double
  const void* zero_point;  // [channels], of scale's type; integers by value
  double quant_min;
  double quant_max;
  const uint8_t* mask;  // [numel] 0 or 1, or nullptr; where 0 the output and all gradients are 0
};

struct FakeQuantizeForward {
  FakeQuantizeParams params;
  const void* input;
  void* output;         // may be `input`
  uint8_t* in_range;    // ceil(numel / 8) bytes or nullptr: bit i % 8 of byte i / 8 says whether element i kept
                        // its gradient
  bool stream = false;  // here and below: set by the functions that take a Parallel
};

struct FakeQuantizeBackward {
  FakeQuantizeParams params;
  const void* input;
  const void* grad_output;
  void* grad_input;
  // Sums over each channel, of scale's type: grad_output * d(output)/d(scale), and -grad_output * scale where
  // the element was clamped; both times `grad_factor`. grad_zero_point may be nullptr.
  void* grad_scale;
  void* grad_zero_point;
  double grad_factor;
  bool stream = false;
};

void fake_quantize(const FakeQuantizeForward& job, const Parallel& parallel);
void fake_quantize_backward(const FakeQuantizeBackward& job, const Parallel& parallel);
// grad_input = in_range bit ? grad_output : 0, for elements of 2, 4 or 8 bytes.
struct StraightThrough {
  const void* grad_output;
  const uint8_t* in_range;
  void* grad_input;
  int64_t numel;
  int64_t element_size;
  bool stream = false;
};
void straight_through(const StraightThrough& job, const Parallel& parallel);

// A call that moves at least so many bytes leaves nothing of its output in the caches that the next reader
// would find, so the output goes past them: no line is read only to be overwritten, and inputs stay.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
// What streamed stores ask of an output's address.
constexpr int64_t kStreamAlignment = 64;

// The plan of a sum must not depend on threads or instruction set: 16 float lanes run over at most kSumChunk
// elements of one row, are added in double, and chunks are added in order. With few elements a channel in a row
// (channels-last, depthwise weights) every position of the row is its own lane, over kSumRows rows.
constexpr int64_t kSumChunk = 4096;
constexpr int64_t kSumRows = kSumChunk / 16;
// Channels with fewer neighbouring elements than this are handled a whole row (channels * inner) at a time.
constexpr int64_t kMinBroadcast = 16;
constexpr int64_t kColumnBlock = 1024;
// Whole channels, so that a block can add up its channels.
inline int64_t columns_per_block(const ChannelView& view) { return kColumnBlock / view.inner * view.inner; }

// Parameters spread to one entry an element of a (channels * inner) row, for short channels; else nullptr.
struct FakeQuantizeTables {
  const void* scale = nullptr;
  const void* inv_scale = nullptr;
  const void* zero_point = nullptr;
  bool used() const { return scale != nullptr; }
};

// Elements [begin, end) in memory order; begin is a multiple of kSumChunk.
using FakeQuantizeForwardKernel = void(const FakeQuantizeForward&, const FakeQuantizeTables&, int64_t begin,
                                       int64_t end);
// Work items [begin, end). Without tables an item is a chunk of a row and writes partial[2 * item] (scale) and
// [2 * item + 1] (zero point). With tables it is kSumRows rows by columns_per_block() columns and writes the
// same pair for each channel at 2 * (group of rows * channels + channel).
using FakeQuantizeBackwardKernel = void(const FakeQuantizeBackward&, const FakeQuantizeTables&, double* partial,
                                        int64_t begin, int64_t end);
using StraightThroughKernel = void(const StraightThrough&, int64_t begin, int64_t end);
PQK_CPU_KERNEL(FakeQuantizeForwardKernel, fake_quantize_forward_kernel)
PQK_CPU_KERNEL(FakeQuantizeBackwardKernel, fake_quantize_backward_kernel)
PQK_CPU_KERNEL(StraightThroughKernel, straight_through_kernel)

}  // namespace pqk
