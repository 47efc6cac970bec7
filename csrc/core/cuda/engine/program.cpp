#include <algorithm>
#include <stdexcept>

#include "core/cuda/engine/program_builder.h"

namespace pqk::engine::device {

Program make_program(const Graph& graph) {
  const Layout layout(graph);
  Program program;
  program.arena_bytes = layout.arena_bytes();
  program.input_numel = graph.input().numel();
  program.output_numel = graph.output().numel();
  if (std::max({program.arena_bytes, 4 * program.input_numel, 4 * program.output_numel}) > INT32_MAX) {
    throw std::invalid_argument("on CUDA one image may take at most 2147483647 bytes of activations");
  }
  for (const Fill& fill : layout.fills()) program.borders.push_back({fill.offset, fill.bytes, fill.value});
  ProgramBuilder builder(graph, layout, program);
  if (layout.imports(0)) builder.add_import(0);
  const int values = static_cast<int>(graph.nodes().size());
  for (int value = 1; value <= values; ++value) {
    if (layout.is_view(value)) continue;
    builder.add_node(value);
    if (layout.imports(value)) builder.add_import(value);
  }
  if (layout.reorders_output()) builder.add_reordered_output();
  return program;
}

void ProgramBuilder::add_node(int value) {
  value_ = value;
  name_ = node().name;
  switch (node().op) {
    case Op::kConv2d:
    case Op::kLinear:
      return add_conv();
    case Op::kMaxPool2d:
    case Op::kAvgPool2d:
    case Op::kAdaptiveAvgPool2d:
    case Op::kFloatMaxPool2d:
    case Op::kFloatAvgPool2d:
    case Op::kFloatAdaptiveAvgPool2d:
      return add_pool();
    case Op::kConcat:
    case Op::kFlatten:
    case Op::kSlice:
    case Op::kPad:
    case Op::kDilate:
      return add_move();
    case Op::kFloatConv2d:
    case Op::kFloatLinear:
      return add_float_conv();
    default:
      return is_float_op(node().op) ? add_float() : add_map();
  }
}

void ProgramBuilder::add(const Step& step, const char* kernel) {
  program_.steps.push_back(step);
  program_.names.push_back({name_, kernel});
}

Codes ProgramBuilder::codes(int value) const {
  const ImageSlot& slot = layout_.image(value);
  return {slot.offset, static_cast<int>(slot.row_stride), static_cast<int>(slot.pixel_stride)};
}

Floats ProgramBuilder::floats(const FloatSlot& slot) {
  using To = Floats::Memory;
  using From = FloatSlot::Memory;
  const To memory = slot.memory == From::kInput    ? To::kInput
                    : slot.memory == From::kOutput ? To::kOutput
                                                   : To::kArena;
  return {memory, slot.offset, static_cast<int>(slot.channel_stride), static_cast<int>(slot.row_stride),
          static_cast<int>(slot.pixel_stride)};
}

Extent ProgramBuilder::extent(const Value& value, int64_t unit) {
  const int64_t units = (value.channels + unit - 1) / unit;
  program_.most_items = std::max(program_.most_items, value.pixels() * units);
  return {static_cast<int>(value.channels), static_cast<int>(value.height),
          static_cast<int>(value.width),    Divisor::of(units),
          Divisor::of(value.width),         Divisor::of(value.pixels())};
}

void ProgramBuilder::add_map() {
  const Attributes& a = node().attributes;
  switch (node().op) {
    case Op::kQuantize: {
      const bool tells = layout_.source(node().inputs[0]) == 0;
      return add(Quantize{in_floats(), out_codes(), extent(out(), kQuad), 1.0f / out().scale,
                          static_cast<float>(out().zero_point), quant_min(), quant_max(), tells},
                 "quantize");
    }
    case Op::kAdd:
      return add(Add{in_codes(0), in_codes(1), out_codes(), extent(out(), kQuad), in(0).zero_point,
                     in(1).zero_point, a.multiplier_a, a.multiplier_b, a.bias, quant_min(), quant_max()},
                 "add");
    case Op::kAffine: {
      const int64_t channels = out().channels;
      return add(Affine{in_codes(), out_codes(), extent(out(), 1), constant(node().zero_point, channels),
                        constant(node().multiplier, channels), constant(node().bias, channels), quant_min(),
                        quant_max()},
                 "affine");
    }
    case Op::kLookup:
      return add(Lookup{in_codes(), out_codes(), extent(out(), kQuad), constant(node().table, 256)}, "lookup");
    case Op::kDequantize:
      return add(Dequantize{in_codes(), out_floats(), extent(in(), 1), in().scale,
                            static_cast<float>(in().zero_point)},
                 "dequantize");
    default:
      return add(Softmax{in_floats(), out_floats(), static_cast<int>(out().channels)}, "softmax");
  }
}

namespace {

// The check of the graph says that every window meets the image.
std::vector<Span> window_spans(const Attributes& a, int axis, int64_t size, int64_t count, bool dilated) {
  const int64_t step = dilated ? a.dilation[axis] : 1;
  std::vector<Span> spans;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = i * a.stride[axis] - a.padding[axis];
    const int64_t begin = start >= 0 ? start : start + (-start + step - 1) / step * step;
    const int64_t end = std::min(start + (a.kernel[axis] - 1) * step + 1, size);
    // A step beyond the image is never taken, and may be of any size in the file.
    spans.push_back({static_cast<int>(begin), static_cast<int>(end), static_cast<int>(std::min(step, size)),
                     static_cast<int>((end - begin + step - 1) / step)});
  }
  return spans;
}

// torch's.
std::vector<Span> adaptive_spans(int64_t size, int64_t count) {
  std::vector<Span> spans;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = static_cast<int>(i * size / count);
    const auto end = static_cast<int>(((i + 1) * size + count - 1) / count);
    spans.push_back({begin, end, 1, end - begin});
  }
  return spans;
}

}  // namespace

void ProgramBuilder::add_pool() {
  const Attributes& a = node().attributes;
  const Op op = node().op;
  const bool adaptive = op == Op::kAdaptiveAvgPool2d || op == Op::kFloatAdaptiveAvgPool2d;
  const bool largest = op == Op::kMaxPool2d || op == Op::kFloatMaxPool2d;
  const auto spans = [&](int axis, int64_t size, int64_t count) {
    const std::vector<Span> found =
        adaptive ? adaptive_spans(size, count) : window_spans(a, axis, size, count, largest);
    return constant(found.data(), count);
  };
  const Constant<Span> rows = spans(0, in().height, out().height), columns = spans(1, in().width, out().width);
  const bool counts_padding = !adaptive && !largest && a.count_include_pad != 0;
  const int64_t divisor = counts_padding ? a.kernel[0] * a.kernel[1] : 0;
  if (is_float_op(op)) {
    add(FloatPool{in_float_image(), out_floats(), extent(out(), 1), rows, columns, largest,
                  static_cast<float>(divisor)},
        op_name(op));
  } else if (largest) {
    add(MaxPool{in_codes(), out_codes(), extent(out(), kQuad), rows, columns}, op_name(op));
  } else {
    add(AvgPool{in_codes(), out_codes(), extent(out(), kQuad), rows, columns, static_cast<int>(divisor),
                in().zero_point, a.multiplier, a.bias, quant_min(), quant_max()},
        op_name(op));
  }
}

}  // namespace pqk::engine::device
