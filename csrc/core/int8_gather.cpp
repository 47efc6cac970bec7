#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <vector>

#include "core/int8_gather_balance.h"
#include "core/int8_gather_plan.h"
#include "core/int8_packing.h"

namespace pqk {
namespace {

constexpr int64_t kMostLanes = 16;

struct NonZero {
  int32_t place;  // byte of the kernel row's input
  int8_t weight;
};

// The non-zeros of one output channel under one kernel row, by place.
struct NonZeros {
  const NonZero* begin;
  const NonZero* end;
};
using LaneNonZeros = std::array<NonZeros, kMostLanes>;

// A window and what its steps take from every lane.
struct Window {
  GatherWindow place;
  int64_t steps;
  LaneNonZeros taken;
};

// Sorts the non-zeros of up to kMostLanes channels.
class NonZeroTable {
 public:
  NonZeroTable(const Conv2dShape& shape, const Conv2dConstants& constants)
      : shape_(shape), weight_(constants.weight) {
    const int64_t stride = constants.input_pixel_stride;
    pixel_stride_ = stride > 0 ? stride : int8_pixel_stride(shape.in_channels);
  }

  // Channels of -1 have none.
  void load(const int64_t* channels, int64_t count) {
    const Conv2dShape& s = shape_;
    const int64_t taps = s.kernel_height * s.kernel_width;
    values_.clear();
    ends_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t channel = channels[i];
      if (channel < 0) {
        ends_.resize(ends_.size() + static_cast<size_t>(s.kernel_height), values_.size());
        continue;
      }
      const int8_t* const weight = weight_ + channel * s.in_channels * taps;
      for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
        for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
          const int8_t* const tap = weight + ky * s.kernel_width + kx;
          const int64_t place = kx * s.dilation_width * pixel_stride_;
          for (int64_t c = 0; c < s.in_channels; ++c) {
            if (tap[c * taps] != 0) values_.push_back({static_cast<int32_t>(place + c), tap[c * taps]});
          }
        }
        ends_.push_back(values_.size());
      }
    }
  }

  NonZeros lane(int64_t lane, int64_t ky) const {
    const size_t index = static_cast<size_t>(lane * shape_.kernel_height + ky);
    return {values_.data() + (index == 0 ? 0 : ends_[index - 1]), values_.data() + ends_[index]};
  }

 private:
  const Conv2dShape& shape_;
  const int8_t* weight_;
  int64_t pixel_stride_;
  std::vector<NonZero> values_;
  std::vector<size_t> ends_;  // [lane][ky]
};

// Covers the non-zeros of a kernel row with windows of at most `steps` steps. Every window begins at the first
// byte that a lane still waits for: with one step no cover has fewer.
void cover_row(const Int8GatherFormat& format, LaneNonZeros left, int64_t ky, int64_t steps,
               std::vector<Window>& windows) {
  for (;;) {
    int32_t first = std::numeric_limits<int32_t>::max();
    for (const NonZeros& lane : left) {
      if (lane.begin != lane.end) first = std::min(first, lane.begin->place);
    }
    if (first == std::numeric_limits<int32_t>::max()) return;
    Window window{{static_cast<int32_t>(ky), first}, 0, {}};
    int64_t most = 0;
    for (size_t i = 0; i < left.size(); ++i) {
      const NonZero* const limit = left[i].end - left[i].begin > steps * format.slots
                                       ? left[i].begin + steps * format.slots
                                       : left[i].end;
      const NonZero* end = left[i].begin;
      while (end != limit && end->place < first + format.window) ++end;
      window.taken[i] = {left[i].begin, end};
      most = std::max<int64_t>(most, end - left[i].begin);
      left[i].begin = end;
    }
    window.steps = (most + format.slots - 1) / format.slots;
    windows.push_back(window);
  }
}

double cost(const Int8GatherFormat& format, const std::vector<Window>& windows) {
  double sum = 0;
  for (const Window& window : windows) {
    sum += std::max(format.load_cost, format.step_cost * static_cast<double>(window.steps));
  }
  return sum;
}

