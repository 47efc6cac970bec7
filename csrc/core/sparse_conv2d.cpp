#include "core/sparse_conv2d.h"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace pqk {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kFoldPositions = 256;  // small images are folded into tiles of about this many positions

int64_t cell_bytes(SparseType type) { return type == SparseType::kDouble ? 8 : 4; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Splits one axis by the stride: tap k reads phase (k * dilation) % stride, shifted by (k * dilation) / stride.
// With `copies` every tap has a phase of its own, unshifted.
struct Axis {
  std::vector<int64_t> phases;
  std::vector<int64_t> slot, shift;  // of each tap
  int64_t length;                    // of a phase
};

Axis split_axis(int64_t kernel, int64_t stride, int64_t dilation, int64_t out_length, bool copies) {
  Axis axis;
  int64_t longest = 0;
  for (int64_t tap = 0; copies && tap < kernel; ++tap) {
    axis.phases.push_back(tap * dilation);
    axis.slot.push_back(tap);
    axis.shift.push_back(0);
  }
  for (int64_t tap = 0; !copies && tap < kernel; ++tap) {
    const int64_t phase = tap * dilation % stride, shift = tap * dilation / stride;
    const auto found = std::find(axis.phases.begin(), axis.phases.end(), phase);
    axis.slot.push_back(found - axis.phases.begin());
    if (found == axis.phases.end()) axis.phases.push_back(phase);
    axis.shift.push_back(shift);
    longest = std::max(longest, shift);
  }
  axis.length = out_length + longest;
  return axis;
}

}  // namespace

SparseLayout sparse_layout(SparseType type, const Conv2dShape& shape, int64_t images) {
  const Axis y =
      split_axis(shape.kernel_height, shape.stride_height, shape.dilation_height, shape.out_height, false);
  // A shifted row crosses cache lines, which halves the speed of loads. int8 cells are few enough to be copied
  // for each kernel column, shifted, so that rows of whole lines stay aligned.
  const bool copies = type == SparseType::kInt8 && shape.out_width % (kLineBytes / cell_bytes(type)) == 0;
  const Axis x =
      split_axis(shape.kernel_width, shape.stride_width, shape.dilation_width, shape.out_width, copies);
  SparseLayout layout;
  layout.rows = y.length;
  layout.columns = x.length;
  layout.row_phase = y.phases;
  layout.column_phase = x.phases;
  layout.images = std::clamp<int64_t>(kFoldPositions / (y.length * x.length), 1, std::max<int64_t>(images, 1));
  layout.positions = layout.images * y.length * x.length;
  layout.group = type == SparseType::kInt8 ? active_sparse_group_kernel()() : 1;
  layout.units_per_group = ceil_div(shape.in_channels / shape.groups, layout.group);
  // An odd number of lines from slot to slot: even powers of two would all fall into a few sets of the cache.
  const int64_t line = kLineBytes / cell_bytes(type);
  layout.slot_pitch = (ceil_div(layout.positions, line) | 1) * line;
  const int64_t slots = static_cast<int64_t>(y.phases.size() * x.phases.size());
  const int64_t unit_pitch = layout.slot_pitch * slots;
  // The last panel reads past its positions: up to a panel and the largest shift.
  const int64_t slack = 256 + layout.positions;
  layout.cells = shape.groups * layout.units_per_group * unit_pitch + slack;
  if (layout.cells > INT32_MAX) throw std::length_error("an image is too large for 32-bit offsets");
  for (int64_t unit = 0; unit < layout.units_per_group; ++unit) {
    for (int64_t ky = 0; ky < shape.kernel_height; ++ky) {
      for (int64_t kx = 0; kx < shape.kernel_width; ++kx) {
        const int64_t slot = y.slot[ky] * static_cast<int64_t>(x.phases.size()) + x.slot[kx];
        layout.offset.push_back(static_cast<int32_t>(unit * unit_pitch + slot * layout.slot_pitch +
                                                     y.shift[ky] * x.length + x.shift[kx]));
      }
    }
  }
  return layout;
}

