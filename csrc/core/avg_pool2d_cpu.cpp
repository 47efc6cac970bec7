#include "core/avg_pool2d.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

constexpr int64_t kBlock = 64;  // channels summed at a time, so that the sums stay in registers

// `Count` is the number of channels where it is known, 0 otherwise.
template <int64_t Count>
void pool_block(const AvgPool2dParams& p, const Int8Image& input, PoolSpan rows, PoolSpan columns,
                int64_t channel, int64_t count, uint8_t* out) {
  const int64_t channels = Count != 0 ? Count : count;
  int32_t sums[kBlock] = {};
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const uint8_t* in = input.data + y * input.row_stride + columns.begin * input.pixel_stride + channel;
    for (int64_t x = columns.begin; x < columns.end; ++x, in += input.pixel_stride) {
      for (int64_t c = 0; c < channels; ++c) sums[c] += in[c];
    }
  }
  const int32_t positions = (rows.end - rows.begin) * (columns.end - columns.begin);
  const float n = static_cast<float>(p.divisor != 0 ? p.divisor : positions);
  const float multiplier = p.multiplier / n;
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = to_code(rescale(sums[c] - positions * p.zero_point, multiplier, p.bias), low, high);
  }
}

}  // namespace

void avg_pool2d_kernel(const AvgPool2dParams& p, const Int8Image& input, const Int8Image& output,
                       int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.out_width; ++x) {
      uint8_t* out = output.data + y * output.row_stride + x * output.pixel_stride;
      int64_t c = 0;
      for (; c + kBlock <= p.channels; c += kBlock) {
        pool_block<kBlock>(p, input, p.rows[y], p.columns[x], c, kBlock, out + c);
      }
      if (c < p.channels) pool_block<0>(p, input, p.rows[y], p.columns[x], c, p.channels - c, out + c);
    }
  }
}

#include "core/isa_end.h"
