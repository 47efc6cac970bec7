// What pack_gather prepares and int8_gather_cpu.cpp reads: unstructured sparse weights as steps over windows.
//
// The input bytes under one kernel row are covered by windows of a vector's size, which may overlap. A step
// takes `slots` non-zeros of every lane (output channel) from one window, wherever they lie in it: a byte
// shuffle with the step's indices brings their codes together, a multiply-add with the step's weights adds
// them up. Non-zeros are dealt to steps in the order of their places, so that a step waits for nothing but the
// lane that is furthest behind.
#pragma once

#include <cstdint>

#include "core/int8_conv2d.h"
#include "core/int8_conv2d_plan.h"

namespace pqk {

constexpr int kMaxWindowSteps = 4;

// Where a window begins, from the first tap of an output pixel.
struct GatherWindow {
  int32_t row;     // of the kernel
  int32_t column;  // in bytes
};

// All windows of one vector of output channels, those of `kMaxWindowSteps` steps first, those of one step last.
struct GatherProgram {
  const GatherWindow* windows;
  const uint8_t* steps;
  int64_t count[kMaxWindowSteps];  // windows of 1, 2, ... steps
};

// Channels that are requantized and stored together: 64 codes, a vector's.
constexpr int64_t kPanelTiles = 4, kPanelChannels = kPanelTiles * kOutTile;

// Where the channels of a panel lie among its lanes, so that channels with like numbers of non-zeros share
// vectors. `tiles` is 4 for a panel of three tiles.
struct alignas(64) PanelOrder {
  uint8_t output[64];    // of byte i of the codes, [pixel][channel]: where packing the vectors leaves it
  uint8_t residual[64];  // of lane i of the panel: its channel
};

struct Int8GatherPlan {
  Conv2dShape shape;
  Int8Epilogue epilogue;
  int64_t tiles;                  // of kOutTile output channels
  const PanelOrder* orders;       // of panels of kPanelTiles tiles; null where channels lie in their own order
  const GatherProgram* programs;  // [tile][vector of the tile]
};

// How an instruction set takes its steps. A step is `lanes` * 4 bytes of indices, then as many of weights; with
// two slots both are pairs of 16 bits, the upper half of an index 0x80, which the shuffle turns into 0.
struct Int8GatherFormat {
  int64_t lanes;      // 0: this instruction set has no such kernel
  int64_t window;     // bytes
  int64_t slots;      // non-zeros of a lane in a step
  int64_t max_steps;  // of a window
  // What a window costs: the longer of its loads and its multiply-adds, in any unit.
  double load_cost, step_cost;
  bool orders_channels;
};
using Int8GatherKernel = void(const Int8GatherPlan&, const Int8ConvImages&, int64_t row_begin, int64_t row_end);
using Int8GatherFormatOf = Int8GatherFormat();
PQK_CPU_KERNEL(Int8GatherKernel, int8_gather_kernel)
PQK_CPU_KERNEL(Int8GatherFormatOf, int8_gather_format)

}  // namespace pqk
