// What int8_conv2d does to weights and images before its kernels can read them in 16-byte vectors.
#pragma once

#include <algorithm>

#include "core/cuda/device.h"
#include "core/cuda/int8_conv2d.h"

namespace pqk::cuda {

inline int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }

// What a call needs of working memory: parts one behind another, 256-byte aligned.
struct WorkingMemory {
  int64_t bytes = 0;

  // Where a part of `count` bytes begins.
  int64_t take(int64_t count) {
    const int64_t at = bytes;
    bytes += round_up(std::max<int64_t>(count, 1), 256);
    return at;
  }
};

// A CSR matrix to a dense one of `rows` x `columns`.
const char* launch_csr_expand(const CsrWeight& csr, int64_t rows, int64_t columns, int8_t* dense, void* stream);

// Weight rows with input channels innermost: position (ky * KW + kx) * group_in + c, zero elsewhere up to
// `pitch`, a multiple of 4; and each channel's offset of the sum, -zero_point * (sum of its weights).
struct WeightPacking {
  StridedWeight weight;
  int64_t out_channels;
  int32_t channels, kernel_height, kernel_width;  // channels: of a group
  int32_t group_in;                               // the same with those that padding adds
  int64_t pitch;
  int8_t* packed;   // [out_channels][pitch], 16-byte aligned
  int32_t* offset;  // [out_channels]
  int32_t zero_point;
};
const char* launch_pack_weight(const WeightPacking& packing, void* stream);

// The offsets alone, of rows of `depth` weights, a multiple of 16, that lie `pitch` apart.
const char* launch_weight_offset(const int8_t* weight, int64_t out_channels, int64_t depth, int64_t pitch,
                                 int32_t zero_point, int32_t* offset, void* stream);

// The weight of a depthwise layer as Int8DepthwiseTask has it.
const char* launch_pack_depthwise(const StridedWeight& weight, int64_t channels, int32_t kernel_height,
                                  int32_t kernel_width, int32_t zero_point, uint4* packed, int32_t* offset,
                                  void* stream);

// An image batch with any strides to NHWC, the channels of each group zero-padded to a multiple of 16.
struct ImageRearrangement {
  StridedCodes input;
  int64_t images, height, width;
  int64_t groups, channels, padded;  // channels: of a group
  uint8_t* output;                   // [images, height, width, groups * padded]
};
const char* launch_rearrange(const ImageRearrangement& job, void* stream);

}  // namespace pqk::cuda
