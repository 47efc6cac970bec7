// float32 convolutions and linear layers whose weights are codes of a codebook.
//
// Sums are float32, in an order of the kernel's own and with fused multiply-adds where the CPU has them:
// results are specified within a bound (FORMAT.md, "Float operators"). They depend neither on threads nor on
// the batch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/float_image.h"
#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

// The layer's constants as the file holds them.
struct FloatConv2dConstants {
  const int8_t* weight;     // codes [out_channels, in_channels / groups, kernel_height, kernel_width]
  const float* codebook;    // the entry of code 0: a weight is codebook[code]
  const float* multiplier;  // [out_channels]
  const float* bias;        // [out_channels]
  float clamp_min, clamp_max;
};

// What one run reads and writes: one image, or several that lie a step (in floats) apart each. Around the input
// lie at least the layer's pad_* rows and pixels of zeros, and 64 readable bytes.
struct FloatConvImages {
  ConstNhwcImage input;
  ConstNhwcImage residual{};  // no data: none
  NhwcImage output;
  int64_t count = 1;
  int64_t input_step = 0, residual_step = 0, output_step = 0;
  uint8_t* scratch = nullptr;  // scratch_bytes() of the layer, 64-byte aligned, this thread's alone
};

// A layer made ready for one instruction set (the active one at packing). Immutable, safe to share by threads.
class PackedFloatConv2d {
 public:
  virtual ~PackedFloatConv2d() = default;
  // Computes output rows [row_begin, row_end) of panels [panel_begin, panel_end) of every image.
  virtual void run(const FloatConvImages& images, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                   int64_t panel_end) const = 0;
  // Of output channels, which can be computed apart.
  virtual int64_t panels() const { return 1; }
  virtual const char* kernel_name() const = 0;
  // Of the layer's products, those that are computed.
  virtual double share() const { return 1.0; }
  virtual int64_t scratch_bytes() const { return 0; }
};

// A way to compute a layer. `pack` returns null for layers that the kernel is not for.
struct FloatConv2dKernel {
  const char* name;
  std::unique_ptr<PackedFloatConv2d> (*pack)(const Conv2dShape& shape, const FloatConv2dConstants& constants);
};
const std::vector<FloatConv2dKernel>& float_conv2d_kernels();
// By the kernel of that name, or an empty name: by the one that suits the layer's shape and its share of zeros.
// Null where the named one is not for the layer.
std::unique_ptr<PackedFloatConv2d> pack_float_conv2d(const Conv2dShape& shape,
                                                     const FloatConv2dConstants& constants,
                                                     const std::string& kernel);

// The weights of output channels [begin, end) of a group as a panel of `width` channels, those past the end 0:
// [kernel row][kernel column][input channel][channel of the panel]. `group_weight` are the group's codes.
void pack_float_panel(const Conv2dShape& shape, const int8_t* group_weight, const float* codebook,
                      int64_t begin, int64_t end, int64_t width, float* panel);

}  // namespace pqk
