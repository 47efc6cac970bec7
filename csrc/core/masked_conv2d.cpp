#include "core/masked_conv2d.h"

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include "core/masked_weight.h"

namespace pqk {
namespace {

constexpr int64_t kPanelBytes = 512 << 10;  // of a tile's panel: stays in the second-level cache
constexpr int64_t kLineVectors = 16;        // narrow images share lines with others up to this many
// What a block of channels and some lines read: about the first-level cache for sums, which share the lines of
// a block among all outputs, and twice that for gradients.
constexpr int64_t kBlockBytes = 40 << 10, kGradientBlockBytes = 64 << 10;
constexpr int64_t kIndexGrain = 65536;  // weights of a mask that are worth a thread
constexpr size_t kFewTaps = 4;          // fewer find too few weights in a block
constexpr int64_t kMostPartials = 32;   // sums of weight gradients that are made apart

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

PanelAxis forward_axis(int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
  PanelAxis axis{{}, stride, {}, {}, 0};
  std::vector<int64_t> phases;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t phase = tap * dilation % stride;
    const auto found = std::find(phases.begin(), phases.end(), phase);
    axis.slot.push_back(found - phases.begin());
    axis.shift.push_back(tap * dilation / stride);
    if (found != phases.end()) continue;
    phases.push_back(phase);
    axis.first.push_back(phase - pad);
  }
  axis.reach = axis.shift.back();
  return axis;
}

// Input q gets what output i - shift(tap) got from it, for q + pad = i * stride + phase(tap).
PanelAxis backward_axis(int64_t kernel, int64_t stride, int64_t dilation) {
  PanelAxis axis{{}, 1, {}, {}, (kernel - 1) * dilation / stride};
  axis.first.push_back(-axis.reach);
  for (int64_t tap = 0; tap < kernel; ++tap) {
    axis.slot.push_back(0);
    axis.shift.push_back(axis.reach - tap * dilation / stride);
  }
  return axis;
}

// Every index once.
PanelAxis plain_axis() { return {{0}, 1, {0}, {0}, 0}; }

int64_t panel_bytes(const LanePass& p) { return p.panel_floats * static_cast<int64_t>(sizeof(float)); }

void set_tile_rows(LanePass& p, int64_t rows) {
  p.tile_rows = rows;
  p.slot_pitch = (rows + p.y.reach) * p.line_pitch;
  // An odd number of lines of the cache from channel to channel: powers of two would share a few sets.
  const int64_t slots = static_cast<int64_t>(p.y.first.size() * p.x.first.size());
  p.channel_pitch = ((slots * p.slot_pitch / kImageLanes) | 1) * kImageLanes;
  p.panel_floats = p.in_channels * p.channel_pitch;
}

// Chooses images and rows of a tile; none of it depends on threads or the instruction set.
void lay_out(LanePass& p, int64_t images) {
  const int64_t columns = std::max<int64_t>(1, p.columns());
  const int64_t together = std::clamp<int64_t>(kLineVectors / columns, 1, ceil_div(images, kImageLanes));
  p.blocks = ceil_div(ceil_div(images, kImageLanes), ceil_div(ceil_div(images, kImageLanes), together));
  p.line_pitch = (columns + p.x.reach) * p.blocks * kImageLanes;
  const int64_t rows = std::max<int64_t>(1, p.row_end - p.row_begin);
  for (int64_t tiles = 1; tiles <= rows; ++tiles) {
    set_tile_rows(p, ceil_div(rows, tiles));
    if (panel_bytes(p) <= kPanelBytes) break;
  }
  const int64_t taps = static_cast<int64_t>(p.y.slot.size());
  const int64_t cells = std::min(kLineVectors, columns * p.blocks) + p.x.reach * p.blocks;
  const int64_t channel_bytes =
      taps * cells * static_cast<int64_t>(p.x.first.size() * kImageLanes * sizeof(float));
  p.channel_block = std::clamp<int64_t>(kBlockBytes / channel_bytes, 1, p.in_channels);
  if (p.x.slot.size() * p.y.slot.size() < kFewTaps) p.channel_block = p.in_channels;
  if (p.panel_floats > INT32_MAX) throw std::length_error("an image is too large for 32-bit offsets");
}

LanePass forward_pass(const Conv2dShape& s, int64_t images) {
  LanePass p{};
  p.in_channels = s.in_channels, p.in_height = s.in_height, p.in_width = s.in_width;
  p.out_channels = s.out_channels, p.out_height = s.out_height, p.out_width = s.out_width;
  p.y = forward_axis(s.kernel_height, s.stride_height, s.dilation_height, s.pad_top);
  p.x = forward_axis(s.kernel_width, s.stride_width, s.dilation_width, s.pad_left);
  p.row_end = s.out_height, p.column_end = s.out_width;
  p.origin_y = p.origin_x = {0};
  p.out_step_y = p.out_step_x = 1;
  lay_out(p, images);
  return p;
}

LanePass backward_pass(const Conv2dShape& s, int64_t images) {
  LanePass p{};
  p.in_channels = s.out_channels, p.in_height = s.out_height, p.in_width = s.out_width;
  p.out_channels = s.in_channels, p.out_height = s.in_height, p.out_width = s.in_width;
  p.y = backward_axis(s.kernel_height, s.stride_height, s.dilation_height);
  p.x = backward_axis(s.kernel_width, s.stride_width, s.dilation_width);
  p.row_begin = s.pad_top / s.stride_height;
  p.row_end = (s.in_height - 1 + s.pad_top) / s.stride_height + 1;
  p.column_begin = s.pad_left / s.stride_width;
  p.column_end = (s.in_width - 1 + s.pad_left) / s.stride_width + 1;
  for (int64_t phase = 0; phase < s.stride_height; ++phase) p.origin_y.push_back(phase - s.pad_top);
  for (int64_t phase = 0; phase < s.stride_width; ++phase) p.origin_x.push_back(phase - s.pad_left);
  p.out_step_y = s.stride_height, p.out_step_x = s.stride_width;
  lay_out(p, images);
  return p;
}

// The gradient of the output as the weight gradient wants it: pixel for pixel the outputs of `forward`.
LanePass upstream_pass(const LanePass& forward) {
  LanePass p = forward;
  p.in_channels = forward.out_channels, p.in_height = forward.out_height, p.in_width = forward.out_width;
  p.y = p.x = plain_axis();
  p.line_pitch = p.columns() * p.blocks * kImageLanes;
  set_tile_rows(p, forward.tile_rows);
  return p;
}

int64_t fan_in(const Conv2dShape& s) { return s.in_channels * s.kernel_height * s.kernel_width; }

struct Tap {
  int64_t channel, ky, kx;
};

// Of column `i` of a weight's row, in the order of channels, rows and columns.
Tap tap_at(const Conv2dShape& s, int64_t i) {
  const int64_t taps = s.kernel_height * s.kernel_width;
  return {i / taps, i % taps / s.kernel_width, i % s.kernel_width};
}

// What is kept: columns of row r are columns[rows[r]] to columns[rows[r + 1]], sorted.
struct Kept {
  Kept(const Conv2dShape& s, const MaskedWeight& weight) : rows(1, 0) {
    const int64_t count = fan_in(s), taps = s.kernel_height * s.kernel_width;
    if (weight.channels_last) {
      for (int64_t i = 0; i < count; ++i)
        place.push_back(static_cast<int32_t>(i % taps * s.in_channels + i / taps));
    }
    std::vector<int32_t> found(static_cast<size_t>(count));
    std::vector<uint8_t> sorted(weight.channels_last ? static_cast<size_t>(count) : 0);
    for (int64_t row = 0; row < s.out_channels; ++row) {
      const uint8_t* mask = weight.mask + row * count;
      if (weight.channels_last) {
        for (int64_t i = 0; i < count; ++i) sorted[i] = mask[place[i]];
        mask = sorted.data();
      }
      const int64_t kept = active_mask_positions_kernel()(mask, count, found.data());
      columns.insert(columns.end(), found.begin(), found.begin() + kept);
      rows.push_back(static_cast<int32_t>(columns.size()));
    }
  }
  // Where a column's weight lies in its row.
  int32_t at(int32_t column) const { return place.empty() ? column : place[column]; }

