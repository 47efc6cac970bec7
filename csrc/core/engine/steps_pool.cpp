#include "core/avg_pool2d.h"
#include "core/engine/steps.h"
#include "core/max_pool2d.h"
#include "core/numerics.h"

namespace pqk::engine {
namespace {

std::unique_ptr<Step> max_pool(const StepContext& context) {
  const Value& in = context.in();
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  const MaxPool2dParams params{in.channels,  in.height,    in.width,      out.width,
                               a.kernel[0],  a.kernel[1],  a.stride[0],   a.stride[1],
                               a.padding[0], a.padding[1], a.dilation[0], a.dilation[1]};
  return step_of("max_pool2d", out.height, in.numel() + out.numel(), kBytesPerThread,
                 [kernel = active_max_pool2d_kernel(), params, input = context.in_image(),
                  output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(params, input.at(frame), output.at(frame), begin, end);
                 });
}

std::vector<PoolSpan> fixed_spans(int64_t count, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
  std::vector<PoolSpan> spans;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = i * stride - pad;
    spans.push_back({static_cast<int32_t>(std::max<int64_t>(start, 0)),
                     static_cast<int32_t>(std::min(start + kernel, size))});
  }
  return spans;
}

std::vector<PoolSpan> adaptive_spans(int64_t count, int64_t size) {
  std::vector<PoolSpan> spans;
  for (int64_t i = 0; i < count; ++i) {
    spans.push_back(
        {static_cast<int32_t>(i * size / count), static_cast<int32_t>(((i + 1) * size + count - 1) / count)});
  }
  return spans;
}

std::unique_ptr<Step> avg_pool(const StepContext& context, const char* name, std::vector<PoolSpan> rows,
                               std::vector<PoolSpan> columns, int64_t divisor) {
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  const AvgPool2dParams params{out.channels,
                               out.width,
                               rows.data(),
                               columns.data(),
                               divisor,
                               context.in().zero_point,
                               a.multiplier,
                               a.bias,
                               context.quant_min(),
                               context.quant_max(),
                               fits_int32(255, double{a.multiplier}, double{a.bias})};
  return step_of(name, out.height, context.in().numel() + out.numel(), kBytesPerThread,
                 [kernel = active_avg_pool2d_kernel(), params, rows = std::move(rows),
                  columns = std::move(columns), input = context.in_image(),
                  output = context.out_image()](const Frame& frame, int64_t begin, int64_t end) {
                   kernel(params, input.at(frame), output.at(frame), begin, end);
                 });
}

}  // namespace

std::unique_ptr<Step> make_pool_step(const StepContext& context) {
  const Value& in = context.in();
  const Value& out = context.out();
  const Attributes& a = context.node.attributes;
  if (context.node.op == Op::kMaxPool2d) return max_pool(context);
  if (context.node.op == Op::kAdaptiveAvgPool2d) {
    return avg_pool(context, "adaptive_avg_pool2d", adaptive_spans(out.height, in.height),
                    adaptive_spans(out.width, in.width), 0);
  }
  return avg_pool(context, "avg_pool2d",
                  fixed_spans(out.height, in.height, a.kernel[0], a.stride[0], a.padding[0]),
                  fixed_spans(out.width, in.width, a.kernel[1], a.stride[1], a.padding[1]),
                  a.count_include_pad != 0 ? a.kernel[0] * a.kernel[1] : 0);
}

}  // namespace pqk::engine
