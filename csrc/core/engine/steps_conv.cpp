#include "core/engine/steps.h"
#include "core/int8_conv2d.h"

namespace pqk::engine {

// A linear layer is a convolution whose kernel is the whole image: 1 x 1, or what was flattened. Its weight
// columns, C slowest, are then the weight of that convolution as they are.
Conv2dShape linear_shape(const Value& in, const Node& node) {
  Conv2dShape shape{};
  shape.in_channels = in.channels;
  shape.in_height = shape.kernel_height = in.height;
  shape.in_width = shape.kernel_width = in.width;
  shape.out_channels = node.value.channels;
  shape.out_height = shape.out_width = 1;
  shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = 1;
  shape.groups = 1;
  return shape;
}

Conv2dShape conv_shape(const Value& in, const Node& node) {
  const Attributes& a = node.attributes;
  Conv2dShape shape{};
  shape.in_channels = in.channels;
  shape.in_height = in.height;
  shape.in_width = in.width;
  shape.out_channels = node.value.channels;
  shape.out_height = node.value.height;
  shape.out_width = node.value.width;
  shape.kernel_height = a.kernel[0];
  shape.kernel_width = a.kernel[1];
  shape.stride_height = a.stride[0];
  shape.stride_width = a.stride[1];
  shape.dilation_height = a.dilation[0];
  shape.dilation_width = a.dilation[1];
  shape.groups = a.groups;
  shape.pad_top = a.padding[0];
  shape.pad_left = a.padding[1];
  shape.pad_bottom = a.padding[2];
  shape.pad_right = a.padding[3];
  return shape;
}

namespace {

Conv2dConstants constants_of(const StepContext& context) {
  const Node& node = context.node;
  Conv2dConstants constants{};
  constants.weight = node.weight;
  constants.multiplier = node.multiplier;
  constants.bias = node.bias;
  constants.input_zero_point = context.in().zero_point;
  constants.input_pixel_stride = context.in_image().pixel_stride;
  constants.quant_min = context.quant_min();
  constants.quant_max = context.quant_max();
  constants.float_output = node.value.dtype == DType::kF32;
  constants.has_residual = node.inputs.size() == 2;
  if (constants.has_residual) {
    constants.residual_multiplier = node.attributes.residual_multiplier;
    constants.residual_zero_point = context.in(1).zero_point;
  }
  return constants;
}

}  // namespace

void run_parts(const PackedConv2d& packed, const Int8ConvImages& images, int64_t rows, int64_t begin,
               int64_t end) {
  while (begin < end) {
    const int64_t panel = begin / rows, row = begin % rows, panels = (end - begin) / rows;
    if (row == 0 && panels > 0) {
      packed.run_panels(images, 0, rows, panel, panel + panels);
      begin += panels * rows;
    } else {
      const int64_t last = std::min(rows, row + end - begin);
      packed.run_panels(images, row, last, panel, panel + 1);
      begin += last - row;
    }
  }
}

std::unique_ptr<Step> make_conv_step(const StepContext& context) {
  const Node& node = context.node;
  const Value& in = context.graph.value(context.layout.source(node.inputs[0]));
  Conv2dShape shape = node.op == Op::kConv2d ? conv_shape(in, node) : linear_shape(in, node);
  Conv2dConstants constants = constants_of(context);
  if (std::unique_ptr<Step> coded = make_coded_step(context, shape, constants)) return coded;
  const std::vector<int8_t> reordered = taps_to_channels(constants.weight, shape);
  if (!reordered.empty()) constants.weight = reordered.data();
  const ChosenConv2d chosen = context.chooser.choose(node.name, shape, constants, context.most_images);
  if (chosen.one == nullptr) return nullptr;
  const char* const kernel = chosen.one->kernel_name();
  const int64_t products =
      node.value.numel() * (shape.in_channels / shape.groups) * shape.kernel_height * shape.kernel_width;
  const bool codes = node.value.dtype == DType::kU8, residual = node.inputs.size() == 2;
  const int64_t scratch_bytes = std::max(chosen.one->scratch_bytes(), chosen.many->scratch_bytes());
  const int64_t parts = shape.out_height * chosen.one->panels();
  std::unique_ptr<Step> step = batch_step_of(
      kernel, parts, products, kProductsPerThread,
      [chosen, codes, residual, parts, rows = shape.out_height, input = context.in_image(),
       other = residual ? context.in_image(1) : ImageSlot{}, output = codes ? context.out_image() : ImageSlot{},
       floats = codes ? FloatSlot{} : context.out_floats()](const Frame& whole, int64_t begin, int64_t end) {
        // Frames of several images are divided by images.
        const int64_t first = whole.images * begin / parts, count = whole.images * end / parts - first;
        const bool one = whole.images == 1;
        const Frame frame = one ? whole : whole.images_from(first, count);
        if (!one && count == 0) return;
        const Int8Image added = other.at(frame);
        Int8ConvImages images{input.at(frame), residual ? &added : nullptr};
        if (codes) {
          images.output = output.at(frame);
        } else {
          images.float_output = floats.at(frame).data;
          images.float_step = floats.step(frame);
        }
        images.count = frame.images;
        images.step = frame.arena_step;
        images.scratch = frame.scratch;
        if (one) {
          run_parts(*chosen.one, images, rows, begin, end);
        } else {
          chosen.many->run(images, 0, rows);
        }
      });
  step->scratch_bytes = scratch_bytes;
  step->weight_bytes =
      shape.out_channels * shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
  return step;
}

}  // namespace pqk::engine
