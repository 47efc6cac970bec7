#include "core/engine/steps.h"
#include "core/float_elementwise.h"
#include "core/float_map.h"
#include "core/float_pool2d.h"
#include "core/float_rearrange.h"

namespace pqk::engine {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

std::unique_ptr<Step> add(const StepContext& context) {
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  const FloatAddParams params{out.channels, out.width, a.clamp_min, a.clamp_max};
  return step_of("float_add", out.height, 3 * kFloatBytes * out.numel(), kBytesPerThread,
                 [kernel = active_float_add_kernel(), params, first = context.in_float_image(0),
                  second = context.in_float_image(1),
                  output = context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(params, first.read_image(frame), second.read_image(frame), output.image(frame), begin,
                          end);
                 });
}

std::unique_ptr<Step> affine(const StepContext& context) {
  const Value& out = context.out();
  const Node& node = context.node;
  struct Channels {
    std::vector<float> multiplier, bias;
  };
  Channels channels{{node.multiplier, node.multiplier + out.channels}, {node.bias, node.bias + out.channels}};
  const FloatAffineParams params{out.channels,
                                 out.width,
                                 channels.multiplier.data(),
                                 channels.bias.data(),
                                 node.attributes.clamp_min,
                                 node.attributes.clamp_max};
  return step_of("float_affine", out.height, 2 * kFloatBytes * out.numel(), kBytesPerThread,
                 [kernel = active_float_affine_kernel(), params, channels = std::move(channels),
                  input = context.in_float_image(),
                  output = context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(params, input.read_image(frame), output.image(frame), begin, end);
                 });
}

std::unique_ptr<Step> map(const StepContext& context) {
  const Value& out = context.out();
  return step_of("float_map", out.height, 2 * kFloatBytes * out.numel(), kBytesPerThread,
                 [kernel = active_float_map_kernel(), function = context.node.attributes.function,
                  channels = out.channels, width = out.width, input = context.in_float_image(),
                  output = context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(function, channels, width, input.read_image(frame), output.image(frame), begin, end);
                 });
}

// The positions of each window along one axis that lie in the image; the graph's check says that there are
// some.
std::vector<FloatSpan> window_spans(const StepContext& context, int axis, bool dilated) {
  const Attributes& a = context.node.attributes;
  const int64_t size = axis == 0 ? context.in().height : context.in().width;
  const int64_t count = axis == 0 ? context.out().height : context.out().width;
  const int64_t step = dilated ? a.dilation[axis] : 1;
  std::vector<FloatSpan> spans;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = i * a.stride[axis] - a.padding[axis];
    const int64_t skipped = start >= 0 ? 0 : (-start + step - 1) / step;
    spans.push_back({start + skipped * step, std::min(start + (a.kernel[axis] - 1) * step + 1, size), step});
  }
  return spans;
}

std::vector<FloatSpan> adaptive_spans(int64_t count, int64_t size) {
  std::vector<FloatSpan> spans;
  for (int64_t i = 0; i < count; ++i) {
    spans.push_back({i * size / count, ((i + 1) * size + count - 1) / count, 1});
  }
  return spans;
}

std::unique_ptr<Step> pool(const StepContext& context) {
  const Value &in = context.in(), &out = context.out();
  const Attributes& a = context.node.attributes;
  const Op op = context.node.op;
  const bool adaptive = op == Op::kFloatAdaptiveAvgPool2d, largest = op == Op::kFloatMaxPool2d;
  std::vector<FloatSpan> rows =
      adaptive ? adaptive_spans(out.height, in.height) : window_spans(context, 0, largest);
  std::vector<FloatSpan> columns =
      adaptive ? adaptive_spans(out.width, in.width) : window_spans(context, 1, largest);
  const bool counts_padding = op == Op::kFloatAvgPool2d && a.count_include_pad != 0;
  const FloatPool2dParams params{out.channels, out.width, rows.data(), columns.data(),
                                 counts_padding ? a.kernel[0] * a.kernel[1] : 0};
  return step_of(
      op_name(op), out.height, kFloatBytes * (in.numel() + out.numel()), kBytesPerThread,
      [kernel = largest ? active_float_max_pool2d_kernel() : active_float_avg_pool2d_kernel(), params,
       rows = std::move(rows), columns = std::move(columns), input = context.in_float_image(),
       output = context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
        kernel(params, input.read_image(frame), output.image(frame), begin, end);
      });
}

