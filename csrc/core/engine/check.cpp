#include "core/engine/check.h"

#include <algorithm>
#include <cmath>

#include "core/engine/schema.h"
#include "core/error.h"
#include "core/int8_weights.h"

namespace pqk::engine {
namespace {

constexpr int64_t kMaxWeightSum = INT32_MAX / 255;
// Of positions, so that the sum of their codes fits int32.
constexpr int64_t kMaxWindow = INT32_MAX / 255;

std::string text(int rank, int64_t c, int64_t h, int64_t w) {
  std::string shape = "(";
  shape.append(std::to_string(c)).append(",");
  if (rank == 3) shape.append(" ").append(std::to_string(h)).append(", ").append(std::to_string(w));
  return shape.append(")");
}

std::string text(const Value& value) { return text(value.rank, value.channels, value.height, value.width); }

std::string indexed(const char* name, size_t index) {
  std::string field(name);
  return field.append("[").append(std::to_string(index)).append("]");
}

class Checker {
 public:
  Checker(const Graph& graph, const RawNode& raw, const std::string& label, const Node& node)
      : graph_(graph),
        raw_(raw),
        label_(label),
        node_(node),
        in_(graph.value(node.inputs[0])),
        out_(node.value) {}

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
      case Op::kDequantize:
        return dequantize();
      case Op::kSoftmax:
        return softmax();
    }
  }

 private:
  const Graph& graph_;
  const RawNode& raw_;
  const std::string& label_;
  const Node& node_;
  const Value& in_;
  const Value& out_;

  [[noreturn]] void fail(const char* code, const std::string& field, const std::string& expected,
                         const std::string& got) const {
    throw FormatError(code, label_ + "." + field, -1, expected, got);
  }

  // --- what several operators ask for ---------------------------------------------------------------------
  std::string slot(size_t index) const { return indexed("inputs", index); }

  void input_codes(size_t index, bool with_qparams = true) const {
    const Value& value = graph_.value(node_.inputs[index]);
    if (value.dtype != DType::kU8) fail("E_GRAPH_REF", slot(index), "a u8 value", "an f32 value");
    if (with_qparams && !value.has_qparams) {
      fail("E_QPARAM", slot(index), "a value with one scale and zero_point", "one without");
    }
  }

  void input_image() const {
    if (in_.rank != 3) fail("E_GRAPH_SHAPE", slot(0), "a (C, H, W) value", text(in_));
  }

  void output_codes() const {
    if (out_.dtype != DType::kU8) fail("E_ENUM", "value.dtype", "'u8'", "'f32'");
  }

  void output_floats() const {
    if (out_.dtype != DType::kF32) fail("E_ENUM", "value.dtype", "'f32'", "'u8'");
  }

  void shape_is(int rank, int64_t c, int64_t h, int64_t w) const {
    if (out_.rank == rank && out_.channels == c && out_.height == h && out_.width == w) return;
    fail("E_GRAPH_SHAPE", "value.shape", text(rank, c, h, w), text(out_));
  }

  void shape_as(const Value& other) const { shape_is(other.rank, other.channels, other.height, other.width); }

  void same_qparams(const Value& other, size_t index) const {
    if (out_.has_qparams == other.has_qparams &&
        (!out_.has_qparams || (out_.scale == other.scale && out_.zero_point == other.zero_point))) {
      return;
    }
    fail("E_QPARAM", "value.scale", "scale and zero_point of " + slot(index), "others");
  }

  void tensor_size(const char* name, size_t axis, int64_t size) const {
    const int64_t got = raw_.tensors.at(name).shape[axis];
    if (got == size) return;
    fail("E_GRAPH_SHAPE", std::string("tensors.") + name + ".shape[" + std::to_string(axis) + "]",
         std::to_string(size), std::to_string(got));
  }

  void finite_tensor(const char* name, const float* values, double limit) const {
    tensor_size(name, 0, out_.channels);
    for (int64_t c = 0; c < out_.channels; ++c) {
      if (std::fabs(values[c]) <= limit) continue;
      fail("E_QPARAM", std::string("tensors.") + name + "[" + std::to_string(c) + "]",
           "a finite number of bounded magnitude", std::to_string(values[c]));
    }
  }

  void channel_scales() const {
    finite_tensor("multiplier", node_.multiplier, kMaxMultiplier);
    finite_tensor("bias", node_.bias, kMaxBias);
  }

  // Output length along one axis; every sum fits int64, as each term is below 2^31 or a product of two such.
  int64_t window_count(int axis, int64_t size, int64_t kernel, int64_t dilation) const {
    const Attributes& a = node_.attributes;
    const int64_t room = size + a.padding[axis] + a.padding[axis + 2] - ((kernel - 1) * dilation + 1);
    if (room < 0) {
      fail("E_GRAPH_SHAPE", slot(0),
           "at least the kernel's extent " + std::to_string((kernel - 1) * dilation + 1),
           std::to_string(size + a.padding[axis] + a.padding[axis + 2]) + " with padding");
    }
    return room / a.stride[axis] + 1;
  }

