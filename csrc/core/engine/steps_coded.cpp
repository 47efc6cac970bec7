// Convolutions and linear layers whose weights stay as they are in the file and are decoded in each run.
#include <cstring>
#include <stdexcept>

#include "core/coded_conv2d.h"
#include "core/coded_linear.h"
#include "core/engine/steps.h"

namespace pqk::engine {
namespace {

// Null where the codec gives no rows by themselves. Reads all of them: what a run decodes later is then known
// to be whole.
std::shared_ptr<const CodedWeight> open_coded(const Node& node, WeightShape shape) {
  const CodedPayload& payload = node.coded_weight;
  if (payload.codec.empty()) return nullptr;
  const std::string field = "'" + node.name + "'.weight";
  const WeightCodec& codec = weight_codec(payload.codec, field);
  if (codec.open == nullptr) return nullptr;
  std::shared_ptr<const CodedWeight> weight = codec.open(payload.bytes, shape, field);
  const int64_t row_size = shape.row_size();
  std::vector<int8_t> row(static_cast<size_t>(row_size));
  CodedRows rows(*weight, shape, 0);
  for (int64_t i = 0; i < shape.rows; ++i) {
    rows.next(1, row.data());
    if (std::memcmp(row.data(), node.weight + i * row_size, row.size()) == 0) continue;
    throw std::invalid_argument("coded: the payload of " + field + " is that of another weight");
  }
  return weight;
}

std::unique_ptr<Step> make_coded_linear_step(const StepContext& context, WeightShape shape,
                                             const Conv2dConstants& constants) {
  std::shared_ptr<const CodedWeight> weight = open_coded(context.node, shape);
  if (weight == nullptr) return nullptr;
  const Value& in = context.graph.value(context.layout.source(context.node.inputs[0]));
  const auto linear = std::make_shared<const CodedLinear>(std::move(weight), shape, constants);
  const bool codes = !constants.float_output, residual = constants.has_residual;
  Int8LinearRows geometry{};
  geometry.channels = in.channels;
  geometry.height = in.height;
  geometry.width = in.width;
  std::unique_ptr<Step> step = batch_step_of(
      "coded", linear->panels(), shape.count, kProductsPerThread,
      [linear, codes, residual, geometry, input = context.in_image(),
       other = residual ? context.in_image(1) : ImageSlot{}, output = codes ? context.out_image() : ImageSlot{},
       floats = codes ? FloatSlot{} : context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
        Int8LinearRows rows = geometry;
        rows.input = input.at(frame);
        if (residual) rows.residual = other.at(frame).data;
        if (codes) {
          rows.output = output.at(frame).data;
        } else {
          rows.float_output = floats.at(frame).data;
          rows.float_step = floats.step(frame);
        }
        rows.input_step = rows.residual_step = rows.output_step = frame.arena_step;
        rows.count = frame.images;
        linear->run(rows, begin, end, frame.scratch);
      });
  step->scratch_bytes = linear->scratch_bytes(context.most_images);
  return step;
}

std::unique_ptr<Step> make_coded_conv_step(const StepContext& context, const Conv2dShape& shape,
                                           WeightShape weights, const Conv2dConstants& constants) {
  if (shape.groups != 1 || shape.in_channels == 1) return nullptr;
  std::shared_ptr<const CodedWeight> weight = open_coded(context.node, weights);
  if (weight == nullptr) return nullptr;
  const auto conv = std::make_shared<const CodedConv2d>(std::move(weight), shape, constants);
  const bool codes = !constants.float_output, residual = constants.has_residual;
  const int64_t rows = shape.out_height, parts = rows * conv->panels();
  std::unique_ptr<Step> step = batch_step_of(
      "coded", parts, weights.count * rows * shape.out_width, kProductsPerThread,
      [conv, codes, residual, rows, input = context.in_image(),
       other = residual ? context.in_image(1) : ImageSlot{}, output = codes ? context.out_image() : ImageSlot{},
       floats = codes ? FloatSlot{} : context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
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
        run_parts(*conv, images, rows, begin, end);
      });
  step->scratch_bytes = conv->scratch_bytes();
  return step;
}

}  // namespace

std::unique_ptr<Step> make_coded_step(const StepContext& context, const Conv2dShape& shape,
                                      const Conv2dConstants& constants) {
  const int64_t row_size = shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
  const WeightShape weights{shape.out_channels * row_size, shape.out_channels};
  std::unique_ptr<Step> step = context.node.op == Op::kLinear
                                   ? make_coded_linear_step(context, weights, constants)
                                   : make_coded_conv_step(context, shape, weights, constants);
  if (step == nullptr) return nullptr;
  step->decodes = true;
  step->weight_bytes = context.node.coded_weight.bytes.size;
  return step;
}

}  // namespace pqk::engine
