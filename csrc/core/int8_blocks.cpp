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
// From the second-level cache, few vectors a block cost more than their lines' way.
constexpr int64_t kMostPanelBytes = 400 << 10;
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

// Appends a stream with its copies.
void add_stream(const Conv2dShape& s, Int8BlocksStream stream, Lines& lines) {
  stream.first_line = lines.lines;
  lines.streams.push_back(stream);
  lines.lines += s.kernel_width * stream.lines;
}

// A stream for every kernel row.
Lines lines_of_positions(const Conv2dShape& s, int64_t vectors) {
  Lines result;
  result.vectors = vectors;
  for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_width; ++kx) result.tap_line.push_back(result.lines + kx * vectors);
    add_stream(s, {ky * s.dilation_height, 0, vectors, 0}, result);
  }
  return result;
}

// A stream for all kernel rows whose distance is whole strides and whole lines. Returns one without streams
// where at most `vectors` lines of positions are not whole rows.
Lines lines_of_rows(const Conv2dShape& s, int64_t vectors, int64_t lanes) {
  const int64_t unit = lanes / std::gcd(lanes, s.out_width);  // rows that fill whole lines
  const int64_t rows = std::min(s.out_height, vectors * lanes / s.out_width) / unit * unit;
  Lines result;
  if (rows == 0) return result;
  result.panel_rows = rows;
  result.vectors = rows * s.out_width / lanes;
  result.tap_line.assign(static_cast<size_t>(s.kernel_height * s.kernel_width), -1);
  for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
    if (result.tap_line[ky * s.kernel_width] >= 0) continue;
    // Output rows from kernel row ky to kernel row `other`; -1 where they cannot share a stream.
    const auto distance = [&](int64_t other) {
      const int64_t input_rows = (other - ky) * s.dilation_height;
      return input_rows % (s.stride_height * unit) == 0 ? input_rows / s.stride_height : -1;
    };
    int64_t more = 0;
    for (int64_t other = ky; other < s.kernel_height; ++other) more = std::max(more, distance(other));
    if ((rows + more) * s.out_width > kMaxStreamPositions) return Lines{};
    const int64_t lines = result.vectors + more * s.out_width / lanes;
    for (int64_t other = ky; other < s.kernel_height; ++other) {
      for (int64_t kx = 0; kx < s.kernel_width && distance(other) >= 0; ++kx) {
        result.tap_line[other * s.kernel_width + kx] =
            result.lines + kx * lines + distance(other) * s.out_width / lanes;
      }
    }
    add_stream(s, {ky * s.dilation_height, 0, lines, more}, result);
  }
  return result;
}

// For panels of at most `most` vectors.
Lines choose_lines(const Conv2dShape& s, int64_t lanes, int64_t most) {
  const int64_t quads = (s.in_channels + 3) / 4;
  for (int64_t vectors = most;; vectors /= 2) {
    const Lines rows = lines_of_rows(s, vectors, lanes);
    const Lines positions = lines_of_positions(s, vectors);
    const bool shares = !rows.streams.empty() && 2 * rows.vectors >= vectors &&
                        rows.lines * vectors < positions.lines * rows.vectors;
    const Lines& chosen = shares ? rows : positions;
    const int64_t bytes = chosen.bytes(quads, lanes);
    if (bytes <= kPanelBytes || (vectors <= 4 && bytes <= kMostPanelBytes) || vectors == 1) return chosen;
  }
}

// The blocks for one way to lay out lines.
class Packing {
 public:
  Packing(const Conv2dShape& shape, const int8_t* weight, const Int8Epilogue& epilogue, int64_t lanes,
          Lines lines);
  Packing(const Packing&) = delete;
  Packing& operator=(const Packing&) = delete;
  const Int8BlocksPlan& plan() const { return plan_; }
  int64_t scratch_bytes() const { return lines_.bytes(plan_.quads, lanes_); }
  int64_t positions() const { return plan_.vectors * lanes_; }  // of a panel

 private:
  std::vector<Int8Block> blocks_of(const int8_t* weight, int64_t channel) const;
  void pack_tile(const int8_t* weight, int64_t first_channel);

  int64_t lanes_;
  Lines lines_;
  Int8BlocksPlan plan_{};
  std::vector<Int8Block> blocks_;
  std::vector<uint32_t> begin_;
  std::vector<uint8_t> channel_;
};

