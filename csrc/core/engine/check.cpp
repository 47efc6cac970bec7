#include "core/engine/check.h"

#include <algorithm>
#include <cmath>

#include "core/engine/node_checker.h"
#include "core/int8_weights.h"

namespace pqk::engine {
namespace {

constexpr int64_t kMaxWeightSum = INT32_MAX / 255;
class Checker : public NodeChecker {
 public:
  using NodeChecker::NodeChecker;

  void run() const {
    switch (node_.op) {
      case Op::kQuantize:
        return quantize();
      case Op::kConv2d:
        return conv2d();
      case Op::kLinear:
        return linear();
      case Op::kAdd:
        return add();
      case Op::kConcat:
        return concat();
      case Op::kAffine:
        return affine();
      case Op::kLookup:
        return lookup();
      case Op::kMaxPool2d:
        return max_pool();
      case Op::kAvgPool2d:
        return avg_pool();
      case Op::kAdaptiveAvgPool2d:
        return adaptive_avg_pool();
      case Op::kFlatten:
        return flatten();
      case Op::kSlice:
        return slice();
      case Op::kPad:
        return pad();
      case Op::kDilate:
        return dilate();
      case Op::kDequantize:
        return dequantize();
      case Op::kSoftmax:
        return softmax();
      default:
        check_float_node(graph_, raw_, label_, node_);
    }
  }

 private:
  void quantize() const {
    if (in_.dtype != DType::kF32) fail("E_GRAPH_REF", slot(0), "an f32 value", "a u8 value");
    output_codes();
    if (!out_.has_qparams) fail("E_QPARAM", "value.scale", "a number", "none");
    shape_as(in_);
    const Attributes& a = node_.attributes;
    if (out_.zero_point < a.quant_min || out_.zero_point > a.quant_max) {
      fail("E_QPARAM", "value.zero_point", "from quant_min to quant_max", std::to_string(out_.zero_point));
    }
  }

  // No partial sum of a channel can exceed int32, since |x - zero_point| <= 255.
  void bounded_sums(int64_t reduction) const {
    WeightSumsKernel* const weight_sums = active_weight_sums();
    int64_t wrong = -1, magnitude = 0;
    for (int64_t c = 0; c < out_.channels; ++c) {
      const WeightSums sums = weight_sums(node_.weight + c * reduction, reduction);
      if (sums.lowest) fail("E_QPARAM", "tensors.weight", "codes from -127 to 127", "-128");
      if (wrong >= 0 || sums.magnitude <= kMaxWeightSum) continue;
      wrong = c;
      magnitude = sums.magnitude;
    }
    if (wrong < 0) return;
    fail("E_QPARAM", "tensors.weight[" + std::to_string(wrong) + "]",
         "sum |weight| of at most " + std::to_string(kMaxWeightSum) + ", so that sums fit int32",
         std::to_string(magnitude));
  }

  void accumulation(int64_t reduction) const {
    bounded_sums(reduction);
    channel_scales();
    input_codes(0);
    const bool floats = out_.dtype == DType::kF32;
    if (!floats) output_codes();
    for (const char* name : {"quant_min", "quant_max"}) {
      if (has_attribute(raw_, name) == floats) {
        fail("E_GRAPH_ATTR", name, floats ? "none for f32" : "a value", floats ? "one" : "none");
      }
    }
    const bool residual = node_.inputs.size() == 2;
    if (has_attribute(raw_, "residual_multiplier") != residual) {
      fail("E_GRAPH_ATTR", "residual_multiplier",
           residual ? "a value for the second input" : "none without a second input",
           residual ? "none" : "one");
    }
    if (!residual) return;
    if (floats) fail("E_GRAPH_REF", "inputs", "one input for f32", "two");
    input_codes(1);
    shape_as(graph_.value(node_.inputs[1]));
  }

  void conv2d() const {
    convolution_shape();
    const std::vector<int64_t>& w = raw_.tensors.at("weight").shape;
    accumulation(w[1] * w[2] * w[3]);
  }

  void linear() const {
    linear_shape();
    accumulation(in_.channels);
  }