std::unique_ptr<Step> concat(const StepContext& context) {
  struct Part {
    FloatSlot slot;
    int64_t channels, at;
  };
  std::vector<Part> parts;
  int64_t at = 0;
  for (size_t i = 0; i < context.node.inputs.size(); ++i) {
    parts.push_back({context.in_float_image(i), context.in(i).channels, at});
    at += context.in(i).channels;
  }
  const Value& out = context.out();
  return step_of("copy", out.height, 2 * kFloatBytes * out.numel(), kBytesPerThread,
                 [parts = std::move(parts), width = out.width, output = context.out_floats()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   for (const Part& part : parts) {
                     copy_float_channels(part.channels, width, part.at, part.slot.read_image(frame),
                                         output.image(frame), begin, end);
                   }
                 });
}

std::unique_ptr<Step> slice(const StepContext& context) {
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  const SliceParams params{
      out.channels, out.width, {a.start[0], a.start[1], a.start[2]}, {a.step[0], a.step[1], a.step[2]}};
  return step_of("copy", out.height, 2 * kFloatBytes * out.numel(), kBytesPerThread,
                 [params, input = context.in_float_image(), output = context.out_floats()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   slice_floats(params, input.read_image(frame), output.image(frame), begin, end);
                 });
}

std::unique_ptr<Step> pad(const StepContext& context) {
  const Value &in = context.in(), &out = context.out();
  const int64_t* before = context.node.attributes.before;
  const PadParams params{in.channels,
                         in.height,
                         in.width,
                         out.channels,
                         out.height,
                         out.width,
                         {before[0], before[1], before[2]},
                         0};
  return step_of("copy", out.height, 2 * kFloatBytes * out.numel(), kBytesPerThread,
                 [params, input = context.in_float_image(), output = context.out_floats()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   pad_floats(params, input.read_image(frame), output.image(frame), begin, end);
                 });
}

std::unique_ptr<Step> dilate(const StepContext& context) {
  const Value &in = context.in(), &out = context.out();
  const int64_t* dilation = context.node.attributes.dilation;
  const DilateParams params{in.channels, in.width, out.width, {dilation[0], dilation[1]}, 0};
  return step_of("copy", out.height, 2 * kFloatBytes * out.numel(), kBytesPerThread,
                 [params, input = context.in_float_image(), output = context.out_floats()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   dilate_floats(params, input.read_image(frame), output.image(frame), begin, end);
                 });
}

}  // namespace

std::unique_ptr<Step> make_float_step(const StepContext& context) {
  switch (context.node.op) {
    case Op::kFloatAdd:
      return add(context);
    case Op::kFloatAffine:
      return affine(context);
    case Op::kFloatMap:
      return map(context);
    default:
      return pool(context);
  }
}

std::unique_ptr<Step> make_float_move_step(const StepContext& context) {
  switch (context.node.op) {
    case Op::kConcat:
      return concat(context);
    case Op::kSlice:
      return slice(context);
    case Op::kPad:
      return pad(context);
    default:
      return dilate(context);
  }
}

std::unique_ptr<Step> make_import_step(const Graph& graph, const Layout& layout, int value) {
  const Value& shape = graph.value(value);
  return step_of("copy", shape.height, 2 * kFloatBytes * shape.numel(), kBytesPerThread,
                 [channels = shape.channels, height = shape.height, width = shape.width, tells = value == 0,
                  input = layout.floats(value),
                  output = layout.float_image(value)](const Frame& frame, int64_t begin, int64_t end) {
                   const int64_t nan = import_floats(channels, height, width, input.read(frame),
                                                     output.image(frame), begin, end);
                   return tells ? nan : int64_t{-1};
                 });
}

}  // namespace pqk::engine