Packing::Packing(const Conv2dShape& shape, const int8_t* weight, const Int8Epilogue& epilogue, int64_t lanes,
                 Lines lines)
    : lanes_(lanes), lines_(std::move(lines)) {
  plan_.shape = shape;
  plan_.epilogue = epilogue;
  plan_.quads = (shape.in_channels + 3) / 4;
  plan_.vectors = lines_.vectors;
  plan_.panel_rows = lines_.panel_rows;
  plan_.lines = lines_.lines;
  plan_.streams = lines_.streams.data();
  plan_.stream_count = static_cast<int64_t>(lines_.streams.size());
  for (int64_t first = 0; first < shape.out_channels; first += kOutTile) pack_tile(weight, first);
  begin_.push_back(static_cast<uint32_t>(blocks_.size()));
  plan_.blocks = blocks_.data();
  plan_.begin = begin_.data();
  plan_.channel = channel_.data();
}

std::vector<Int8Block> Packing::blocks_of(const int8_t* weight, int64_t channel) const {
  const Conv2dShape& s = plan_.shape;
  const int64_t taps = s.kernel_height * s.kernel_width;
  std::vector<Int8Block> blocks;
  if (channel >= s.out_channels) return blocks;
  for (int64_t quad = 0; quad < plan_.quads; ++quad) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t line = quad * lines_.lines + lines_.tap_line[tap];
      Int8Block block{static_cast<uint32_t>(line * lanes_ * 4), {}};
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

void Packing::pack_tile(const int8_t* weight, int64_t first_channel) {
  std::vector<std::pair<uint8_t, std::vector<Int8Block>>> channels;
  for (int64_t i = 0; i < kOutTile; ++i) {
    channels.emplace_back(static_cast<uint8_t>(i), blocks_of(weight, first_channel + i));
  }
  const int64_t exist = std::min(kOutTile, plan_.shape.out_channels - first_channel);
  std::stable_sort(channels.begin(), channels.begin() + exist,
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  for (const auto& [channel, blocks] : channels) {
    channel_.push_back(channel);
    begin_.push_back(static_cast<uint32_t>(blocks_.size()));
    blocks_.insert(blocks_.end(), blocks.begin(), blocks.end());
  }
}

class BlocksConv2d final : public PackedConv2d {
 public:
  BlocksConv2d(const Conv2dShape& shape, const Conv2dConstants& constants);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    const int64_t positions = images.count * (row_end - row_begin) * out_width_;
    const bool few = for_few_ != nullptr && positions <= for_few_->positions();
    kernel_((few ? for_few_ : for_many_)->plan(), images, row_begin, row_end);
  }
  const char* kernel_name() const override { return "blocks"; }
  int64_t scratch_bytes() const override { return for_many_->scratch_bytes(); }

 private:
  Int8BlocksKernel* kernel_;
  int64_t out_width_;
  PackedEpilogue epilogue_;
  // Where one image does not fill a panel for several images: a packing with smaller panels, else null.
  std::unique_ptr<Packing> for_many_, for_few_;
};

int64_t tiles_of(const Conv2dShape& shape) { return (shape.out_channels + kOutTile - 1) / kOutTile; }

BlocksConv2d::BlocksConv2d(const Conv2dShape& shape, const Conv2dConstants& constants)
    : kernel_(active_int8_blocks_kernel()),
      out_width_(shape.out_width),
      epilogue_(constants, tiles_of(shape) * kOutTile) {
  const int64_t fan_in = shape.in_channels * shape.kernel_height * shape.kernel_width;
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    epilogue_.set(constants, channel, fan_in, channel);
  }
  const Int8BlocksFormat format = active_int8_blocks_format()();
  const auto pack = [&](int64_t most_vectors) {
    return std::make_unique<Packing>(shape, constants.weight, epilogue_.get(), format.lanes,
                                     choose_lines(shape, format.lanes, most_vectors));
  };
  for_many_ = pack(format.max_vectors);
  const int64_t image_vectors = (shape.out_height * shape.out_width + format.lanes - 1) / format.lanes;
  if (2 * image_vectors <= for_many_->plan().vectors) for_few_ = pack(image_vectors);
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_blocks(const Conv2dShape& shape, const Conv2dConstants& constants) {
  if (shape.groups != 1) return nullptr;
  auto packed = std::make_unique<BlocksConv2d>(shape, constants);
  if (packed->scratch_bytes() > kMostScratchBytes) return nullptr;
  return packed;
}

}  // namespace pqk