  void add() const {
    input_codes(0);
    input_codes(1);
    output_codes();
    shape_as(in_);
    shape_as(graph_.value(node_.inputs[1]));
  }

  void concat() const {
    int64_t channels = 0;
    for (size_t i = 0; i < node_.inputs.size(); ++i) {
      const Value& value = graph_.value(node_.inputs[i]);
      if (value.dtype != in_.dtype) fail("E_GRAPH_REF", slot(i), "the dtype of inputs[0]", "another");
      if (value.rank != in_.rank || value.height != in_.height || value.width != in_.width) {
        fail("E_GRAPH_SHAPE", slot(i), "rank, height and width of inputs[0] " + text(in_), text(value));
      }
      channels += value.channels;
      if (out_.has_qparams) same_qparams(value, i);
    }
    same_dtype();
    shape_is(in_.rank, channels, in_.height, in_.width);
  }

  void affine() const {
    input_codes(0, false);
    output_codes();
    shape_as(in_);
    tensor_size("zero_point", 0, in_.channels);
    channel_scales();
  }

  void lookup() const {
    input_codes(0, false);
    output_codes();
    shape_as(in_);
    tensor_size("table", 0, 256);
  }

  void max_pool() const {
    input_codes(0, false);
    input_image();
    passes_codes();
    pooled_shape(node_.attributes.dilation);
  }

  void avg_pool() const {
    input_codes(0);
    input_image();
    output_codes();
    bounded_window();
    pooled_shape(kUndilated);
  }

  void adaptive_avg_pool() const {
    input_codes(0);
    input_image();
    output_codes();
    bounded_image();
    shape_is(3, in_.channels, node_.attributes.output_size[0], node_.attributes.output_size[1]);
  }

  void flatten() const {
    input_image();
    passes_codes();
    shape_is(1, in_.numel(), 1, 1);
  }

  void slice() const {
    input_image();
    same_dtype();
    // A part of a concatenation may have one scale where the whole has none.
    if (in_.has_qparams) same_qparams(in_, 0);
    const Attributes& a = node_.attributes;
    const int64_t sizes[3] = {in_.channels, in_.height, in_.width};
    int64_t counts[3];
    for (size_t i = 0; i < 3; ++i) {
      if (a.stop[i] > sizes[i]) {
        fail("E_GRAPH_ATTR", indexed("stop", i), "at most " + std::to_string(sizes[i]),
             std::to_string(a.stop[i]));
      }
      if (a.start[i] >= a.stop[i]) {
        fail("E_GRAPH_ATTR", indexed("start", i), "less than stop " + std::to_string(a.stop[i]),
             std::to_string(a.start[i]));
      }
      counts[i] = (a.stop[i] - a.start[i] + a.step[i] - 1) / a.step[i];
    }
    shape_is(3, counts[0], counts[1], counts[2]);
  }

  void pad() const {
    if (in_.dtype == DType::kU8) input_codes(0);
    input_image();
    passes_codes();
    const Attributes& a = node_.attributes;
    shape_is(3, in_.channels + a.before[0] + a.after[0], in_.height + a.before[1] + a.after[1],
             in_.width + a.before[2] + a.after[2]);
  }

  void dilate() const {
    if (in_.dtype == DType::kU8) input_codes(0);
    input_image();
    passes_codes();
    const int64_t* dilation = node_.attributes.dilation;
    shape_is(3, in_.channels, (in_.height - 1) * dilation[0] + 1, (in_.width - 1) * dilation[1] + 1);
  }

  void dequantize() const {
    input_codes(0);
    output_floats();
    shape_as(in_);
  }

  void softmax() const {
    if (in_.dtype != DType::kF32) fail("E_GRAPH_REF", slot(0), "an f32 value", "a u8 value");
    if (in_.rank != 1) fail("E_GRAPH_SHAPE", slot(0), "a (C,) value", text(in_));
    output_floats();
    shape_as(in_);
  }
};

}  // namespace

void check_node(const Graph& graph, const RawNode& raw, const std::string& label, const Node& node) {
  Checker(graph, raw, label, node).run();
}

}  // namespace pqk::engine
