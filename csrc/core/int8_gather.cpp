#include <algorithm>
#include <numeric>
#include <vector>

#include "core/int8_gather_balance.h"
#include "core/int8_gather_cover.h"
#include "core/int8_gather_plan.h"
#include "core/int8_packing.h"

namespace pqk {
namespace {

int64_t step_bytes(const Int8GatherFormat& format) { return format.lanes * 8; }

// Indices and weights of a window's steps. What no non-zero fills has weight 0.
template <class Index, class Weight, int32_t kSlots>
void store_steps(const Int8GatherFormat& format, const GatherNonZeros& non_zeros, const GatherCover& window,
                 uint8_t* to) {
  constexpr int32_t kNoByte = sizeof(Index) == 2 ? 0x8000 : 0;  // the upper half of an index of 16 bits
  for (int64_t lane = 0; lane < format.lanes; ++lane) {
    const int32_t* const places = non_zeros.places() + window.begin[static_cast<size_t>(lane)];
    const int8_t* const weights = non_zeros.weights() + window.begin[static_cast<size_t>(lane)];
    const int32_t taken = window.taken[static_cast<size_t>(lane)];
    for (int32_t i = 0; i < window.steps * kSlots; i += kSlots) {
      uint8_t* const step = to + i / kSlots * step_bytes(format);
      Index* const index = reinterpret_cast<Index*>(step) + lane * kSlots;
      Weight* const weight = reinterpret_cast<Weight*>(step + format.lanes * 4) + lane * kSlots;
      for (int32_t slot = 0; slot < kSlots; ++slot) {
        const bool filled = i + slot < taken;
        index[slot] = static_cast<Index>(kNoByte | (filled ? places[i + slot] - window.place.column : 0));
        weight[slot] = filled ? weights[i + slot] : Weight{0};
      }
    }
  }
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
  void order_channels(const GatherNonZeros& non_zeros, int64_t first, int64_t channels);
  void add_tile(const Int8GatherFormat& format, const GatherNonZeros& non_zeros, int64_t first_lane);
  struct Packed {
    std::vector<GatherWindow> windows;
    AlignedArray<uint8_t> steps;
  };
  void add_program(const Int8GatherFormat& format, const GatherNonZeros& non_zeros);

  Int8GatherPlan plan_{};
  Int8GatherKernel* kernel_;
  PackedEpilogue epilogue_;
  std::vector<Packed> packed_;
  std::vector<GatherProgram> programs_;
  std::vector<int64_t> channels_;  // of the lanes of all tiles; -1 for none
  // While packing: non-zeros of a channel under a kernel row, and the windows of a vector of channels.
  std::vector<int32_t> counts_;
  std::vector<GatherCover> windows_;
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
  const std::vector<WeightSums> sums = channel_sums(shape, constants.weight);
  // Other values would have to be clamped before they are packed.
  const bool orders = format.orders_channels && !constants.float_output && values_fit_int32(constants, sums);
  if (orders) counts_.resize(static_cast<size_t>(shape.out_channels * shape.kernel_height));
  GatherNonZeros non_zeros(shape, constants);
  for (int64_t first = 0; first < shape.out_channels; first += kPanelChannels) {
    const int64_t channels = std::min(kPanelChannels, shape.out_channels - first);
    non_zeros.load(first, channels, sums.data() + first);
    if (orders) order_channels(non_zeros, first, channels);
    for (int64_t lane = first; lane < first + channels; lane += kOutTile) add_tile(format, non_zeros, lane);
  }
  for (size_t slot = 0; slot < channels_.size(); ++slot) {
    const int64_t channel = channels_[slot];
    if (channel < 0) continue;
    epilogue_.set(constants, channel, sums[static_cast<size_t>(channel)], static_cast<int64_t>(slot));
  }
  counts_ = {};
  windows_ = {};
  plan_.epilogue = epilogue_.get();
  plan_.programs = programs_.data();
  plan_.orders = orders_.empty() ? nullptr : orders_.data();
}

void GatherConv2d::order_channels(const GatherNonZeros& non_zeros, int64_t first, int64_t channels) {
  const int64_t rows = plan_.shape.kernel_height;
  for (int64_t channel = first; channel < first + channels; ++channel) {
    for (int64_t ky = 0; ky < rows; ++ky) {
      counts_[static_cast<size_t>(channel * rows + ky)] = static_cast<int32_t>(non_zeros.count(channel, ky));
    }
  }
  balance_panel(channels_.data() + first, channels, counts_.data(), rows);
  orders_.push_back(panel_order(channels_.data() + first, first, channels));
}

void GatherConv2d::add_tile(const Int8GatherFormat& format, const GatherNonZeros& non_zeros,
                            int64_t first_lane) {
  for (int64_t lane = first_lane; lane < first_lane + kOutTile; lane += format.lanes) {
    windows_.clear();
    cover_rows(format, non_zeros, plan_.shape.kernel_height, channels_.data() + lane, windows_);
    add_program(format, non_zeros);
  }
}

// Of windows_: those with many steps first.
void GatherConv2d::add_program(const Int8GatherFormat& format, const GatherNonZeros& non_zeros) {
  GatherProgram program{};
  Packed packed;
  int64_t all_steps = 0;
  for (const GatherCover& window : windows_) all_steps += window.steps;
  packed.steps = AlignedArray<uint8_t>::uninitialized(all_steps * step_bytes(format));
  packed.windows.reserve(windows_.size());
  uint8_t* to = packed.steps.data();
  for (int64_t steps = format.max_steps; steps > 0; --steps) {
    for (const GatherCover& window : windows_) {
      if (window.steps != steps) continue;
      packed.windows.push_back(window.place);
      ++program.count[steps - 1];
      if (format.slots == 4) {
        store_steps<uint8_t, int8_t, 4>(format, non_zeros, window, to);
      } else {
        store_steps<uint16_t, int16_t, 2>(format, non_zeros, window, to);
      }
      to += steps * step_bytes(format);
    }
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
