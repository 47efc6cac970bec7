// Nodes that only move values.
#include "core/cuda/engine/program_builder.h"

namespace pqk::engine::device {
namespace {

// By axis, C, H, W; where they are all the same, the output's indices are those of the input.
struct Map {
  int64_t start[3] = {}, step[3] = {1, 1, 1}, divisor[3] = {1, 1, 1};
};

Map map_of(const Node& node) {
  const Attributes& a = node.attributes;
  Map map;
  for (int axis = 0; axis < 3; ++axis) {
    if (node.op == Op::kSlice) {
      map.start[axis] = a.start[axis];
      map.step[axis] = a.stop[axis] - a.start[axis] <= a.step[axis] ? 1 : a.step[axis];  // one index: any step
    } else if (node.op == Op::kPad) {
      map.start[axis] = -a.before[axis];
    } else if (node.op == Op::kDilate && axis > 0) {
      map.divisor[axis] = a.dilation[axis - 1];
    }
  }
  return map;
}

Axis axis_of(const Map& map, int axis, int64_t size) {
  return {static_cast<int>(map.start[axis]), static_cast<int>(map.step[axis]),
          static_cast<int>(map.divisor[axis]), static_cast<int>(size)};
}

// How values lie as floats: C slowest, dense.
Floats planes(const Value& shape, Floats::Memory memory) {
  return {memory, 0, static_cast<int>(shape.pixels()), static_cast<int>(shape.width), 1};
}

}  // namespace

void ProgramBuilder::add_moved_codes(const Node& node, const Value& from, const Value& to, const Codes& input,
                                     const Codes& output, int output_channel_stride) {
  const Map map = map_of(node);
  add(MoveCodes{input,
                output,
                output_channel_stride,
                extent(to, 1),
                {axis_of(map, 0, from.channels), axis_of(map, 1, from.height), axis_of(map, 2, from.width)},
                from.zero_point},
      "copy");
}

void ProgramBuilder::add_moved_floats(const Node* node, const Value& from, const Value& to, const Floats& input,
                                      const Floats& output, bool tells) {
  const Map map = node == nullptr ? Map{} : map_of(*node);
  add(MoveFloats{input,
                 output,
                 extent(to, 1),
                 {axis_of(map, 0, from.channels), axis_of(map, 1, from.height), axis_of(map, 2, from.width)},
                 tells},
      "copy");
}

void ProgramBuilder::add_concat() {
  int64_t channel = 0;
  for (size_t slot = 0; slot < node().inputs.size(); ++slot) {
    const Value& part = in(slot);
    if (out().dtype == DType::kF32) {
      Floats to = out_floats();
      to.offset += 4 * channel;
      add_moved_floats(nullptr, part, part, in_float_image(slot), to, false);
    } else if (!layout_.is_in_place(node().inputs[slot], value_)) {
      Codes to = out_codes();
      to.offset += channel;
      add_moved_codes(node(), part, part, in_codes(slot), to, 1);
    }
    channel += part.channels;
  }
}

void ProgramBuilder::add_move() {
  const bool floats = out().dtype == DType::kF32;
  if (node().op == Op::kConcat) return add_concat();
  if (node().op == Op::kFlatten) {
    // The output seen as the image that it was.
    if (floats) {
      Floats to = out_floats();
      const Floats dense = planes(in(), to.memory);
      to.channel_stride = dense.channel_stride, to.row_stride = dense.row_stride, to.pixel_stride = 1;
      return add_moved_floats(nullptr, in(), in(), in_floats(), to, false);
    }
    const Codes to{out_codes().offset, static_cast<int>(in().width), 1};
    return add_moved_codes(node(), in(), in(), in_codes(), to, static_cast<int>(in().pixels()));
  }
  if (floats) return add_moved_floats(&node(), in(), out(), in_float_image(), out_floats(), false);
  add_moved_codes(node(), in(), out(), in_codes(), out_codes(), 1);
}

void ProgramBuilder::add_import(int value) {
  name_ = value == 0 ? "input" : node().name;
  const Value& shape = graph_.value(value);
  add_moved_floats(nullptr, shape, shape, floats(layout_.floats(value)), floats(layout_.float_image(value)),
                   value == 0);
}

void ProgramBuilder::add_reordered_output() {
  name_ = "output";
  const Value& shape = graph_.output();
  const int value = static_cast<int>(graph_.nodes().size());
  add_moved_floats(nullptr, shape, shape, floats(layout_.floats(value)), planes(shape, Floats::Memory::kOutput),
                   false);
}

}  // namespace pqk::engine::device
