#include <stdexcept>

#include "core/engine/steps.h"
#include "core/float_conv2d.h"

namespace pqk::engine {
namespace {

// Parts [begin, end) of one image's output, counted through the rows of panel after panel.
void run_parts(const PackedFloatConv2d& packed, const FloatConvImages& images, int64_t rows, int64_t begin,
               int64_t end) {
  while (begin < end) {
    const int64_t panel = begin / rows, row = begin % rows, panels = (end - begin) / rows;
    if (row == 0 && panels > 0) {
      packed.run(images, 0, rows, panel, panel + panels);
      begin += panels * rows;
    } else {
      const int64_t last = std::min(rows, row + end - begin);
      packed.run(images, row, last, panel, panel + 1);
      begin += last - row;
    }
  }
}

// By the kernel that the caller wants, if it has a wish.
std::unique_ptr<PackedFloatConv2d> pack(const KernelChoices& choices, const std::string& node,
                                        const Conv2dShape& shape, const FloatConv2dConstants& constants) {
  const auto own = choices.find(node), all = choices.find("*");
  if (own != choices.end()) {
    if (auto packed = pack_float_conv2d(shape, constants, own->second)) return packed;
    throw std::invalid_argument("kernels['" + node + "']: no kernel '" + own->second + "' for this layer");
  }
  if (all != choices.end()) {
    if (auto packed = pack_float_conv2d(shape, constants, all->second)) return packed;
  }
  return pack_float_conv2d(shape, constants, "");
}

}  // namespace

std::unique_ptr<Step> make_float_conv_step(const StepContext& context) {
  const Node& node = context.node;
  const int source = context.layout.source(node.inputs[0]);
  const Value& in = context.graph.value(source);
  const Conv2dShape shape = node.op == Op::kFloatConv2d ? conv_shape(in, node) : linear_shape(in, node);
  const FloatConv2dConstants constants{node.weight,
                                       node.codebook + node.attributes.zero,
                                       node.multiplier,
                                       node.bias,
                                       node.attributes.clamp_min,
                                       node.attributes.clamp_max};
  const std::shared_ptr<const PackedFloatConv2d> packed =
      pack(context.chooser.choices(), node.name, shape, constants);
  const int64_t fan_in = shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
  const auto products =
      static_cast<int64_t>(static_cast<double>(node.value.numel() * fan_in) * packed->share());
  const bool residual = node.inputs.size() == 2;
  const int64_t rows = shape.out_height, parts = rows * packed->panels();
  std::unique_ptr<Step> step = batch_step_of(
      packed->kernel_name(), parts, products, kProductsPerThread,
      [packed, residual, rows, parts, input = context.layout.float_image(source),
       other = residual ? context.in_float_image(1) : FloatSlot{},
       output = context.out_floats()](const Frame& whole, int64_t begin, int64_t end) {
        // Frames of several images are divided by images.
        const int64_t first = whole.images * begin / parts, count = whole.images * end / parts - first;
        const bool one = whole.images == 1;
        const Frame frame = one ? whole : whole.images_from(first, count);
        if (!one && count == 0) return;
        FloatConvImages images{input.read_image(frame), {}, output.image(frame)};
        if (residual) images.residual = other.read_image(frame);
        images.count = frame.images;
        images.input_step = input.read_step(frame);
        images.residual_step = other.read_step(frame);
        images.output_step = output.step(frame);
        images.scratch = frame.scratch;
        if (!one) {
          packed->run(images, 0, rows, 0, packed->panels());
        } else {
          run_parts(*packed, images, rows, begin, end);
        }
      });
  step->scratch_bytes = packed->scratch_bytes();
  step->weight_bytes = shape.out_channels * fan_in * static_cast<int64_t>(sizeof(float));
  return step;
}

}  // namespace pqk::engine