  std::vector<int32_t> rows, columns, place;
};

// Puts every kept weight into the row of the index that `row_of` names, in their order. Groups of `group`
// output channels share no row, so that threads may take groups.
template <class RowOf, class CellOf>
LaneIndex make_index(const Conv2dShape& s, const LanePass& p, const MaskedWeight& weight, const Kept& kept,
                     int64_t group, const Parallel& parallel, const RowOf& row_of, const CellOf& cell_of) {
  LaneIndex index;
  index.rows.resize(static_cast<size_t>(p.channel_blocks() * p.phases() * p.out_channels) + 1);
  index.entries.resize(kept.columns.size());
  index.places.resize(kept.columns.size());
  const auto each = [&](const auto& body) {
    parallel(ceil_div(s.out_channels, group), ceil_div(kIndexGrain, group * fan_in(s)),
             [&](int64_t begin, int64_t end) {
               for (int64_t row = begin * group; row < std::min(end * group, s.out_channels); ++row) {
                 for (int32_t i = kept.rows[row]; i < kept.rows[row + 1]; ++i) body(row, kept.columns[i]);
               }
             });
  };
  each([&](int64_t row, int32_t column) { ++index.rows[row_of(row, column) + 1]; });
  for (size_t row = 1; row < index.rows.size(); ++row) index.rows[row] += index.rows[row - 1];
  std::vector<int32_t> next(index.rows.begin(), index.rows.end() - 1);
  each([&](int64_t row, int32_t column) {
    const int32_t at = next[row_of(row, column)]++;
    const int64_t place = row * fan_in(s) + kept.at(column);
    index.entries[at] = {cell_of(row, column), weight.weight[place]};
    index.places[at] = static_cast<int32_t>(place);
  });
  return index;
}

LaneIndex forward_index(const Conv2dShape& s, const LanePass& p, const MaskedWeight& weight, const Kept& kept,
                        const Parallel& parallel) {
  std::vector<int32_t> block_rows, cells;
  for (int64_t i = 0; i < fan_in(s); ++i) {
    const Tap tap = tap_at(s, i);
    block_rows.push_back(static_cast<int32_t>(tap.channel / p.channel_block * s.out_channels));
    cells.push_back(static_cast<int32_t>(tap.channel * p.channel_pitch + p.tap(tap.ky, tap.kx)));
  }
  return make_index(
      s, p, weight, kept, 1, parallel, [&](int64_t row, int32_t column) { return block_rows[column] + row; },
      [&](int64_t, int32_t column) { return cells[column]; });
}

LaneIndex backward_index(const Conv2dShape& s, const LanePass& p, const MaskedWeight& weight, const Kept& kept,
                         const Parallel& parallel) {
  std::vector<int32_t> rows, cells;
  for (int64_t i = 0; i < fan_in(s); ++i) {
    const Tap tap = tap_at(s, i);
    const int64_t phase = tap.ky * s.dilation_height % s.stride_height * s.stride_width +
                          tap.kx * s.dilation_width % s.stride_width;
    rows.push_back(static_cast<int32_t>(phase * s.in_channels + tap.channel));
    cells.push_back(static_cast<int32_t>(p.tap(tap.ky, tap.kx)));
  }
  const int64_t rows_of_block = p.phases() * p.out_channels;
  return make_index(
      s, p, weight, kept, p.channel_block, parallel,
      [&](int64_t row, int32_t column) { return row / p.channel_block * rows_of_block + rows[column]; },
      [&](int64_t row, int32_t column) { return static_cast<int32_t>(row * p.channel_pitch) + cells[column]; });
}

// Working memory of one thread, kept for its next call: fresh pages cost as much as the sums do.
class Scratch {
 public:
  // Two panels that the caller may use until it asks again.
  std::pair<float*, float*> panels(int64_t first, int64_t second) {
    const size_t floats = static_cast<size_t>(first + second);
    if (floats > size_) {
      size_ = 0;
      data_.reset(static_cast<float*>(::operator new(floats * sizeof(float), kAlign)));
      size_ = floats;
    }
    return {data_.get(), data_.get() + first};
  }
  // Lets go of more than panels of the usual size need.
  void trim() {
    if (size_ * sizeof(float) > static_cast<size_t>(4 * kPanelBytes)) data_.reset(), size_ = 0;
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, kAlign); }
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

// How a pass is cut into tiles: groups of images, then rows.
struct Tiles {
  Tiles(const LanePass& p, int64_t images)
      : pass(p),
        images(images),
        group(p.blocks * kImageLanes),
        of_rows(ceil_div(p.row_end - p.row_begin, p.tile_rows)),
        count(ceil_div(images, group) * of_rows) {}

