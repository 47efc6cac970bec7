#include "core/int8_blocks_plan.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/int8_packing.h"

namespace pqk {
namespace {

// The scratch memory of a panel should leave the weights room in the first-level cache.
constexpr int64_t kPanelBytes = 40 << 10;
// Of a slice, where lines of all channels need more.
constexpr int64_t kSliceBytes = 28 << 10;
// With fewer vectors than this, loads of weights slow blocks down as much as the second-level cache does.
constexpr int64_t kSliceVectors = 3;
// Layers that need more are not worth it: their codes would come from memory.
constexpr int64_t kMostScratchBytes = 4 << 20;

// How a panel's codes are laid out as lines.
struct Lines {
  int64_t vectors = 0, panel_rows = 0, lines = 0;
  std::vector<Int8BlocksStream> streams;
  std::vector<int64_t> tap_line;  // [ky * kernel_width + kx]: the line of a panel's first vector
  int64_t slice_quads = 0;        // at most, in memory at once
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

int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// For panels of at most `most` vectors.
Lines choose_lines(const Conv2dShape& s, Int8BlocksFormat format, int64_t most) {
  const int64_t lanes = format.lanes;
  const int64_t quads = round_up((s.in_channels + 3) / 4, kQuadsAtOnce);
  for (int64_t vectors = most;; vectors /= 2) {
    const Lines rows = lines_of_rows(s, vectors, lanes);
    const Lines positions = lines_of_positions(s, vectors);
    const bool shares = !rows.streams.empty() && 2 * rows.vectors >= vectors &&
                        rows.lines * vectors < positions.lines * rows.vectors;
    if (vectors > format.max_vectors && !shares) continue;
    Lines chosen = shares ? rows : positions;
    const int64_t quad_bytes = chosen.lines * lanes * 4;
    chosen.slice_quads = quads;
    if (quads * quad_bytes <= kPanelBytes || vectors < kSliceVectors) return chosen;
    if (vectors > std::min<int64_t>(4, format.max_vectors)) continue;
    const int64_t most_quads = std::max<int64_t>(1, kSliceBytes / quad_bytes / kQuadsAtOnce) * kQuadsAtOnce;
    chosen.slice_quads = round_up((quads - 1) / ((quads - 1) / most_quads + 1) + 1, kQuadsAtOnce);
    return chosen;
  }
}

// The blocks for one way to lay out lines.
class Packing {
 public:
  // `nonzero`: number of weights that are not 0.
  Packing(const Conv2dShape& shape, const int8_t* weight, int64_t nonzero, const Int8Epilogue& epilogue,
          int64_t lanes, Lines lines);
  Packing(const Packing&) = delete;
  Packing& operator=(const Packing&) = delete;
  const Int8BlocksPlan& plan() const { return plan_; }
  int64_t scratch_bytes() const {
    const int64_t sums = plan_.slices > 1 ? plan_.slots * plan_.vectors : 0;
    return (lines_.slice_quads * plan_.lines + sums) * lanes_ * 4;
  }
  int64_t positions() const { return plan_.vectors * lanes_; }  // of a panel

 private:
  struct Tap {
    int64_t index;
    uint32_t offset;  // of a quad's lines to the tap's
  };

  // One output channel's blocks of a slice in the order of their offsets; returns their number.
  int64_t pack_channel(const int8_t* weight, int64_t slice, Int8Block* blocks);
  void pack_tile(const int8_t* weight, int64_t slice, int64_t first_channel);