// Of lanes [first_lane, first_lane + format.lanes): windows with many steps first.
std::vector<Window> cheapest_cover(const Int8GatherFormat& format, const Conv2dShape& shape,
                                   const NonZeroTable& table, int64_t first_lane) {
  std::vector<Window> all, best, windows;
  for (int64_t ky = 0; ky < shape.kernel_height; ++ky) {
    LaneNonZeros lanes{};
    for (int64_t i = 0; i < format.lanes; ++i) lanes[static_cast<size_t>(i)] = table.lane(first_lane + i, ky);
    for (int64_t steps = 1; steps <= format.max_steps; ++steps) {
      windows.clear();
      cover_row(format, lanes, ky, steps, windows);
      if (steps == 1 || cost(format, windows) < cost(format, best)) best.swap(windows);
    }
    all.insert(all.end(), best.begin(), best.end());
  }
  std::stable_sort(all.begin(), all.end(), [](const Window& a, const Window& b) { return a.steps > b.steps; });
  return all;
}

int64_t step_bytes(const Int8GatherFormat& format) { return format.lanes * 8; }

// Indices and weights of a window's steps. What no non-zero fills has weight 0.
void store_steps(const Int8GatherFormat& format, const Window& window, uint8_t* to) {
  for (int64_t lane = 0; lane < format.lanes; ++lane) {
    const NonZeros taken = window.taken[static_cast<size_t>(lane)];
    for (int64_t i = 0; i < window.steps * format.slots; ++i) {
      uint8_t* const step = to + i / format.slots * step_bytes(format);
      const int64_t slot = lane * format.slots + i % format.slots;
      const bool filled = i < taken.end - taken.begin;
      const uint8_t index = filled ? static_cast<uint8_t>(taken.begin[i].place - window.place.column) : 0;
      const int8_t weight = filled ? taken.begin[i].weight : 0;
      if (format.slots == 4) {
        step[slot] = index;
        reinterpret_cast<int8_t*>(step + format.lanes * 4)[slot] = weight;
      } else {
        reinterpret_cast<uint16_t*>(step)[slot] = static_cast<uint16_t>(0x8000 | index);
        reinterpret_cast<int16_t*>(step + format.lanes * 4)[slot] = weight;
      }
    }
  }
}

int64_t fan_in_of(const Conv2dShape& shape) {
  return shape.in_channels * shape.kernel_height * shape.kernel_width;
}

// Whether all outputs are codes that stay below 2^30 before they are clamped.
bool codes_are_bounded(const Conv2dShape& shape, const Conv2dConstants& constants) {
  if (constants.float_output) return false;
  const double residual = constants.has_residual ? 255.0 * std::fabs(constants.residual_multiplier) : 0.0;
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    const int8_t* const weight = constants.weight + o * fan_in_of(shape);
    int64_t sum = 0;
    for (int64_t i = 0; i < fan_in_of(shape); ++i) sum += std::abs(weight[i]);
    const double largest = 255.0 * static_cast<double>(sum) * std::fabs(constants.multiplier[o]) + residual +
                           std::fabs(constants.bias[o]);
    if (!(largest < (1 << 30))) return false;
  }
  return true;
}

// For a panel whose lanes hold the channels `lanes`, the first of which is `first`.
PanelOrder panel_order(const int64_t* lanes, int64_t first, int64_t channels) {
  const int64_t tiles = (channels + kOutTile - 1) / kOutTile, vectors = tiles == 3 ? 4 : tiles;
  PanelOrder order{};
  for (int64_t lane = 0; lane < channels; ++lane) {
    const int64_t channel = lanes[lane] - first;
    order.residual[lane] = static_cast<uint8_t>(channel);
    for (int64_t pixel = 0; pixel < kPanelTiles / vectors; ++pixel) {
      const int64_t vector = pixel * vectors + lane / kOutTile, i = lane % kOutTile;
      order.output[pixel * vectors * kOutTile + channel] =
          static_cast<uint8_t>(i / 4 * 16 + vector * 4 + i % 4);
    }
  }
  return order;
}

