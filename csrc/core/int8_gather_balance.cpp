#include "core/int8_gather_balance.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/int8_conv2d_plan.h"

namespace pqk {
namespace {

class PanelBalance {
 public:
  PanelBalance(int64_t* lanes, int64_t channels, const int32_t* counts, int64_t rows)
      : lanes_(lanes), channels_(channels), counts_(counts), rows_(rows) {}

  // Starts from the order of all non-zeros and swaps lanes as long as that helps.
  void improve() {
    const auto total = [&](int64_t channel) {
      return std::accumulate(count(channel), count(channel) + rows_, int64_t{0});
    };
    std::stable_sort(lanes_, lanes_ + channels_, [&](int64_t a, int64_t b) { return total(a) > total(b); });
    for (int64_t tile = 0; tile * kOutTile < channels_; ++tile) {
      tops_.resize(tops_.size() + static_cast<size_t>(rows_));
      for (int64_t row = 0; row < rows_; ++row) find_tops(tile, row);
    }
    for (int pass = 0; pass < kMostPasses && swap_once(); ++pass) {
    }
  }

 private:
  static constexpr int kMostPasses = 3;

  // The largest count among a tile's lanes under a kernel row, which is the number of its steps, and the
  // largest of the other lanes.
  struct Tops {
    int32_t first, second;
  };

  const int32_t* count(int64_t channel) const { return counts_ + channel * rows_; }
  Tops& tops(int64_t tile, int64_t row) { return tops_[static_cast<size_t>(tile * rows_ + row)]; }

  void find_tops(int64_t tile, int64_t row) {
    Tops found{0, 0};
    for (int64_t lane = tile * kOutTile; lane < std::min((tile + 1) * kOutTile, channels_); ++lane) {
      const int32_t value = count(lanes_[lane])[row];
      found.second = std::max(found.second, std::min(value, found.first));
      found.first = std::max(found.first, value);
    }
    tops(tile, row) = found;
  }

  // By how much a tile's steps grow when one of its channels gives way to another.
  int64_t growth(int64_t tile, int64_t leaving, int64_t entering) {
    int64_t sum = 0;
    for (int64_t row = 0; row < rows_; ++row) {
      const Tops& top = tops(tile, row);
      const int32_t others = count(leaving)[row] == top.first ? top.second : top.first;
      sum += std::max(others, count(entering)[row]) - top.first;
    }
    return sum;
  }

  // After a swap.
  void update(int64_t tile, int64_t left, int64_t entered) {
    for (int64_t row = 0; row < rows_; ++row) {
      const int32_t second = tops(tile, row).second;
      if (count(left)[row] >= second || count(entered)[row] > second) find_tops(tile, row);
    }
  }

  // Swaps that cost nothing are taken too: they open the way to others.
  bool swap_once() {
    bool better = false;
    for (int64_t a = 0; a < channels_; ++a) {
      const int64_t tile_a = a / kOutTile;
      for (int64_t b = (tile_a + 1) * kOutTile; b < channels_; ++b) {
        const int64_t tile_b = b / kOutTile, channel_a = lanes_[a], channel_b = lanes_[b];
        const int64_t more = growth(tile_a, channel_a, channel_b) + growth(tile_b, channel_b, channel_a);
        if (more > 0) continue;
        better |= more < 0;
        std::swap(lanes_[a], lanes_[b]);
        update(tile_a, channel_a, channel_b);
        update(tile_b, channel_b, channel_a);
      }
    }
    return better;
  }

  int64_t* lanes_;
  int64_t channels_;
  const int32_t* counts_;
  int64_t rows_;
  std::vector<Tops> tops_;  // [tile][row]
};

}  // namespace

void balance_panel(int64_t* lanes, int64_t channels, const int32_t* counts, int64_t rows) {
  PanelBalance(lanes, channels, counts, rows).improve();
}

}  // namespace pqk
