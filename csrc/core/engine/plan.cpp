#include "core/engine/plan.h"

#include <algorithm>
#include <cstring>

#include "core/isa.h"

namespace pqk::engine {

namespace {

// Images that are computed together share every weight that a kernel has loaded, and fill its tiles where an
// image has few pixels. Their arenas should stay in a core's own cache, and leave it to the weights where these
// fit: weights that come from farther away for every group are worth larger ones.
constexpr int64_t kMostImages = 8, kCacheBytes = 1 << 20, kGroupBytes = 256 << 10;

int64_t weight_bytes(const Graph& graph) {
  int64_t bytes = 0;
  for (const Node& node : graph.nodes()) {
    if (node.weight == nullptr) continue;
    const Value& in = graph.value(node.inputs[0]);
    const Attributes& a = node.attributes;
    const int64_t fan_in =
        node.op == Op::kLinear ? in.numel() : in.channels / a.groups * a.kernel[0] * a.kernel[1];
    bytes += node.value.channels * fan_in;
  }
  return bytes;
}

int64_t images_together(int64_t arena_bytes, int64_t weights) {
  const int64_t budget = weights > kCacheBytes ? kCacheBytes : kGroupBytes;
  return std::clamp<int64_t>(budget / std::max<int64_t>(1, arena_bytes), 1, kMostImages);
}

std::unique_ptr<Step> make_step(const StepContext& context) {
  switch (context.node.op) {
    case Op::kConv2d:
    case Op::kLinear:
      return make_conv_step(context);
    case Op::kMaxPool2d:
    case Op::kAvgPool2d:
    case Op::kAdaptiveAvgPool2d:
      return make_pool_step(context);
    case Op::kConcat:
    case Op::kFlatten:
    case Op::kSlice:
    case Op::kPad:
      return make_move_step(context);
    default:
      return make_map_step(context);
  }
}

}  // namespace

Plan::Plan(const Graph& graph, const KernelOptions& options)
    : input_numel_(graph.input().numel()), output_numel_(graph.output().numel()), isa_(isa_name(active_isa())) {
  const Layout layout(graph);
  fills_ = layout.fills();
  arena_bytes_ = layout.arena_bytes();
  group_ = images_together(arena_bytes_, weight_bytes(graph));
  KernelChooser chooser(options);
  const int values = static_cast<int>(graph.nodes().size());
  for (int value = 1; value <= values; ++value) {
    if (layout.is_view(value)) continue;
    const Node& node = graph.nodes()[value - 1];
    std::unique_ptr<Step> step = make_step({graph, layout, node, value, group_, chooser});
    if (step == nullptr) continue;
    steps_.push_back(std::move(step));
    infos_.push_back({node.name, steps_.back()->kernel_name()});
  }
  if (layout.reorders_output()) {
    steps_.push_back(make_output_step({graph, layout, graph.nodes().back(), values, group_, chooser}));
    infos_.push_back({"output", steps_.back()->kernel_name()});
  }
  for (const std::unique_ptr<Step>& step : steps_) {
    scratch_bytes_ = std::max(scratch_bytes_, step->scratch_bytes);
  }
  measured_ = chooser.measured();
}

void Plan::prepare(uint8_t* arena) const {
  std::memset(arena, 0, static_cast<size_t>(arena_bytes_));
  for (const Fill& fill : fills_) std::memset(arena + fill.offset, fill.value, static_cast<size_t>(fill.bytes));
}

}  // namespace pqk::engine