  // `follows`: tile i - 1 was computed just before.
  LaneTile at(int64_t i, bool follows) const {
    const int64_t image = i / of_rows * group, line = i % of_rows * pass.tile_rows;
    return {image, std::min(group, images - image), line,
            std::min(pass.tile_rows, pass.row_end - pass.row_begin - line), follows && line > 0};
  }

  const LanePass& pass;
  int64_t images, group, of_rows, count;
};

void run_pass(const LanePass& pass, const LaneIndex& index, const float* bias, const ImageBatch& source,
              const ImageBatch& output, const Parallel& parallel) {
  const Tiles tiles(pass, source.images);
  parallel(tiles.count, 1, [&](int64_t begin, int64_t end) {
    const auto [panel, sums] =
        scratch().panels(pass.panel_floats, pass.out_channels * kMostCells * kImageLanes);
    for (int64_t i = begin; i < end; ++i) {
      const LaneTile tile = tiles.at(i, i > begin);
      active_lane_fill_kernel()(pass, source, tile, panel);
      active_lane_sum_kernel()(pass, index, bias, panel, tile, sums, output);
    }
    scratch().trim();
  });
}

}  // namespace

int64_t LanePass::tap(int64_t ky, int64_t kx) const {
  const int64_t slot = y.slot[ky] * static_cast<int64_t>(x.first.size()) + x.slot[kx];
  return slot * slot_pitch + y.shift[ky] * line_pitch + x.shift[kx] * blocks * kImageLanes;
}

