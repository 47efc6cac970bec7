#include <cmath>

#include "core/add.h"
#include "core/affine.h"
#include "core/engine/steps.h"
#include "core/lookup.h"
#include "core/numerics.h"
#include "core/quantize_image.h"
#include "core/softmax.h"

namespace pqk::engine {
namespace {

std::unique_ptr<Step> quantize(const StepContext& context) {
  const Value& out = context.out();
  const QuantizeImageParams params{out.channels,   out.height,          out.width,          1.0f / out.scale,
                                   out.zero_point, context.quant_min(), context.quant_max()};
  // A NaN that float operators made of large numbers is none of the caller's: it gets quant_min.
  const bool tells = context.layout.source(context.node.inputs[0]) == 0;
  return step_of("quantize", out.height, 4 * out.numel(), kBytesPerThread,
                 [kernel = active_quantize_image_kernel(), params, tells, input = context.in_floats(),
                  output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
                   const int64_t nan = kernel(params, input.read(frame), output.at(frame), begin, end);
                   return tells ? nan : int64_t{-1};
                 });
}

std::unique_ptr<Step> dequantize(const StepContext& context) {
  const Value& in = context.in();
  const DequantizeImageParams params{in.channels, in.width, in.scale, in.zero_point};
  return step_of("dequantize", in.height, 4 * in.numel(), kBytesPerThread,
                 [kernel = active_dequantize_image_kernel(), params, input = context.in_image(),
                  output = context.out_floats()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(params, input.at(frame), output.at(frame), begin, end);
                 });
}

std::unique_ptr<Step> add(const StepContext& context) {
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  const double multiplier = std::fabs(double{a.multiplier_a}) + std::fabs(double{a.multiplier_b});
  const AddParams params{out.channels,
                         out.width,
                         context.in(0).zero_point,
                         context.in(1).zero_point,
                         a.multiplier_a,
                         a.multiplier_b,
                         a.bias,
                         context.quant_min(),
                         context.quant_max(),
                         fits_int32(255, multiplier, double{a.bias})};
  return step_of(
      "add", out.height, 3 * out.numel(), kBytesPerThread,
      [kernel = active_add_kernel(), params, first = context.in_image(0), second = context.in_image(1),
       output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
        kernel(params, first.at(frame), second.at(frame), output.at(frame), begin, end);
      });
}

std::unique_ptr<Step> affine(const StepContext& context) {
  const Value& out = context.out();
  const Node& node = context.node;
  struct Channels {
    std::vector<uint8_t> zero_point;
    std::vector<float> multiplier, bias;
  };
  Channels channels{{node.zero_point, node.zero_point + out.channels},
                    {node.multiplier, node.multiplier + out.channels},
                    {node.bias, node.bias + out.channels}};
  bool fit = true;
  for (size_t c = 0; c < channels.bias.size(); ++c) {
    fit = fit && fits_int32(255, double{channels.multiplier[c]}, double{channels.bias[c]});
  }
  const AffineParams params{
      out.channels,         out.width,           channels.zero_point.data(), channels.multiplier.data(),
      channels.bias.data(), context.quant_min(), context.quant_max(),        fit};
  return step_of(
      "affine", out.height, 2 * out.numel(), kBytesPerThread,
      [kernel = active_affine_kernel(), params, channels = std::move(channels), input = context.in_image(),
       output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
        kernel(params, input.at(frame), output.at(frame), begin, end);
      });
}

std::unique_ptr<Step> lookup(const StepContext& context) {
  const Value& out = context.out();
  std::vector<uint8_t> table(context.node.table, context.node.table + 256);
  const LookupParams params{out.channels, out.width, table.data()};
  return step_of("lookup", out.height, 2 * out.numel(), kBytesPerThread,
                 [kernel = active_lookup_kernel(), params, table = std::move(table), input = context.in_image(),
                  output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(params, input.at(frame), output.at(frame), begin, end);
                 });
}

std::unique_ptr<Step> softmax(const StepContext& context) {
  return step_of("softmax", 1, context.out().channels, kBytesPerThread,
                 [kernel = active_softmax_kernel(), input = context.in_floats(), output = context.out_floats(),
                  channels = context.out().channels](const Frame& frame, int64_t, int64_t) {
                   kernel(input.read(frame).data, output.at(frame).data, channels);
                 });
}

}  // namespace

std::unique_ptr<Step> make_map_step(const StepContext& context) {
  switch (context.node.op) {
    case Op::kQuantize:
      return quantize(context);
    case Op::kAdd:
      return add(context);
    case Op::kAffine:
      return affine(context);
    case Op::kLookup:
      return lookup(context);
    case Op::kDequantize:
      return dequantize(context);
    default:
      return softmax(context);
  }
}

}  // namespace pqk::engine
