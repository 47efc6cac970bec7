#include "core/cuda/int8_conv2d_task.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 4;
// Output pixels of a thread, neighbours in a row: they share the weights, and most of their input.
constexpr int kPixels = 4;
// Turns codes into signed bytes, which is what the weights are.
constexpr uint32_t kSigned = 0x80808080u;

// Of four taps of four channels each, the four taps of each channel.
__device__ __forceinline__ void transpose(uint32_t (&taps)[4]) {
  const uint32_t low01 = __byte_perm(taps[0], taps[1], 0x5140), high01 = __byte_perm(taps[0], taps[1], 0x7362);
  const uint32_t low23 = __byte_perm(taps[2], taps[3], 0x5140), high23 = __byte_perm(taps[2], taps[3], 0x7362);
  taps[0] = __byte_perm(low01, low23, 0x5410);
  taps[1] = __byte_perm(low01, low23, 0x7632);
  taps[2] = __byte_perm(high01, high23, 0x5410);
  taps[3] = __byte_perm(high01, high23, 0x7632);
}

// 4 channels of kPixels outputs of one row.
struct Strip {
  __device__ Strip(const Int8DepthwiseTask& task, int64_t index) {
    const int64_t quads = ceil_div(task.channels, int64_t{kChannels});
    const int32_t strips = ceil_div(task.out_width, kPixels);
    const int64_t rest = index / quads, row = rest / strips;
    quad = index - rest * quads;
    ox = static_cast<int32_t>(rest - row * strips) * kPixels;
    image = row / task.out_height;
    oy = static_cast<int32_t>(row - image * task.out_height);
  }
  int64_t image, quad;
  int32_t oy, ox;
};

__device__ void finish(const Int8DepthwiseTask& task, const Strip& strip, int pixel,
                       const int (&sums)[kChannels]) {
  if (strip.ox + pixel >= task.out_width) return;
  const Int8Epilogue& epilogue = task.epilogue;
  const int64_t first = strip.quad * kChannels;
  const int64_t at =
      ((strip.image * task.out_height + strip.oy) * task.out_width + strip.ox + pixel) * task.channels + first;
  const int count = task.channels - first < kChannels ? static_cast<int>(task.channels - first) : kChannels;
  uint32_t others = 0;
  if (epilogue.residual != nullptr) {
    if (task.word_output) {
      others = *reinterpret_cast<const uint32_t*>(epilogue.residual + at);
    } else {
      for (int c = 0; c < count; ++c) others |= static_cast<uint32_t>(epilogue.residual[at + c]) << (8 * c);
    }
  }
  uint32_t codes = 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (c >= count) break;
    const int64_t channel = first + c;
    const float value = epilogue.real(Int8Epilogue::wrapping_add(sums[c], epilogue.offset[channel]),
                                      epilogue.multiplier[channel], epilogue.bias[channel],
                                      static_cast<uint8_t>(others >> (8 * c)));
    if (epilogue.float_output) {
      static_cast<float*>(epilogue.output)[at + c] = value;
    } else if (task.word_output) {
      codes |= static_cast<uint32_t>(epilogue.code(value)) << (8 * c);
    } else {
      static_cast<uint8_t*>(epilogue.output)[at + c] = epilogue.code(value);
    }
  }
  if (task.word_output && !epilogue.float_output) {
    *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(epilogue.output) + at) = codes;
  }
}

__global__ void __launch_bounds__(kThreads) int8_depthwise_kernel(Int8DepthwiseTask task, int64_t strips) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= strips) return;
  const Strip strip(task, index);
  const uint8_t* const image = task.input + strip.image * task.image_stride + strip.quad * kChannels;
  const int32_t tap_quads = ceil_div(task.kernel_height * task.kernel_width, 4);
  const int32_t y0 = strip.oy * task.stride_height - task.pad_top;
  const int32_t x0 = strip.ox * task.stride_width - task.pad_left;
  int sums[kPixels][kChannels] = {};
  int32_t ky = 0, kx = 0;
  for (int32_t q = 0; q < tap_quads; ++q) {
    const uint4 packed = __ldg(task.weight + strip.quad * tap_quads + q);
    const uint32_t weight[4] = {packed.x, packed.y, packed.z, packed.w};
    uint32_t codes[kPixels][4];
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      const int32_t y = y0 + ky * task.dilation_height;
      const bool row = ky < task.kernel_height && y >= 0 && y < task.in_height;
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const int32_t x = x0 + p * task.stride_width + kx * task.dilation_width;
        codes[p][tap] = task.border;
        if (row && x >= 0 && x < task.in_width) {
          codes[p][tap] =
              __ldg(reinterpret_cast<const unsigned*>(image + y * task.row_stride + x * task.pixel_stride));
        }
      }
      if (++kx == task.kernel_width) kx = 0, ++ky;
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      transpose(codes[p]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        sums[p][c] = __dp4a(static_cast<int>(codes[p][c] ^ kSigned), static_cast<int>(weight[c]), sums[p][c]);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPixels; ++p) finish(task, strip, p, sums[p]);
}

}  // namespace

const char* launch_int8_depthwise(const Int8DepthwiseTask& task, void* stream) {
  const int64_t strips = task.images * task.out_height * ceil_div(task.out_width, kPixels) *
                         ceil_div(task.channels, int64_t{kChannels});
  const int64_t blocks = ceil_div(strips, int64_t{kThreads});
  if (blocks > INT32_MAX) return "the layer has more outputs than one launch can compute";
  return launch(int8_depthwise_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, task,
                strips);
}

}  // namespace pqk::cuda
