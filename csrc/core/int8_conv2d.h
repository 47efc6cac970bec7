// Integer convolution and linear layers: u8 activations x s8 weights -> exact int32 -> requantized u8 or
// float32.
//
// Activations are NHWC images whose border is real memory filled with the zero point, so that kernels need no
// edge cases. A layer is packed once (PackedConv2d) and run many times without allocating.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

struct Conv2dShape {
  int64_t in_channels, in_height, in_width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t dilation_height, dilation_width;
  int64_t groups;
  int64_t pad_top, pad_left, pad_bottom, pad_right;
};

// One NHWC image of u8 codes. `data` is pixel (0, 0), channel 0; around it lie at least the layer's pad_* rows
// and pixels, filled with the zero point. pixel_stride is the channel count rounded up to a multiple of 4,
// or 1 for one channel (int8_pixel_stride); the bytes between may hold anything. At least 64 readable bytes lie
// before and after.
struct Int8Image {
  uint8_t* data;
  int64_t row_stride;    // bytes from a row to the next
  int64_t pixel_stride;  // bytes from a pixel to the next
};

inline int64_t int8_pixel_stride(int64_t channels) { return channels == 1 ? 1 : (channels + 3) / 4 * 4; }

// The layer's constants as the file holds them.
struct Conv2dConstants {
  const int8_t* weight;     // [out_channels, in_channels / groups, kernel_height, kernel_width]
  const float* multiplier;  // [out_channels]
  const float* bias;        // [out_channels]
  int32_t input_zero_point;
  int32_t quant_min, quant_max;  // of the codes; unused for float32 output
  bool float_output;             // out image is float32 NHWC, dense, without border
  bool has_residual;
  float residual_multiplier;
  int32_t residual_zero_point;
  // Of the images that the layer will run on; 0 stands for int8_pixel_stride(in_channels).
  int64_t input_pixel_stride = 0;
};

// What one run reads and writes: one image, or several that lie `step` bytes apart each in all three memories,
// so that a kernel can use a weight for all of them while it is at hand.
struct Int8ConvImages {
  Int8Image input;
  const Int8Image* residual = nullptr;  // null without one
  Int8Image output{};                   // of codes
  float* float_output = nullptr;        // NHWC, dense: of a float32 layer
  int64_t count = 1;
  int64_t step = 0;            // bytes from an image's codes to the next image's: input, residual and output
  int64_t float_step = 0;      // floats from an image's float32 outputs to the next image's
  uint8_t* scratch = nullptr;  // scratch_bytes() of the layer, 64-byte aligned, this thread's alone
};

// A layer made ready for one instruction set (the active one at packing). Immutable, safe to share by threads.
class PackedConv2d {
 public:
  virtual ~PackedConv2d() = default;
  // Computes output rows [row_begin, row_end) of every image.
  virtual void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const = 0;
  // The output channels come in panels that can be computed apart, for threads that share an image of few rows.
  virtual int64_t panels() const { return 1; }
  // Rows [row_begin, row_end) of panels [panel_begin, panel_end) only.
  virtual void run_panels(const Int8ConvImages& images, int64_t row_begin, int64_t row_end,
                          [[maybe_unused]] int64_t panel_begin, [[maybe_unused]] int64_t panel_end) const {
    run(images, row_begin, row_end);
  }
  virtual const char* kernel_name() const = 0;
  // Memory that a run needs to work in; its content before and after is of no meaning.
  virtual int64_t scratch_bytes() const { return 0; }
};

// With one input channel a kernel row is a run of bytes: its taps become the channels of a kernel one pixel
// wide, which fill the quads that kernels multiply. Rewrites `shape` and returns the weight in the order it
// then asks for; an empty one where that cannot be.
std::vector<int8_t> taps_to_channels(const int8_t* weight, Conv2dShape& shape);

// A way to compute a layer. `pack` returns null for layers, or instruction sets, that the kernel is not for.
struct Conv2dKernel {
  const char* name;
  std::unique_ptr<PackedConv2d> (*pack)(const Conv2dShape& shape, const Conv2dConstants& constants);
};
// All of them, with the same results to the bit; the first that packs a layer is the one for dense weights. A
// linear layer is a 1x1 convolution of a 1x1 image.
const std::vector<Conv2dKernel>& conv2d_kernels();
// By the first kernel that can. Which is the fastest for weights with zeros must be measured.
std::unique_ptr<PackedConv2d> pack_conv2d(const Conv2dShape& shape, const Conv2dConstants& constants);

}  // namespace pqk
