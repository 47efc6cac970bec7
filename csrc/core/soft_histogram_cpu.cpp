#include "core/soft_histogram.h"

#include <algorithm>
#include <cstring>

#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

constexpr int64_t kBlock = 512;
constexpr int kCopies = 4;  // of the histogram: the same code in a row must not wait for its own last store
constexpr int kMaxBins = 256;
constexpr float kOneShare = static_cast<float>(1 << kShareBits);

// Where a block's elements lie: the code below, as an index into the bins, and the distance from it.
struct Block {
  float value[kBlock];  // x / scale, clamped
  int32_t below[kBlock];
  float fraction[kBlock];
};

// Returns whether a kept element is NaN; it is seen as 0, as are the elements that are not kept.
template <bool kMask>
bool locate(const SoftHistogramParams& p, int64_t at, int64_t count, float inv_scale, Block& block) {
  const float limit = static_cast<float>(p.quant_max);
  const float* in = p.input + at;
  const uint8_t* mask = p.mask + (kMask ? at : 0);
  int nan_seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    float x = in[i];
    if constexpr (kMask) {
      // By arithmetic on bits: compilers do not vectorize a choice between loads.
      uint32_t bits;
      memcpy(&bits, &x, sizeof bits);
      bits &= uint32_t{0} - static_cast<uint32_t>(mask[i] != 0);
      memcpy(&x, &bits, sizeof x);
    }
    nan_seen |= x != x;
    const float u = x != x ? 0.0f : clamp_float(x * inv_scale, -limit, limit);
    const int32_t toward_zero = static_cast<int32_t>(u);
    const int32_t below = toward_zero - (u < static_cast<float>(toward_zero) ? 1 : 0);
    block.value[i] = u;
    block.below[i] = below + p.quant_max;
    block.fraction[i] = u - static_cast<float>(below);
  }
  return nan_seen != 0;
}

bool locate_any(const SoftHistogramParams& p, int64_t at, int64_t count, float inv_scale, Block& block) {
  return p.mask == nullptr ? locate<false>(p, at, count, inv_scale, block)
                           : locate<true>(p, at, count, inv_scale, block);
}

// Counts elements and adds up their shares in one word each, the number above kNumberShift bits.
class Tally {
 public:
  Tally(int64_t bins, int64_t* counts) : bins_(bins), counts_(counts) {}

  void add(const Block& block, int64_t count) {
    if (pending_ + count > kMostPending) flush();
    pending_ += count;
    uint64_t word[kBlock];
    for (int64_t i = 0; i < count; ++i) {
      const int32_t share = static_cast<int32_t>(block.fraction[i] * kOneShare + 0.5f);
      word[i] = kOne + static_cast<uint64_t>(share);
    }
    int64_t i = 0;
    for (; i + kCopies <= count; i += kCopies) {
      for (int copy = 0; copy < kCopies; ++copy) words_[copy][block.below[i + copy]] += word[i + copy];
    }
    for (; i < count; ++i) words_[0][block.below[i]] += word[i];
  }

  void flush() {
    for (int64_t bin = 0; bin < bins_; ++bin) {
      uint64_t sum = 0;
      for (auto& copy : words_) {
        sum += copy[bin];
        copy[bin] = 0;
      }
      const int64_t number = static_cast<int64_t>(sum >> kNumberShift);
      const int64_t shares = static_cast<int64_t>(sum & (kOne - 1));
      counts_[bin] += (number << kShareBits) - shares;
      counts_[bin + 1] += shares;
    }
    pending_ = 0;
  }

 private:
  static constexpr int kNumberShift = 40;
  static constexpr uint64_t kOne = uint64_t{1} << kNumberShift;
  static constexpr int64_t kMostPending =
      (int64_t{1} << (kNumberShift - kShareBits)) - 1;  // shares are at most 1

  int64_t bins_;
  int64_t* counts_;
  int64_t pending_ = 0;
  uint64_t words_[kCopies][kMaxBins] = {};
};

}  // namespace

bool soft_histogram_kernel(const SoftHistogramParams& p, int64_t* counts, int64_t begin, int64_t end) {
  Block block;
  Tally tally(p.bins(), counts);
  bool nan_seen = false;
  for (int64_t row = begin; row < end; ++row) {
    const float inv_scale = 1.0f / p.scale[row];
    for (int64_t column = 0; column < p.columns; column += kBlock) {
      const int64_t count = std::min(kBlock, p.columns - column);
      nan_seen |= locate_any(p, row * p.columns + column, count, inv_scale, block);
      tally.add(block, count);
    }
  }
  tally.flush();
  return nan_seen;
}

void soft_histogram_backward_kernel(const SoftHistogramBackward& job, int64_t begin, int64_t end) {
  const SoftHistogramParams& p = job.params;
  Block block;
  for (int64_t row = begin; row < end; ++row) {
    const float inv_scale = 1.0f / p.scale[row];
    double sum = 0;
    for (int64_t column = 0; column < p.columns; column += kBlock) {
      const int64_t at = row * p.columns + column, count = std::min(kBlock, p.columns - column);
      locate_any(p, at, count, inv_scale, block);
      for (int64_t i = 0; i < count; ++i) {
        const float slope = block.fraction[i] == 0.0f ? 0.0f : job.step[block.below[i]];
        job.grad_input[at + i] = slope * inv_scale;
        sum += static_cast<double>(slope) * static_cast<double>(block.value[i]);
      }
    }
    job.grad_scale[row] = static_cast<float>(sum * -static_cast<double>(inv_scale) * job.grad_factor);
  }
}

#include "core/isa_end.h"