namespace {

// The same matrix with `group` consecutive channels of a kernel tap in one entry, of 32 / group bits each.
struct GroupedWeight {
  std::vector<int32_t> crow_indices, col_indices, values;
};

GroupedWeight group_int8(const SparseTask& task) {
  const Conv2dShape& shape = task.shape;
  const int64_t taps = shape.kernel_height * shape.kernel_width, group = task.layout.group;
  const int bits = static_cast<int>(32 / group);
  const uint32_t mask = group == 4 ? 0xffu : 0xffffu;
  const auto* values = static_cast<const int8_t*>(task.weight.values);
  const int64_t nnz = task.weight.crow_indices[shape.out_channels];
  GroupedWeight grouped;
  grouped.crow_indices.reserve(static_cast<size_t>(shape.out_channels) + 1);
  grouped.crow_indices.push_back(0);
  grouped.col_indices.resize(static_cast<size_t>(nnz));
  grouped.values.resize(static_cast<size_t>(nnz));
  // Where each column goes: its entry of the grouped matrix and its place in the cell.
  std::vector<int32_t> entry(static_cast<size_t>(shape.in_channels / shape.groups * taps));
  std::vector<uint8_t> bit(entry.size());
  for (size_t column = 0; column < entry.size(); ++column) {
    const int64_t channel = static_cast<int64_t>(column) / taps, tap = static_cast<int64_t>(column) % taps;
    entry[column] = static_cast<int32_t>(channel / group * taps + tap);
    bit[column] = static_cast<uint8_t>(channel % group * bits);
  }
  // Entries of a row come in the order in which their first column does; `last[e]` is where entry e was put.
  std::vector<int32_t> last(static_cast<size_t>(task.layout.units_per_group * taps), -1);
  int32_t count = 0;
  for (int64_t row = 0; row < shape.out_channels; ++row) {
    const int32_t row_begin = count;
    for (int64_t at = task.weight.crow_indices[row]; at < task.weight.crow_indices[row + 1]; ++at) {
      const int32_t column = task.weight.col_indices[at], target = entry[column];
      const uint32_t value = (static_cast<uint32_t>(values[at]) & mask) << bit[column];
      // Without a branch: whether an entry is new is a coin toss.
      const bool is_new = last[target] < row_begin;
      const int32_t put = is_new ? count : last[target];
      last[target] = put;
      grouped.col_indices[put] = target;
      grouped.values[put] = static_cast<int32_t>(static_cast<uint32_t>(grouped.values[put]) | value);
      count += is_new;
    }
    grouped.crow_indices.push_back(count);
  }
  return grouped;
}

std::vector<int32_t> initial_sums(const SparseTask& task) {
  const auto* values = static_cast<const int8_t*>(task.weight.values);
  std::vector<int32_t> sums(static_cast<size_t>(task.shape.out_channels));
  for (size_t row = 0; row < sums.size(); ++row) {
    int32_t sum = 0;
    for (int32_t at = task.weight.crow_indices[row]; at < task.weight.crow_indices[row + 1]; ++at)
      sum += values[at];
    sums[row] = -task.epilogue.input_zero_point * sum;
  }
  return sums;
}

class Cells {
 public:
  explicit Cells(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes), kAlign)) {}
  ~Cells() { ::operator delete(data_, kAlign); }
  Cells(const Cells&) = delete;
  Cells& operator=(const Cells&) = delete;
  void* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlign{kLineBytes};
  void* data_;
};

// Splits output channels so that each of `pieces` has about the same number of stored weights.
std::vector<int64_t> split_rows(const SparseTask& task, int64_t pieces) {
  const int64_t rows = task.shape.out_channels;
  const int32_t* crow = task.weight.crow_indices;
  std::vector<int64_t> bounds{0};
  for (int64_t piece = 1; piece < pieces; ++piece) {
    // Each row costs its weights and a fixed part, here taken as 4 weights.
    const int64_t target = (crow[rows] + 4 * rows) * piece / pieces;
    int64_t row = bounds.back();
    while (row < rows && crow[row] + 4 * row < target) ++row;
    bounds.push_back(row);
  }
  bounds.push_back(rows);
  return bounds;
}

// One tile on all threads.
void run_shared(const SparseTask& task, int64_t first, void* cells, const Parallel& parallel) {
  const int64_t units = task.shape.groups * task.layout.units_per_group;
  parallel(units, std::max<int64_t>(1, 16384 / task.layout.unit_pitch()),
           [&](int64_t begin, int64_t end) { active_sparse_fill_kernel()(task, first, begin, end, cells); });
  const int64_t panel = active_sparse_panel_kernel()(task.type);
  const int64_t panels = ceil_div(task.layout.positions, panel);
  const int64_t pieces =
      panels >= 2 * parallel.num_threads() ? 1 : std::min<int64_t>(task.shape.out_channels, 4);
  const std::vector<int64_t> bounds = split_rows(task, pieces);
  parallel(panels * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t position = at / pieces * panel, piece = at % pieces;
      active_sparse_rows_kernel()(task, first, cells, position,
                                  std::min(position + panel, task.layout.positions), bounds[piece],
                                  bounds[piece + 1]);
    }
  });
}

void run_tile(const SparseTask& task, int64_t first, void* cells) {
  active_sparse_fill_kernel()(task, first, 0, task.shape.groups * task.layout.units_per_group, cells);
  const int64_t panel = active_sparse_panel_kernel()(task.type);
  for (int64_t position = 0; position < task.layout.positions; position += panel) {
    active_sparse_rows_kernel()(task, first, cells, position, std::min(position + panel, task.layout.positions),
                                0, task.shape.out_channels);
  }
}

}  // namespace

void sparse_conv2d(SparseType type, const Conv2dShape& shape, const SparseWeight& weight,
                   const SparseInput& input, const SparseEpilogue& epilogue, const SparseOutput& output,
                   const Parallel& parallel) {
  if (input.images == 0 || shape.out_channels == 0 || shape.out_height == 0 || shape.out_width == 0) return;
  SparseTask task{type, shape, sparse_layout(type, shape, input.images), weight, input, epilogue, output, {}};
  GroupedWeight grouped;
  if (type == SparseType::kInt8) {
    task.initial = initial_sums(task);
    grouped = group_int8(task);
    task.weight = {grouped.crow_indices.data(), grouped.col_indices.data(), grouped.values.data()};
  }
  const int64_t bytes = task.layout.cells * cell_bytes(type), per_tile = task.layout.images;
  const int64_t tiles = ceil_div(input.images, per_tile);
  if (tiles < parallel.num_threads()) {
    const Cells cells(bytes);
    for (int64_t tile = 0; tile < tiles; ++tile) run_shared(task, tile * per_tile, cells.get(), parallel);
    return;
  }
  parallel(tiles, 1, [&](int64_t begin, int64_t end) {
    const Cells cells(bytes);
    for (int64_t tile = begin; tile < end; ++tile) run_tile(task, tile * per_tile, cells.get());
  });
}

}  // namespace pqk