  int64_t lanes_;
  Lines lines_;
  ChannelsLast order_;
  ChannelsLastKernel* channels_last_;
  std::vector<Tap> taps_;  // in the order of their lines
  int64_t most_blocks_;    // of an output channel in a slice
  Int8BlocksPlan plan_{};
  std::vector<Int8Block> blocks_;
  std::vector<uint32_t> begin_;
  std::vector<uint8_t> channel_;
  // While packing: one output channel's weights of a slice, [tap][input channel], and a tile's blocks.
  std::vector<int8_t> rows_;
  std::vector<Int8Block> tile_;
};

Packing::Packing(const Conv2dShape& shape, const int8_t* weight, int64_t nonzero, const Int8Epilogue& epilogue,
                 int64_t lanes, Lines lines)
    : lanes_(lanes),
      lines_(std::move(lines)),
      order_(shape.kernel_height * shape.kernel_width),
      channels_last_(active_channels_last()) {
  plan_.shape = shape;
  plan_.epilogue = epilogue;
  plan_.quads = (shape.in_channels + 3) / 4;
  plan_.vectors = lines_.vectors;
  plan_.panel_rows = lines_.panel_rows;
  plan_.lines = lines_.lines;
  plan_.streams = lines_.streams.data();
  plan_.stream_count = static_cast<int64_t>(lines_.streams.size());
  plan_.slice_quads = lines_.slice_quads;
  plan_.slices = (plan_.quads + plan_.slice_quads - 1) / plan_.slice_quads;
  plan_.slots = round_up(shape.out_channels, kOutTile);
  for (int64_t tap = 0; tap < order_.taps; ++tap) {
    taps_.push_back({tap, static_cast<uint32_t>(lines_.tap_line[tap] * lanes_ * 4)});
  }
  std::sort(taps_.begin(), taps_.end(), [](const Tap& a, const Tap& b) { return a.offset < b.offset; });
  most_blocks_ = std::min(plan_.slice_quads, plan_.quads) * order_.taps;
  rows_.resize(static_cast<size_t>(most_blocks_ * 4));
  tile_.resize(static_cast<size_t>(most_blocks_ * kOutTile));
  blocks_.reserve(static_cast<size_t>(nonzero));
  for (int64_t slice = 0; slice < plan_.slices; ++slice) {
    for (int64_t first = 0; first < shape.out_channels; first += kOutTile) pack_tile(weight, slice, first);
  }
  rows_ = {};
  tile_ = {};
  begin_.push_back(static_cast<uint32_t>(blocks_.size()));
  plan_.blocks = blocks_.data();
  plan_.begin = begin_.data();
  plan_.channel = channel_.data();
}

int64_t Packing::pack_channel(const int8_t* weight, int64_t slice, Int8Block* blocks) {
  const Conv2dShape& s = plan_.shape;
  const int64_t first = slice * plan_.slice_quads, quads = std::min(plan_.slice_quads, plan_.quads - first);
  const int64_t channels = std::min(quads * 4, s.in_channels - first * 4), pitch = quads * 4;
  if (channels < pitch) std::fill(rows_.begin(), rows_.end(), int8_t{0});
  channels_last_(order_, weight + first * 4 * order_.taps, channels, pitch, rows_.data());
  Int8Block* next = blocks;
  for (int64_t quad = 0; quad < quads; ++quad) {
    const int8_t* const from = rows_.data() + quad * 4;
    const uint32_t offset = static_cast<uint32_t>(quad * lines_.lines * lanes_ * 4);
    for (const Tap& tap : taps_) {
      // Written in any case and kept if not zero: no branch could be predicted.
      uint32_t bits;
      std::memcpy(&bits, from + tap.index * pitch, sizeof bits);
      next->offset = offset + tap.offset;
      std::memcpy(next->weight, &bits, sizeof bits);
      next += bits != 0;
    }
  }
  return next - blocks;
}

void Packing::pack_tile(const int8_t* weight, int64_t slice, int64_t first_channel) {
  struct Channel {
    uint8_t index;
    int64_t blocks;
  };
  std::array<Channel, kOutTile> channels;
  const int64_t exist = std::min(kOutTile, plan_.shape.out_channels - first_channel);
  const int64_t fan_in = plan_.shape.in_channels * order_.taps;
  for (int64_t i = 0; i < kOutTile; ++i) {
    int64_t count = 0;
    if (i < exist) {
      count = pack_channel(weight + (first_channel + i) * fan_in, slice, tile_.data() + i * most_blocks_);
    }
    channels[static_cast<size_t>(i)] = {static_cast<uint8_t>(i), count};
  }
  std::stable_sort(channels.begin(), channels.begin() + exist,
                   [](const Channel& a, const Channel& b) { return a.blocks > b.blocks; });
  for (const Channel& channel : channels) {
    channel_.push_back(channel.index);
    begin_.push_back(static_cast<uint32_t>(blocks_.size()));
    const Int8Block* const from = tile_.data() + channel.index * most_blocks_;
    blocks_.insert(blocks_.end(), from, from + channel.blocks);
  }
}

class BlocksConv2d final : public PackedConv2d {
 public:
  BlocksConv2d(const Conv2dShape& shape, const Conv2dConstants& constants, const std::vector<WeightSums>& sums);
  void run(const Int8ConvImages& images, int64_t row_begin, int64_t row_end) const override {
    run_panels(images, row_begin, row_end, 0, panels());
  }
  // Tiles, where all positions of an image are computed together: to divide these would leave vectors unfilled.
  int64_t panels() const override {
    const Int8BlocksPlan& p = for_many_->plan();
    return p.shape.out_height * p.shape.out_width <= positions_together_ ? p.slots / kOutTile : 1;
  }
  void run_panels(const Int8ConvImages& images, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                  int64_t panel_end) const override {
    const Int8BlocksPlan& p = for_many_->plan();
    const int64_t positions = images.count * (row_end - row_begin) * p.shape.out_width;
    const bool few = for_few_ != nullptr && positions <= for_few_->positions();
    const int64_t tile_end = panels() == 1 ? p.slots / kOutTile : panel_end;
    kernel_((few ? for_few_ : for_many_)->plan(), images, {row_begin, row_end, panel_begin, tile_end});
  }
  const char* kernel_name() const override { return "blocks"; }
  int64_t scratch_bytes() const override {
    return std::max(for_many_->scratch_bytes(), for_few_ != nullptr ? for_few_->scratch_bytes() : 0);
  }

