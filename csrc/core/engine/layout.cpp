#include "core/engine/layout.h"

#include <algorithm>
#include <cstdlib>

#include "core/error.h"

namespace pqk::engine {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kSlack = 64;  // readable bytes before and after an image, which int8 kernels ask for

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t checked_product(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

}  // namespace

Layout::Layout(const Graph& graph) : graph_(graph) {
  const size_t values = graph.nodes().size() + 1;
  root_.resize(values);
  last_use_.assign(values, 0);
  borders_.resize(values);
  concat_uses_.resize(values);
  hosts_.resize(values);
  tops_.resize(values);
  placed_.resize(values);
  images_.resize(values);
  floats_.resize(values);
  imported_.resize(values);
  imports_.resize(values);
  buffer_of_.assign(values, -1);
  import_buffer_of_.assign(values, -1);
  find_views();
  find_borders_and_uses();
  find_hosts();
  find_imports();
  const Value& input = graph.input();
  floats_[0] = {FloatSlot::Memory::kInput, 0, input.pixels(), input.width, 1};
  if (imports_[0]) import_buffer_of_[0] = allocate(float_buffer(0, borders_[0], imported_[0]), 0, 0);
  for (int value = 1; value < static_cast<int>(values); ++value) {
    if (is_view(value)) continue;
    if (graph_.value(value).dtype == DType::kF32) {
      place_floats(value, value - 1);
    } else {
      place_image(value, value - 1);
    }
  }
  arrange();
}

// A flatten needs no copy when the order of its elements in memory is right, or when only linear layers read
// it: these take the image itself, as convolutions with a kernel of the image's size. The graph's input lies in
// the right order; a linear layer that reads it has its NHWC copy.
bool Layout::flatten_is_view(const Node& node, int value) const {
  const int input = node.inputs[0];
  const bool last = value == static_cast<int>(graph_.nodes().size());
  if (node.value.dtype == DType::kF32) {
    if (root_[input] == 0) return !last;
    return graph_.value(input).pixels() == 1 || (only_linear_[value] && !last);
  }
  return graph_.value(input).pixels() == 1 || only_linear_[value];
}

void Layout::find_views() {
  only_linear_.assign(root_.size(), true);
  for (const Node& node : graph_.nodes()) {
    for (size_t slot = 0; slot < node.inputs.size(); ++slot) {
      const bool linear = node.op == Op::kLinear || node.op == Op::kFloatLinear;
      if (!linear || slot != 0) only_linear_[node.inputs[slot]] = false;
    }
  }
  root_[0] = 0;
  for (int value = 1; value < static_cast<int>(root_.size()); ++value) {
    const Node& node = graph_.nodes()[value - 1];
    const bool view = node.op == Op::kFlatten && flatten_is_view(node, value);
    root_[value] = view ? root_[node.inputs[0]] : value;
  }
}

void Layout::find_borders_and_uses() {
  for (int index = 0; index < static_cast<int>(graph_.nodes().size()); ++index) {
    const Node& node = graph_.nodes()[index];
    for (const int input : node.inputs) last_use_[root_[input]] = index;
    if (node.op != Op::kConv2d && node.op != Op::kFloatConv2d) continue;
    Border& border = borders_[root_[node.inputs[0]]];
    const int64_t* padding = node.attributes.padding;
    border.top = std::max(border.top, padding[0]);
    border.left = std::max(border.left, padding[1]);
    border.bottom = std::max(border.bottom, padding[2]);
    border.right = std::max(border.right, padding[3]);
  }
  last_use_[root_.back()] = static_cast<int>(graph_.nodes().size());
}

bool Layout::can_be_hosted(int value, int64_t channel) const {
  const Border& border = borders_[value];
  // Kernels may write up to a multiple of 4 channels. The host's border, if it has one, is not the value's.
  return value != 0 && !is_view(value) && concat_uses_[value] == 1 && channel % 4 == 0 &&
         graph_.value(value).channels % 4 == 0 && border.top + border.left + border.bottom + border.right == 0;
}

void Layout::find_hosts() {
  const int values = static_cast<int>(root_.size());
  for (const Node& node : graph_.nodes()) {
    if (node.op != Op::kConcat || node.value.dtype != DType::kU8) continue;
    for (const int input : node.inputs) ++concat_uses_[root_[input]];
  }
  for (int value = 1; value < values; ++value) {
    const Node& node = graph_.nodes()[value - 1];
    if (node.op != Op::kConcat || node.value.dtype != DType::kU8) continue;
    int64_t channel = 0;
    for (const int input : node.inputs) {
      if (can_be_hosted(input, channel)) hosts_[input] = {value, channel};
      channel += graph_.value(input).channels;
    }
  }
  // Hosts come after what they hold, so one pass reaches hosts of hosts.
  for (int value = 1; value < values; ++value) {
    if (hosts_[value].value < 0) continue;
    int& last_use = last_use_[hosts_[value].value];
    last_use = std::max(last_use, last_use_[value]);
  }
  for (int value = values - 1; value >= 0; --value) {
    const Host& host = hosts_[value];
    tops_[value] = host.value < 0 ? Host{value, 0}
                                  : Host{tops_[host.value].value, tops_[host.value].channel + host.channel};
  }
}

void Layout::find_imports() {
  for (const Node& node : graph_.nodes()) {
    const bool moves =
        node.op == Op::kConcat || node.op == Op::kSlice || node.op == Op::kPad || node.op == Op::kDilate;
    for (const int input : node.inputs) {
      if (graph_.value(input).dtype != DType::kF32 || !(is_float_op(node.op) || moves)) continue;
      const int root = root_[input];
      const bool dense_only = root > 0 && graph_.nodes()[root - 1].op == Op::kConv2d;
      if (root == 0 || (dense_only && borders_[root].any())) imports_[root] = true;
    }
  }
}

// Sets what it can of the slot.
Layout::Buffer Layout::float_buffer(int value, const Border& border, FloatSlot& slot) const {
  const Value& shape = graph_.value(value);
  Buffer buffer{};
  buffer.border = border;
  buffer.height = shape.height;
  buffer.width = shape.width;
  buffer.pixel_stride = 4 * shape.channels;
  const int64_t row_bytes = checked_product(shape.width + border.left + border.right, buffer.pixel_stride);
  buffer.bytes = checked_product(shape.height + border.top + border.bottom, row_bytes);
  slot.row_stride = row_bytes / 4;
  slot.pixel_stride = shape.channels;
  return buffer;
}

// float32 results are NHWC, but for those of `dequantize`, which go to any place.
void Layout::place_floats(int value, int node) {
  const Value& shape = graph_.value(value);
  const Op op = graph_.nodes()[value - 1].op;
  FloatSlot& slot = floats_[value];
  if (root_.back() == value) {
    // The caller's memory has no border for those that read one before the end.
    reorders_output_ = (op != Op::kDequantize && shape.pixels() > 1) || borders_[value].any();
    if (!reorders_output_) {
      slot = {FloatSlot::Memory::kOutput, 0, shape.pixels(), shape.width, 1};
      if (shape.pixels() == 1) slot.row_stride = slot.pixel_stride = shape.channels;
      return;
    }
  }
  buffer_of_[value] =
      allocate(float_buffer(value, imports_[value] ? Border{} : borders_[value], slot), value, node);
  if (!imports_[value]) return;
  import_buffer_of_[value] = allocate(float_buffer(value, borders_[value], imported_[value]), value, node);
}

// `node` is the one whose result is about to be written: for a host, that of the first value in it.
void Layout::place_image(int value, int node) {
  const Host& top = tops_[value];
  if (top.value != value) {
    if (!placed_[top.value]) place_image(top.value, node);
    images_[value] = images_[top.value];
    images_[value].offset += top.channel;
    buffer_of_[value] = buffer_of_[top.value];
    return;
  }
  if (placed_[value]) return;
  placed_[value] = true;
  const Value& shape = graph_.value(value);
  Buffer buffer{};
  buffer.border = borders_[value];
  buffer.height = shape.height;
  buffer.width = shape.width;
  buffer.pixel_stride = int8_pixel_stride(shape.channels);
  buffer.zero_point = shape.zero_point;
  const Border& border = buffer.border;
  const int64_t row_stride = checked_product(shape.width + border.left + border.right, buffer.pixel_stride);
  buffer.bytes = checked_product(shape.height + border.top + border.bottom, row_stride);
  buffer_of_[value] = allocate(buffer, value, node);
  images_[value] = {0, row_stride, buffer.pixel_stride};
}

bool Layout::can_share(const Buffer& a, const Buffer& b) {
  // Without a border, any value may use a buffer, which grows where it must.
  if (!a.border.any() && !b.border.any()) return true;
  return a.zero_point == b.zero_point && a.height == b.height && a.width == b.width &&
         a.pixel_stride == b.pixel_stride && a.border == b.border;
}

// Of the free buffers that will do, the one whose size is nearest; a new one where there is none.
int Layout::allocate(Buffer wanted, int value, int node) {
  wanted.free_from = std::max(last_use_[value], node) + 1;
  Buffer* best = nullptr;
  for (Buffer& buffer : buffers_) {
    if (buffer.free_from > node || !can_share(buffer, wanted)) continue;
    if (best == nullptr || std::abs(buffer.bytes - wanted.bytes) < std::abs(best->bytes - wanted.bytes)) {
      best = &buffer;
    }
  }
  const int64_t growth = best == nullptr ? wanted.bytes : std::max<int64_t>(wanted.bytes - best->bytes, 0);
  const int64_t limit = graph_.limits().activation_bytes;
  if (growth > limit || buffer_bytes_ + growth > limit) {
    throw FormatError("E_BOMB", node_label(static_cast<size_t>(node), graph_.nodes()[node].name), -1,
                      "activations of at most " + std::to_string(limit) + " bytes in all", "more");
  }
  buffer_bytes_ += growth;
  if (best == nullptr) {
    buffers_.push_back(wanted);
    return static_cast<int>(buffers_.size()) - 1;
  }
  best->bytes += growth;
  best->free_from = wanted.free_from;
  return static_cast<int>(best - buffers_.data());
}

// Gives every buffer its place, pixel (0, 0) of images aligned.
void Layout::arrange() {
  std::vector<int64_t> offsets;
  for (const Buffer& buffer : buffers_) {
    const int64_t row_stride = (buffer.width + buffer.border.left + buffer.border.right) * buffer.pixel_stride;
    const int64_t before =
        buffer.border.any() ? buffer.border.top * row_stride + buffer.border.left * buffer.pixel_stride : 0;
    offsets.push_back(round_up(arena_bytes_ + kSlack + before, kAlignment));
    const int64_t begin = offsets.back() - before;
    fills_.push_back({begin, buffer.bytes, static_cast<uint8_t>(buffer.zero_point)});
    arena_bytes_ = begin + buffer.bytes;
  }
  arena_bytes_ = round_up(arena_bytes_ + kSlack, kAlignment);
  for (size_t value = 0; value < buffer_of_.size(); ++value) {
    if (buffer_of_[value] < 0) continue;
    const int64_t offset = offsets[static_cast<size_t>(buffer_of_[value])];
    images_[value].offset += offset;
    floats_[value].offset = offset;
  }
  for (size_t value = 0; value < buffer_of_.size(); ++value) {
    if (imports_[value]) imported_[value].offset = offsets[static_cast<size_t>(import_buffer_of_[value])];
  }
}

FloatSlot Layout::floats(int value) const {
  FloatSlot slot = floats_[root_[value]];
  if (is_view(value)) {
    slot.channel_stride = 1;
    slot.row_stride = slot.pixel_stride = graph_.value(value).channels;
  }
  return slot;
}

}  // namespace pqk::engine
