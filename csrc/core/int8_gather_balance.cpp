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
    for (int64_t tile = 0; tile * kOutTile < channels_; ++tile) costs_.push_back(cost(tile));
    for (int pass = 0; pass < kMostPasses && swap_once(); ++pass) {
    }
  }

 private:
  static constexpr int kMostPasses = 3;

  const int32_t* count(int64_t channel) const { return counts_ + channel * rows_; }

  int64_t cost(int64_t tile) const {
    const int64_t begin = tile * kOutTile, end = std::min(begin + kOutTile, channels_);
    int64_t sum = 0;
    for (int64_t row = 0; row < rows_; ++row) {
      int32_t most = 0;
      for (int64_t lane = begin; lane < end; ++lane) most = std::max(most, count(lanes_[lane])[row]);
      sum += most;
    }
    return sum;
  }

  // Swaps that cost nothing are taken too: they open the way to others.
  bool swap_once() {
    bool better = false;
    for (int64_t a = 0; a < channels_; ++a) {
      for (int64_t b = (a / kOutTile + 1) * kOutTile; b < channels_; ++b) {
        int64_t& cost_a = costs_[static_cast<size_t>(a / kOutTile)];
        int64_t& cost_b = costs_[static_cast<size_t>(b / kOutTile)];
        std::swap(lanes_[a], lanes_[b]);
        const int64_t new_a = cost(a / kOutTile), new_b = cost(b / kOutTile);
        if (new_a + new_b > cost_a + cost_b) {
          std::swap(lanes_[a], lanes_[b]);
          continue;
        }
        better |= new_a + new_b < cost_a + cost_b;
        cost_a = new_a;
        cost_b = new_b;
      }
    }
    return better;
  }

  int64_t* lanes_;
  int64_t channels_;
  const int32_t* counts_;
  int64_t rows_;
  std::vector<int64_t> costs_;  // by tile
};

}  // namespace

void balance_panel(int64_t* lanes, int64_t channels, const int32_t* counts, int64_t rows) {
  PanelBalance(lanes, channels, counts, rows).improve();
}

}  // namespace pqk