 private:
  Int8BlocksKernel* kernel_;
  int64_t positions_together_;
  PackedEpilogue epilogue_;
  // Where one image does not fill a panel for several images: a packing with smaller panels, else null.
  std::unique_ptr<Packing> for_many_, for_few_;
};

BlocksConv2d::BlocksConv2d(const Conv2dShape& shape, const Conv2dConstants& constants,
                           const std::vector<WeightSums>& sums)
    : kernel_(active_int8_blocks_kernel()), epilogue_(constants, round_up(shape.out_channels, kOutTile)) {
  int64_t nonzero = 0;
  for (int64_t channel = 0; channel < shape.out_channels; ++channel) {
    epilogue_.set(constants, channel, sums[static_cast<size_t>(channel)], channel);
    nonzero += sums[static_cast<size_t>(channel)].nonzero;
  }
  const Int8BlocksFormat format = active_int8_blocks_format()();
  const auto pack = [&](int64_t most_vectors) {
    return std::make_unique<Packing>(shape, constants.weight, nonzero, epilogue_.get(), format.lanes,
                                     choose_lines(shape, format, most_vectors));
  };
  positions_together_ = format.max_vectors * format.lanes;
  for_many_ = pack(format.max_panel_vectors);
  const int64_t image_vectors = (shape.out_height * shape.out_width + format.lanes - 1) / format.lanes;
  if (2 * image_vectors <= for_many_->plan().vectors) for_few_ = pack(image_vectors);
}

}  // namespace

std::unique_ptr<PackedConv2d> pack_blocks(const Conv2dShape& shape, const Conv2dConstants& constants) {
  if (shape.groups != 1) return nullptr;
  const std::vector<WeightSums> sums = channel_sums(shape, constants.weight);
  if (!constants.float_output && !values_fit_int32(constants, sums)) return nullptr;  // only codes are clamped
  auto packed = std::make_unique<BlocksConv2d>(shape, constants, sums);
  if (packed->scratch_bytes() > kMostScratchBytes) return nullptr;
  return packed;
}

}  // namespace pqk