class GatherConv2d final : public PackedConv2d {
 public:
  GatherConv2d(const Conv2dShape& shape, const Conv2dConstants& constants);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "gather"; }

 private:
  void order_channels(const Conv2dConstants& constants);
  struct Packed {
    std::vector<GatherWindow> windows;
    AlignedArray<uint8_t> steps;
  };
  void add_program(const Int8GatherFormat& format, const std::vector<Window>& cover);

  Int8GatherPlan plan_{};
  Int8GatherKernel* kernel_;
  PackedEpilogue epilogue_;
  std::vector<Packed> packed_;
  std::vector<GatherProgram> programs_;
  std::vector<int64_t> channels_;  // of the lanes of all tiles; -1 for none
  std::vector<PanelOrder> orders_;
};

int64_t tiles_of(const Conv2dShape& shape) { return (shape.out_channels + kOutTile - 1) / kOutTile; }

GatherConv2d::GatherConv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : kernel_(active_int8_gather_kernel()), epilogue_(constants, tiles_of(shape) * kOutTile) {
  const Int8GatherFormat format = active_int8_gather_format()();
  plan_.shape = shape;
  plan_.tiles = tiles_of(shape);
  channels_.assign(static_cast<size_t>(plan_.tiles * kOutTile), -1);
  std::iota(channels_.begin(), channels_.begin() + shape.out_channels, int64_t{0});
  if (format.orders_channels && codes_are_bounded(shape, constants)) order_channels(constants);
  NonZeroTable table(shape, constants);
  for (int64_t tile = 0; tile < plan_.tiles; ++tile) {
    table.load(channels_.data() + tile * kOutTile, kOutTile);
    for (int64_t lane = 0; lane < kOutTile; lane += format.lanes) {
      add_program(format, cheapest_cover(format, shape, table, lane));
    }
  }
  for (size_t slot = 0; slot < channels_.size(); ++slot) {
    if (channels_[slot] < 0) continue;
    epilogue_.set(constants, channels_[slot], fan_in_of(shape), static_cast<int64_t>(slot));
  }
  plan_.epilogue = epilogue_.get();
  plan_.programs = programs_.data();
  plan_.orders = orders_.empty() ? nullptr : orders_.data();
}

void GatherConv2d::order_channels(const Conv2dConstants& constants) {
  const Conv2dShape& s = plan_.shape;
  const int64_t taps = s.kernel_height * s.kernel_width;
  std::vector<int32_t> counts(static_cast<size_t>(s.out_channels * s.kernel_height));
  const int8_t* weight = constants.weight;
  for (int64_t o = 0; o < s.out_channels; ++o) {
    for (int64_t i = 0; i < s.in_channels * taps; ++i) {
      counts[static_cast<size_t>(o * s.kernel_height + i % taps / s.kernel_width)] += *weight++ != 0;
    }
  }
  for (int64_t first = 0; first < s.out_channels; first += kPanelChannels) {
    const int64_t channels = std::min(kPanelChannels, s.out_channels - first);
    balance_panel(channels_.data() + first, channels, counts.data(), s.kernel_height);
    orders_.push_back(panel_order(channels_.data() + first, first, channels));
  }
}

void GatherConv2d::add_program(const Int8GatherFormat& format, const std::vector<Window>& cover) {
  GatherProgram program{};
  Packed packed;
  int64_t steps = 0;
  for (const Window& window : cover) steps += window.steps;
  packed.steps = AlignedArray<uint8_t>(steps * step_bytes(format));
  uint8_t* to = packed.steps.data();
  for (const Window& window : cover) {
    packed.windows.push_back(window.place);
    ++program.count[window.steps - 1];
    store_steps(format, window, to);
    to += window.steps * step_bytes(format);
  }
  program.steps = packed.steps.data();
  program.windows = packed.windows.data();
  packed_.push_back(std::move(packed));
  programs_.push_back(program);
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_gather(const Conv2dShape& shape, const Conv2dConstants& constants) {
  if (shape.groups != 1 || active_int8_gather_format()().lanes == 0) return nullptr;
  return std::make_unique<GatherConv2d>(shape, constants);
}

}  // namespace pqk