  // Every window along the axis holds at least one position of the image.
  void windows_not_empty(int axis, int64_t size, int64_t count, int64_t kernel, int64_t dilation) const {
    const Attributes& a = node_.attributes;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t start = i * a.stride[axis] - a.padding[axis];
      const int64_t first = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
      if (first < kernel && start + first * dilation < size) continue;
      fail("E_GRAPH_ATTR", "padding", "windows that overlap the image", "one of padding only");
    }
  }

  // --- operators
  // ----------------------------------------------------------------------------------------------
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
    input_image();
    const Attributes& a = node_.attributes;
    const std::vector<int64_t>& w = raw_.tensors.at("weight").shape;
    for (size_t axis = 0; axis < 4; ++axis) {
      if (w[axis] < 1) tensor_size("weight", axis, 1);
    }
    if (in_.channels % a.groups != 0 || w[0] % a.groups != 0) {
      fail("E_GRAPH_ATTR", "groups",
           "a divisor of " + std::to_string(in_.channels) + " and " + std::to_string(w[0]),
           std::to_string(a.groups));
    }
    tensor_size("weight", 1, in_.channels / a.groups);
    shape_is(3, w[0], window_count(0, in_.height, w[2], a.dilation[0]),
             window_count(1, in_.width, w[3], a.dilation[1]));
    accumulation(w[1] * w[2] * w[3]);
  }

  void linear() const {
    if (in_.rank != 1) fail("E_GRAPH_SHAPE", slot(0), "a (C,) value", text(in_));
    tensor_size("weight", 1, in_.channels);
    const int64_t features = raw_.tensors.at("weight").shape[0];
    shape_is(1, features, 1, 1);
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
      input_codes(i, false);
      const Value& value = graph_.value(node_.inputs[i]);
      if (value.rank != in_.rank || value.height != in_.height || value.width != in_.width) {
        fail("E_GRAPH_SHAPE", slot(i), "rank, height and width of inputs[0] " + text(in_), text(value));
      }
      channels += value.channels;
      if (out_.has_qparams) same_qparams(value, i);
    }
    output_codes();
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
    const Attributes& a = node_.attributes;
    const int64_t rows = window_count(0, in_.height, a.kernel[0], a.dilation[0]);
    const int64_t columns = window_count(1, in_.width, a.kernel[1], a.dilation[1]);
    shape_is(3, in_.channels, rows, columns);
    windows_not_empty(0, in_.height, rows, a.kernel[0], a.dilation[0]);
    windows_not_empty(1, in_.width, columns, a.kernel[1], a.dilation[1]);
  }

  void avg_pool() const {
    input_codes(0);
    input_image();
    output_codes();
    const Attributes& a = node_.attributes;
    if (a.kernel[0] * a.kernel[1] > kMaxWindow) {
      fail("E_QPARAM", "kernel", "an area of at most " + std::to_string(kMaxWindow),
           std::to_string(a.kernel[0] * a.kernel[1]));
    }
    const int64_t rows = window_count(0, in_.height, a.kernel[0], 1);
    const int64_t columns = window_count(1, in_.width, a.kernel[1], 1);
    shape_is(3, in_.channels, rows, columns);
    windows_not_empty(0, in_.height, rows, a.kernel[0], 1);
    windows_not_empty(1, in_.width, columns, a.kernel[1], 1);
  }

  void adaptive_avg_pool() const {
    input_codes(0);
    input_image();
    output_codes();
    if (in_.pixels() > kMaxWindow) {
      fail("E_QPARAM", slot(0), "at most " + std::to_string(kMaxWindow) + " positions",
           std::to_string(in_.pixels()));
    }
    shape_is(3, in_.channels, node_.attributes.output_size[0], node_.attributes.output_size[1]);
  }

  // Codes go through unchanged, so the value keeps the parameters of its input.
  void passes_codes() const {
    if (out_.dtype != in_.dtype) {
      fail("E_ENUM", "value.dtype", in_.dtype == DType::kU8 ? "'u8'" : "'f32'",
           out_.dtype == DType::kU8 ? "'u8'" : "'f32'");
    }
    same_qparams(in_, 0);
  }

  void flatten() const {
    input_image();
    passes_codes();
    shape_is(1, in_.numel(), 1, 1);
  }

  void slice() const {
    input_codes(0, false);
    input_image();
    output_codes();
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
    input_codes(0);
    input_image();
    passes_codes();
    const Attributes& a = node_.attributes;
    shape_is(3, in_.channels + a.before[0] + a.after[0], in_.height + a.before[1] + a.after[1],
             in_.width + a.before[2] + a.after[2]);
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
