#include "core/int8_blocks_plan.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "core/int8_packing.h"

namespace pqk {
namespace {

// The scratch memory of a panel should leave the weights room in the first-level cache.
constexpr int64_t kPanelBytes = 40 << 10;
// Layers that need more are not worth it: their codes would come from memory.
constexpr int64_t kMostScratchBytes = 4 << 20;

// How a panel's codes are laid out as lines.
struct Lines {
  int64_t vectors = 0, panel_rows = 0, lines = 0;
  std::vector<Int8BlocksStream> streams;
  std::vector<int64_t> tap_line;  // [ky * kernel_width + kx]: the line of a panel's first vector

  int64_t bytes(int64_t quads, int64_t lanes) const {
    return (quads + kQuadsAtOnce - 1) / kQuadsAtOnce * kQuadsAtOnce * lines * lanes * 4;
  }
};

// A stream for every tap.
Lines lines_of_taps(const Conv2dShape& s, int64_t vectors) {
  Lines result;
  result.vectors = vectors;
  for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
      result.streams.push_back({ky * s.dilation_height, kx * s.dilation_width, result.lines, 0});
      result.tap_line.push_back(result.lines);
      result.lines += vectors;
    }
  }
  return result;
}

// A stream for all taps of a column whose distance is whole strides and whole lines. Returns one without
// streams where positions of at most `vectors` lines are not whole rows.
Lines lines_of_rows(const Conv2dShape& s, int64_t vectors, int64_t lanes) {
  const int64_t unit = lanes / std::gcd(lanes, s.out_width);  // rows that fill whole lines
  const int64_t rows = std::min(s.out_height, vectors * lanes / s.out_width) / unit * unit;
  Lines result;
  if (rows == 0) return result;
  result.panel_rows = rows;
  result.vectors = rows * s.out_width / lanes;
  for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
    std::vector<int64_t> line_of_ky(s.kernel_height, -1);
    for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
      if (line_of_ky[ky] >= 0) continue;
      int64_t more = 0;
      for (int64_t other = ky; other < s.kernel_height; ++other) {
        const int64_t distance = (other - ky) * s.dilation_height;
        if (distance % s.stride_height != 0 || distance / s.stride_height % unit != 0) continue;
        more = distance / s.stride_height;
        line_of_ky[other] = result.lines + more * s.out_width / lanes;
      }
      result.streams.push_back({ky * s.dilation_height, kx * s.dilation_width, result.lines, more});
      if ((rows + more) * s.out_width > kMaxStreamPositions) return Lines{};
      result.lines += result.vectors + more * s.out_width / lanes;
    }
    result.tap_line.insert(result.tap_line.end(), line_of_ky.begin(), line_of_ky.end());
  }
  // From [kx][ky] to [ky][kx].
  std::vector<int64_t> by_row;
  for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_width; ++kx)
      by_row.push_back(result.tap_line[kx * s.kernel_height + ky]);
  }
  result.tap_line = by_row;
  return result;
}

Lines choose_lines(const Conv2dShape& s, Int8BlocksFormat format) {
  const int64_t quads = (s.in_channels + 3) / 4;
  int64_t vectors = format.max_vectors;
  for (;; vectors /= 2) {
    Lines rows = lines_of_rows(s, vectors, format.lanes);
    const Lines taps = lines_of_taps(s, vectors);
    const bool shares = !rows.streams.empty() && 2 * rows.vectors >= vectors &&
                        rows.lines * vectors < taps.lines * rows.vectors;
    Lines chosen = shares ? std::move(rows) : taps;
    if (vectors == 1 || chosen.bytes(quads, format.lanes) <= kPanelBytes) return chosen;
  }
}

class BlocksConv2d final : public PackedConv2d {
 public:
  BlocksConv2d(const Conv2dShape& shape, const Conv2dConstants& constants);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    kernel_(plan_, images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "blocks"; }
  int64_t scratch_bytes() const override { return scratch_bytes_; }

 private:
  std::vector<Int8Block> blocks_of(const int8_t* weight, int64_t channel, int64_t line_bytes) const;
  void pack_tile(const int8_t* weight, int64_t tile, int64_t line_bytes);