void masked_conv2d(const Conv2dShape& shape, const MaskedWeight& weight, const float* bias,
                   const ImageBatch& input, const ImageBatch& output, const Parallel& parallel) {
  const LanePass pass = forward_pass(shape, input.images);
  run_pass(pass, forward_index(shape, pass, weight, Kept(shape, weight), parallel), bias, input, output,
           parallel);
}

void masked_conv2d_grad_input(const Conv2dShape& shape, const MaskedWeight& weight, const ImageBatch& grad,
                              const ImageBatch& grad_input, const Parallel& parallel) {
  const LanePass pass = backward_pass(shape, grad.images);
  run_pass(pass, backward_index(shape, pass, weight, Kept(shape, weight), parallel), nullptr, grad, grad_input,
           parallel);
}

namespace {

// Of a line of the gradient's sums: enough for what follows each to be little.
constexpr int64_t kChunkCells = 48;

int64_t gradient_chunk(LanePass& pass) {
  const int64_t cells = std::max<int64_t>(1, pass.columns() * pass.blocks);
  const int64_t chunk = std::min(pass.tile_rows, ceil_div(kChunkCells, cells));
  const int64_t slots = static_cast<int64_t>(pass.y.first.size() * pass.x.first.size());
  const int64_t channel_bytes =
      slots * (chunk + pass.y.reach) * pass.line_pitch * static_cast<int64_t>(sizeof(float));
  if (pass.x.slot.size() * pass.y.slot.size() >= kFewTaps) {
    pass.channel_block =
        std::clamp<int64_t>(kGradientBlockBytes / std::max<int64_t>(1, channel_bytes), 1, pass.in_channels);
  }
  return chunk;
}

}  // namespace

void masked_conv2d_grad_weight(const Conv2dShape& shape, const MaskedWeight& weight, const ImageBatch& input,
                               const ImageBatch& grad, float* grad_weight, const Parallel& parallel) {
  LanePass pass = forward_pass(shape, input.images);
  const int64_t chunk = gradient_chunk(pass);
  const LanePass upstream = upstream_pass(pass);
  const LaneIndex index = forward_index(shape, pass, weight, Kept(shape, weight), parallel);
  const Tiles tiles(pass, input.images);
  const size_t entries = index.entries.size();
  const int64_t parts = std::min(tiles.count, kMostPartials);
  std::vector<float> sums(entries * static_cast<size_t>(parts), 0.0f);
  parallel(parts, 1, [&](int64_t begin, int64_t end) {
    const auto [panel, gradient] = scratch().panels(pass.panel_floats, upstream.panel_floats);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = tiles.count * part / parts;
      for (int64_t i = first; i < tiles.count * (part + 1) / parts; ++i) {
        const LaneTile tile = tiles.at(i, i > first);
        active_lane_fill_kernel()(pass, input, tile, panel);
        active_lane_fill_kernel()(upstream, grad, tile, gradient);
        active_lane_gradient_kernel()(pass, index, panel, upstream, gradient, tile, chunk,
                                      sums.data() + entries * static_cast<size_t>(part));
      }
    }
    scratch().trim();
  });
  std::fill_n(grad_weight, shape.out_channels * fan_in(shape), 0.0f);
  for (size_t entry = 0; entry < entries; ++entry) {
    float sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[entries * static_cast<size_t>(part) + entry];
    grad_weight[index.places[entry]] = sum;
  }
}

}  // namespace pqk
