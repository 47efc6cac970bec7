#include "core/engine/steps.h"
#include "core/rearrange.h"

namespace pqk::engine {
namespace {

std::unique_ptr<Step> concat(const StepContext& context) {
  struct Part {
    ImageSlot slot;
    int64_t channels, at;
  };
  std::vector<Part> parts;
  int64_t at = 0;
  for (size_t i = 0; i < context.node.inputs.size(); ++i) {
    if (!context.layout.is_in_place(context.node.inputs[i], context.value)) {
      parts.push_back({context.in_image(i), context.in(i).channels, at});
    }
    at += context.in(i).channels;
  }
  if (parts.empty()) return nullptr;
  const Value& out = context.out();
  return step_of("copy", out.height, 2 * out.numel(), kBytesPerThread,
                 [parts = std::move(parts), width = out.width, output = context.out_image()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   for (const Part& part : parts) {
                     copy_channels(part.channels, width, part.at, part.slot.at(frame), output.at(frame), begin,
                                   end);
                   }
                 });
}

std::unique_ptr<Step> slice(const StepContext& context) {
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  const SliceParams params{
      out.channels, out.width, {a.start[0], a.start[1], a.start[2]}, {a.step[0], a.step[1], a.step[2]}};
  return step_of("copy", out.height, 2 * out.numel(), kBytesPerThread,
                 [params, input = context.in_image(), output = context.out_image()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   slice_rows(params, input.at(frame), output.at(frame), begin, end);
                 });
}

std::unique_ptr<Step> pad(const StepContext& context) {
  const Value& in = context.in();
  const Value& out = context.out();
  const int64_t* before = context.node.attributes.before;
  const PadParams params{in.channels,
                         in.height,
                         in.width,
                         out.channels,
                         out.height,
                         out.width,
                         {before[0], before[1], before[2]},
                         static_cast<uint8_t>(in.zero_point)};
  return step_of("copy", out.height, 2 * out.numel(), kBytesPerThread,
                 [params, input = context.in_image(), output = context.out_image()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   pad_rows(params, input.at(frame), output.at(frame), begin, end);
                 });
}

std::unique_ptr<Step> dilate(const StepContext& context) {
  const Value &in = context.in(), &out = context.out();
  const int64_t* dilation = context.node.attributes.dilation;
  const DilateParams params{
      in.channels, in.width, out.width, {dilation[0], dilation[1]}, static_cast<uint8_t>(in.zero_point)};
  return step_of("copy", out.height, 2 * out.numel(), kBytesPerThread,
                 [params, input = context.in_image(), output = context.out_image()](
                     const Frame& frame, int64_t begin, int64_t end) {
                   dilate_rows(params, input.at(frame), output.at(frame), begin, end);
                 });
}

std::unique_ptr<Step> flatten_codes(const StepContext& context) {
  const Value& in = context.in();
  return step_of("copy", in.channels, 2 * in.numel(), kBytesPerThread,
                 [height = in.height, width = in.width, input = context.in_image(),
                  output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
                   flatten_channels(height, width, input.at(frame), output.at(frame).data, begin, end);
                 });
}

// To dense C, H, W order. Rows are channels.
std::unique_ptr<Step> reorder_floats(const Value& shape, const FloatSlot& input, const FloatSlot& output) {
  return step_of("copy", shape.channels, 8 * shape.numel(), kBytesPerThread,
                 [height = shape.height, width = shape.width, input, output](const Frame& frame, int64_t begin,
                                                                             int64_t end) {
                   const ConstFloatImage from = input.read(frame);
                   float* to = output.at(frame).data + begin * height * width;
                   for (int64_t c = begin; c < end; ++c) {
                     for (int64_t y = 0; y < height; ++y) {
                       const float* row = from.data + c * from.channel_stride + y * from.row_stride;
                       for (int64_t x = 0; x < width; ++x) *to++ = row[x * from.pixel_stride];
                     }
                   }
                 });
}

}  // namespace

std::unique_ptr<Step> make_move_step(const StepContext& context) {
  switch (context.node.op) {
    case Op::kConcat:
      if (context.out().dtype == DType::kF32) return make_float_move_step(context);
      return concat(context);
    case Op::kSlice:
      if (context.out().dtype == DType::kF32) return make_float_move_step(context);
      return slice(context);
    case Op::kPad:
      if (context.out().dtype == DType::kF32) return make_float_move_step(context);
      return pad(context);
    case Op::kDilate:
      if (context.out().dtype == DType::kF32) return make_float_move_step(context);
      return dilate(context);
    default:
      if (context.out().dtype == DType::kU8) return flatten_codes(context);
      return reorder_floats(context.in(), context.in_floats(), context.out_floats());
  }
}

std::unique_ptr<Step> make_output_step(const StepContext& context) {
  FloatSlot output;
  output.memory = FloatSlot::Memory::kOutput;
  return reorder_floats(context.out(), context.out_floats(), output);
}

}  // namespace pqk::engine