  Int8BlocksPlan plan_;
  Int8BlocksKernel* kernel_;
  int64_t scratch_bytes_;
  Lines lines_;
  std::vector<Int8Block> blocks_;
  std::vector<uint32_t> begin_;
  std::vector<uint8_t> channel_;
  PackedEpilogue epilogue_;
};

int64_t tiles_of(const Conv2dShape& shape) { return (shape.out_channels + kOutTile - 1) / kOutTile; }

BlocksConv2d::BlocksConv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : plan_{}, kernel_(active_int8_blocks_kernel()), epilogue_(constants, tiles_of(shape) * kOutTile) {
  const Int8BlocksFormat format = active_int8_blocks_format()();
  lines_ = choose_lines(shape, format);
  plan_.shape = shape;
  plan_.quads = (shape.in_channels + 3) / 4;
  plan_.vectors = lines_.vectors;
  plan_.panel_rows = lines_.panel_rows;
  plan_.lines = lines_.lines;
  plan_.streams = lines_.streams.data();
  plan_.stream_count = static_cast<int64_t>(lines_.streams.size());
  scratch_bytes_ = lines_.bytes(plan_.quads, format.lanes);
  for (int64_t tile = 0; tile < tiles_of(shape); ++tile) pack_tile(constants.weight, tile, format.lanes * 4);
  begin_.push_back(static_cast<uint32_t>(blocks_.size()));
  plan_.blocks = blocks_.data();
  plan_.begin = begin_.data();
  plan_.channel = channel_.data();
  const int64_t fan_in = shape.in_channels * shape.kernel_height * shape.kernel_width;
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    epilogue_.set(constants, channel, fan_in, channel);
  }
  plan_.epilogue = epilogue_.get();
}

std::vector<Int8Block> BlocksConv2d::blocks_of(const int8_t* weight, int64_t channel,
                                               int64_t line_bytes) const {
  const Conv2dShape& s = plan_.shape;
  const int64_t taps = s.kernel_height * s.kernel_width;
  std::vector<Int8Block> blocks;
  if (channel >= s.out_channels) return blocks;
  for (int64_t quad = 0; quad < plan_.quads; ++quad) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      Int8Block block{static_cast<uint32_t>((quad * lines_.lines + lines_.tap_line[tap]) * line_bytes), {}};
      for (int64_t c = quad * 4; c < std::min(quad * 4 + 4, s.in_channels); ++c) {
        block.weight[c % 4] = weight[(channel * s.in_channels + c) * taps + tap];
      }
      const auto is_zero = [](int8_t w) { return w == 0; };
      if (!std::all_of(block.weight, block.weight + 4, is_zero)) blocks.push_back(block);
    }
  }
  std::sort(blocks.begin(), blocks.end(),
            [](const Int8Block& a, const Int8Block& b) { return a.offset < b.offset; });
  return blocks;
}

void BlocksConv2d::pack_tile(const int8_t* weight, int64_t tile, int64_t line_bytes) {
  std::vector<std::pair<uint8_t, std::vector<Int8Block>>> channels;
  for (int64_t i = 0; i < kOutTile; ++i) {
    channels.emplace_back(static_cast<uint8_t>(i), blocks_of(weight, tile * kOutTile + i, line_bytes));
  }
  const int64_t exist = std::min(kOutTile, plan_.shape.out_channels - tile * kOutTile);
  std::stable_sort(channels.begin(), channels.begin() + exist,
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  for (const auto& [channel, blocks] : channels) {
    channel_.push_back(channel);
    begin_.push_back(static_cast<uint32_t>(blocks_.size()));
    blocks_.insert(blocks_.end(), blocks.begin(), blocks.end());
  }
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_blocks(const Conv2dShape& shape, const Conv2dConstants& constants) {
  if (shape.groups != 1) return nullptr;
  auto packed = std::make_unique<BlocksConv2d>(shape, constants);
  if (packed->scratch_bytes() > kMostScratchBytes) return nullptr;
  return packed;
}

}  // namespace pqk
