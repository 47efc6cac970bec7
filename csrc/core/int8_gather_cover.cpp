#include "core/int8_gather_cover.h"

#include <algorithm>
#include <limits>

namespace pqk {
namespace {

constexpr int32_t kNoPlace = std::numeric_limits<int32_t>::max();

using Lanes = std::array<int32_t, kMostGatherLanes>;

double cost(const Int8GatherFormat& format, int64_t steps) {
  return std::max(format.load_cost, format.step_cost * static_cast<double>(steps));
}

// Covers a kernel row with windows that take at most kMost non-zeros of a lane, of which `next` is the first.
// Every window begins at the first byte that a lane still waits for: with one step no cover has fewer. Returns
// what the windows cost, or gives up where that is not below `limit`.
template <int kMost>
double cover_row(const Int8GatherFormat& format, const int32_t* places, Lanes next, int32_t ky, double limit,
                 std::vector<GatherCover>& windows) {
  const size_t lanes = static_cast<size_t>(format.lanes);
  double sum = 0;
  while (sum < limit) {
    int32_t first = kNoPlace;
    for (size_t lane = 0; lane < lanes; ++lane) first = std::min(first, places[next[lane]]);
    if (first == kNoPlace) break;
    GatherCover& window = windows.emplace_back();
    window.place = {ky, first};
    const int32_t end = first + static_cast<int32_t>(format.window);
    int32_t most = 0;
    for (size_t lane = 0; lane < lanes; ++lane) {
      const int32_t* const ahead = places + next[lane];
      int32_t taken = 0;
      for (int i = 0; i < kMost; ++i) taken += ahead[i] < end;
      window.begin[lane] = next[lane];
      window.taken[lane] = static_cast<uint8_t>(taken);
      next[lane] += taken;
      most = std::max(most, taken);
    }
    window.steps = static_cast<int32_t>((most + format.slots - 1) / format.slots);
    sum += cost(format, window.steps);
  }
  return sum;
}

using CoverRow = double (*)(const Int8GatherFormat&, const int32_t*, Lanes, int32_t, double,
                            std::vector<GatherCover>&);

// By the non-zeros of a lane that a window may take.
CoverRow cover_row_of(int64_t most) {
  switch (most) {
    case 2:
      return cover_row<2>;
    case 4:
      return cover_row<4>;
    case 8:
      return cover_row<8>;
    case 12:
      return cover_row<12>;
    default:
      return cover_row<16>;
  }
}

}  // namespace

GatherNonZeros::GatherNonZeros(const Conv2dShape& shape, const Conv2dConstants& constants)
    : shape_(shape),
      weight_(constants.weight),
      order_(shape.kernel_height * shape.kernel_width),
      channels_last_(active_channels_last()),
      pitch_((shape.in_channels + kRowUnit - 1) / kRowUnit * kRowUnit),
      rows_(static_cast<size_t>(pitch_ * order_.taps)) {
  const int64_t stride = constants.input_pixel_stride;
  pixel_stride_ = stride > 0 ? stride : int8_pixel_stride(shape.in_channels);
}

void GatherNonZeros::load(int64_t first, int64_t channels, const WeightSums* sums) {
  const Conv2dShape& s = shape_;
  AppendNonZeros* const append = active_append_nonzeros();
  int64_t entries = kEnds * (channels * s.kernel_height + 1) + kRowUnit;
  for (int64_t i = 0; i < channels; ++i) entries += sums[i].nonzero;
  places_.resize(static_cast<size_t>(entries));
  weights_.resize(static_cast<size_t>(entries));
  first_ = first;
  size_ = 0;
  append_ends();
  begins_.assign(1, size_);
  for (int64_t i = 0; i < channels; ++i) {
    channels_last_(order_, weight_ + (first + i) * s.in_channels * order_.taps, s.in_channels, pitch_,
                   rows_.data());
    for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
        size_ += append(rows_.data() + (ky * s.kernel_width + kx) * pitch_, pitch_,
                        static_cast<int32_t>(kx * s.dilation_width * pixel_stride_), places_.data() + size_,
                        weights_.data() + size_);
      }
      append_ends();
      begins_.push_back(size_);
    }
  }
}

void GatherNonZeros::append_ends() {
  std::fill_n(places_.begin() + size_, kEnds, kNoPlace);
  size_ += kEnds;
}

void cover_rows(const Int8GatherFormat& format, const GatherNonZeros& non_zeros, int64_t kernel_height,
                const int64_t* channels, std::vector<GatherCover>& windows) {
  std::vector<GatherCover> best, tried;
  for (int64_t ky = 0; ky < kernel_height; ++ky) {
    Lanes next{};
    for (int64_t i = 0; i < format.lanes; ++i) {
      next[static_cast<size_t>(i)] = static_cast<int32_t>(non_zeros.begin(channels[i], ky));
    }
    double least = std::numeric_limits<double>::infinity();
    for (int64_t steps = 1; steps <= format.max_steps; ++steps) {
      tried.clear();
      const double sum = cover_row_of(steps * format.slots)(format, non_zeros.places(), next,
                                                            static_cast<int32_t>(ky), least, tried);
      if (!(sum < least)) continue;
      least = sum;
      best.swap(tried);
    }
    windows.insert(windows.end(), best.begin(), best.end());
  }
}

}  // namespace pqk
