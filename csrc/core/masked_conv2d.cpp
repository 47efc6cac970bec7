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
constexpr int64_t kMostPartials = 32;       // sums of weight gradients that are made apart

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

struct Tap {
  int64_t channel, ky, kx;
};

Tap tap_at(const Conv2dShape& s, bool channels_last, int64_t i) {
  const int64_t taps = s.kernel_height * s.kernel_width;
  const int64_t channel = channels_last ? i % s.in_channels : i / taps;
  const int64_t tap = channels_last ? i / s.in_channels : i % taps;
  return {channel, tap / s.kernel_width, tap % s.kernel_width};
}

int64_t fan_in(const Conv2dShape& s) { return s.in_channels * s.kernel_height * s.kernel_width; }

// Places in the weight of all that is kept; rows[r] is where output channel r begins.
struct Kept {
  Kept(const Conv2dShape& s, const MaskedWeight& weight) : places(0), rows(1, 0) {
    const int64_t columns = fan_in(s);
    std::vector<int32_t> found(static_cast<size_t>(columns));
    for (int64_t row = 0; row < s.out_channels; ++row) {
      const int64_t count = active_mask_positions_kernel()(weight.mask + row * columns, columns, found.data());
      places.insert(places.end(), found.begin(), found.begin() + count);
      rows.push_back(static_cast<int32_t>(places.size()));
    }
  }
  std::vector<int32_t> places, rows;  // places within the row
};

LaneIndex forward_index(const Conv2dShape& s, const LanePass& p, const MaskedWeight& weight, const Kept& kept) {
  const int64_t columns = fan_in(s);
  std::vector<int32_t> cells;
  cells.reserve(static_cast<size_t>(columns));
  for (int64_t i = 0; i < columns; ++i) {
    const Tap tap = tap_at(s, weight.channels_last, i);
    cells.push_back(static_cast<int32_t>(tap.channel * p.channel_pitch + p.tap(tap.ky, tap.kx)));
  }
  LaneIndex index{kept.rows, std::vector<LaneEntry>(kept.places.size())};
  for (int64_t row = 0; row < s.out_channels; ++row) {
    const float* weights = weight.weight + row * columns;
    for (int32_t at = kept.rows[row]; at < kept.rows[row + 1]; ++at) {
      index.entries[at] = {cells[kept.places[at]], weights[kept.places[at]]};
    }
  }
  return index;
}

LaneIndex backward_index(const Conv2dShape& s, const LanePass& p, const MaskedWeight& weight,
                         const Kept& kept) {
  const int64_t columns = fan_in(s);
  std::vector<int32_t> row_of, cells;
  for (int64_t i = 0; i < columns; ++i) {
    const Tap tap = tap_at(s, weight.channels_last, i);
    const int64_t phase = tap.ky * s.dilation_height % s.stride_height * s.stride_width +
                          tap.kx * s.dilation_width % s.stride_width;
    row_of.push_back(static_cast<int32_t>(phase * s.in_channels + tap.channel));
    cells.push_back(static_cast<int32_t>(p.tap(tap.ky, tap.kx)));
  }
  LaneIndex index{std::vector<int32_t>(static_cast<size_t>(p.phases() * s.in_channels) + 1),
                  std::vector<LaneEntry>(kept.places.size())};
  for (const int32_t place : kept.places) ++index.rows[row_of[place] + 1];
  for (size_t row = 1; row < index.rows.size(); ++row) index.rows[row] += index.rows[row - 1];
  std::vector<int32_t> next(index.rows.begin(), index.rows.end() - 1);
  for (int64_t row = 0; row < s.out_channels; ++row) {
    const float* weights = weight.weight + row * columns;
    const int32_t channel = static_cast<int32_t>(row * p.channel_pitch);
    for (int32_t at = kept.rows[row]; at < kept.rows[row + 1]; ++at) {
      const int32_t place = kept.places[at];
      index.entries[next[row_of[place]]++] = {channel + cells[place], weights[place]};
    }
  }
  return index;
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

  LaneTile operator[](int64_t i) const {
    const int64_t image = i / of_rows * group, line = i % of_rows * pass.tile_rows;
    return {image, std::min(group, images - image), line,
            std::min(pass.tile_rows, pass.row_end - pass.row_begin - line)};
  }

  const LanePass& pass;
  int64_t images, group, of_rows, count;
};

void run_pass(const LanePass& pass, const LaneIndex& index, const float* bias, const ImageBatch& source,
              const ImageBatch& output, const Parallel& parallel) {
  const Tiles tiles(pass, source.images);
  parallel(tiles.count, 1, [&](int64_t begin, int64_t end) {
    float* panel = scratch().panels(pass.panel_floats, 0).first;
    for (int64_t i = begin; i < end; ++i) {
      active_lane_fill_kernel()(pass, source, tiles[i], panel);
      active_lane_sum_kernel()(pass, index, bias, panel, tiles[i], output);
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
  run_pass(pass, forward_index(shape, pass, weight, Kept(shape, weight)), bias, input, output, parallel);
}

void masked_conv2d_grad_input(const Conv2dShape& shape, const MaskedWeight& weight, const ImageBatch& grad,
                              const ImageBatch& grad_input, const Parallel& parallel) {
  const LanePass pass = backward_pass(shape, grad.images);
  run_pass(pass, backward_index(shape, pass, weight, Kept(shape, weight)), nullptr, grad, grad_input, parallel);
}

void masked_conv2d_grad_weight(const Conv2dShape& shape, const MaskedWeight& weight, const ImageBatch& input,
                               const ImageBatch& grad, float* grad_weight, const Parallel& parallel) {
  const LanePass pass = forward_pass(shape, input.images), upstream = upstream_pass(pass);
  const Kept kept(shape, weight);
  const LaneIndex index = forward_index(shape, pass, weight, kept);
  const Tiles tiles(pass, input.images);
  const size_t entries = kept.places.size();
  const int64_t parts = std::min(tiles.count, kMostPartials);
  std::vector<float> sums(entries * static_cast<size_t>(parts), 0.0f);
  parallel(parts, 1, [&](int64_t begin, int64_t end) {
    const auto [panel, gradient] = scratch().panels(pass.panel_floats, upstream.panel_floats);
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t i = tiles.count * part / parts; i < tiles.count * (part + 1) / parts; ++i) {
        active_lane_fill_kernel()(pass, input, tiles[i], panel);
        active_lane_fill_kernel()(upstream, grad, tiles[i], gradient);
        active_lane_gradient_kernel()(pass, index, panel, upstream, gradient, tiles[i],
                                      sums.data() + entries * static_cast<size_t>(part));
      }
    }
    scratch().trim();
  });
  const int64_t columns = fan_in(shape);
  std::fill_n(grad_weight, shape.out_channels * columns, 0.0f);
  for (int64_t row = 0; row < shape.out_channels; ++row) {
    for (int32_t at = kept.rows[row]; at < kept.rows[row + 1]; ++at) {
      float sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[entries * static_cast<size_t>(part) + at];
      grad_weight[row * columns + kept.places[at]] = sum;
    }
  }
}

}  // namespace pqk
