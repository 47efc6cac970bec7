#include "core/engine/plan.h"

#include <algorithm>
#include <cstring>

#include "core/isa.h"

namespace pqk::engine {

namespace {

// Images that go through a layer together share every weight that a kernel has loaded, and fill its tiles where
// an image has few pixels. But what the layer reads and writes should stay in a core's own cache.
constexpr int64_t kMostImages = 16, kTogetherBytes = 256 << 10;
// Of layers that decode their weights for all images of a frame.
constexpr int64_t kMostImagesDecoding = 128, kTogetherBytesDecoding = 2 << 20;
constexpr int64_t kArenasBytes = 64 << 20;  // of all images of a frame

// Float images are four times as large, so that arenas of several soon leave the cache: only weights that would
// have to come from behind it for every image are worth that, and no more pixels than keep the kernels busy.
constexpr int64_t kSharedWeights = 256 << 10, kFloatPixels = 128;

int64_t float_images_together(const Graph& graph, const Node& node, int64_t most) {
  if (node.op != Op::kFloatConv2d && node.op != Op::kFloatLinear) return 1;
  const int64_t* kernel = node.attributes.kernel;
  const int64_t fan_in = graph.value(node.inputs[0]).channels / node.attributes.groups * kernel[0] * kernel[1];
  if (4 * fan_in * node.value.channels < kSharedWeights) return 1;
  int64_t images = 1;
  while (images * 2 <= most && images * 2 * node.value.pixels() <= kFloatPixels) images *= 2;
  return images;
}

// A power of two, so that neighbouring layers that differ little are computed for the same images.
int64_t images_together(const Graph& graph, const Node& node, int64_t most) {
  const Value& in = graph.value(node.inputs[0]);
  const bool decodes = !node.coded_weight.codec.empty();
  most = std::min(most, decodes ? kMostImagesDecoding : kMostImages);
  if (in.dtype == DType::kF32 && node.value.dtype == DType::kF32) {
    return float_images_together(graph, node, std::min(most, kMostImages));
  }
  const int64_t bytes = in.numel() + node.value.numel();
  const int64_t most_bytes = decodes ? kTogetherBytesDecoding : kTogetherBytes;
  int64_t images = 1;
  while (images * 2 <= most && images * 2 * bytes <= most_bytes) images *= 2;
  return images;
}

int64_t most_images(const Graph& graph) {
  for (const Node& node : graph.nodes()) {
    if (!node.coded_weight.codec.empty() && !is_float_op(node.op)) return kMostImagesDecoding;
  }
  return kMostImages;
}

std::unique_ptr<Step> make_step(const StepContext& context) {
  switch (context.node.op) {
    case Op::kFloatConv2d:
    case Op::kFloatLinear:
      return make_float_conv_step(context);
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
    case Op::kDilate:
      return make_move_step(context);
    default:
      return is_float_op(context.node.op) ? make_float_step(context) : make_map_step(context);
  }
}

// The steps of nodes that need no timing of kernels, made on all threads: by node, null for the others. What
// fails is left to the thread that can throw.
std::vector<std::unique_ptr<Step>> make_ahead(const Graph& graph, const Layout& layout,
                                              const KernelOptions& options, int64_t most_images,
                                              const Parallel& parallel) {
  const int64_t count = static_cast<int64_t>(graph.nodes().size());
  std::vector<std::unique_ptr<Step>> steps(static_cast<size_t>(count));
  if (parallel.num_threads() == 1) return steps;
  parallel(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Node& node = graph.nodes()[static_cast<size_t>(i)];
      const int value = static_cast<int>(i) + 1;
      if (layout.is_view(value)) continue;
      try {
        KernelChooser chooser(options, false);
        steps[static_cast<size_t>(i)] =
            make_step({graph, layout, node, value, images_together(graph, node, most_images), chooser});
      } catch (...) {
        continue;
      }
    }
  });
  return steps;
}

}  // namespace

Plan::Plan(const Graph& graph, const KernelOptions& options, const Parallel& parallel)
    : input_numel_(graph.input().numel()), output_numel_(graph.output().numel()), isa_(isa_name(active_isa())) {
  const Layout layout(graph);
  fills_ = layout.fills();
  arena_bytes_ = layout.arena_bytes();
  group_ = std::clamp<int64_t>(kArenasBytes / std::max<int64_t>(1, arena_bytes_), 1, most_images(graph));
  std::vector<std::unique_ptr<Step>> ahead = make_ahead(graph, layout, options, group_, parallel);
  KernelChooser chooser(options);
  const int values = static_cast<int>(graph.nodes().size());
  if (layout.imports(0)) add_step(make_import_step(graph, layout, 0), "input", 1);
  for (int value = 1; value <= values; ++value) {
    if (layout.is_view(value)) continue;
    const Node& node = graph.nodes()[value - 1];
    const int64_t images = images_together(graph, node, group_);
    std::unique_ptr<Step>& step = ahead[static_cast<size_t>(value - 1)];
    if (step == nullptr) step = make_step({graph, layout, node, value, images, chooser});
    add_step(std::move(step), node.name, images);
    if (layout.imports(value)) add_step(make_import_step(graph, layout, value), node.name, 1);
  }
  if (layout.reorders_output()) {
    add_step(make_output_step({graph, layout, graph.nodes().back(), values, 1, chooser}), "output", 1);
  }
  group_ = 1;
  for (const Stretch& stretch : stretches_) group_ = std::max(group_, stretch.images);
  measured_ = chooser.measured();
}

void Plan::add_step(std::unique_ptr<Step> step, const std::string& node, int64_t images) {
  if (step == nullptr) return;
  scratch_bytes_ = std::max(scratch_bytes_, step->scratch_bytes);
  weight_bytes_ += step->weight_bytes;
  decodes_ |= step->decodes;
  infos_.push_back({node, step->kernel_name()});
  steps_.push_back(std::move(step));
  if (stretches_.empty() || stretches_.back().images != images) {
    stretches_.push_back({steps_.size() - 1, steps_.size() - 1, images});
  }
  stretches_.back().end = steps_.size();
}

void Plan::prepare(uint8_t* arena) const {
  std::memset(arena, 0, static_cast<size_t>(arena_bytes_));
  for (const Fill& fill : fills_) std::memset(arena + fill.offset, fill.value, static_cast<size_t>(fill.bytes));
}

}  // namespace pqk::engine
