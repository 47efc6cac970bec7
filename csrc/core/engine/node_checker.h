// What the rules of several operators share.
#pragma once

#include <cmath>
#include <string>

#include "core/engine/check.h"
#include "core/engine/schema.h"
#include "core/error.h"

namespace pqk::engine {

// Of positions, so that the sum of their codes fits int32.
inline constexpr int64_t kMaxWindow = INT32_MAX / 255;
inline constexpr int64_t kUndilated[2] = {1, 1};

inline std::string text(int rank, int64_t c, int64_t h, int64_t w) {
  std::string shape = "(";
  shape.append(std::to_string(c)).append(",");
  if (rank == 3) shape.append(" ").append(std::to_string(h)).append(", ").append(std::to_string(w));
  return shape.append(")");
}

inline std::string text(const Value& value) {
  return text(value.rank, value.channels, value.height, value.width);
}

inline std::string indexed(const char* name, size_t index) {
  std::string field(name);
  return field.append("[").append(std::to_string(index)).append("]");
}

class NodeChecker {
 public:
  NodeChecker(const Graph& graph, const RawNode& raw, const std::string& label, const Node& node)
      : graph_(graph),
        raw_(raw),
        label_(label),
        node_(node),
        in_(graph.value(node.inputs[0])),
        out_(node.value) {}

 protected:
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

  void same_dtype() const {
    if (out_.dtype != in_.dtype) {
      fail("E_ENUM", "value.dtype", in_.dtype == DType::kU8 ? "'u8'" : "'f32'",
           out_.dtype == DType::kU8 ? "'u8'" : "'f32'");
    }
  }

  // Codes go through unchanged, so the value keeps the parameters of its input.
  void passes_codes() const {
    same_dtype();
    same_qparams(in_, 0);
  }

  void convolution_shape() const {
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
  }

  void linear_shape() const {
    if (in_.rank != 1) fail("E_GRAPH_SHAPE", slot(0), "a (C,) value", text(in_));
    tensor_size("weight", 1, in_.channels);
    shape_is(1, raw_.tensors.at("weight").shape[0], 1, 1);
  }

  // Of a pool, whose windows all meet the image.
  void pooled_shape(const int64_t* dilation) const {
    const int64_t* kernel = node_.attributes.kernel;
    const int64_t rows = window_count(0, in_.height, kernel[0], dilation[0]);
    const int64_t columns = window_count(1, in_.width, kernel[1], dilation[1]);
    shape_is(3, in_.channels, rows, columns);
    windows_not_empty(0, in_.height, rows, kernel[0], dilation[0]);
    windows_not_empty(1, in_.width, columns, kernel[1], dilation[1]);
  }

  void bounded_window() const {
    const int64_t* kernel = node_.attributes.kernel;
    if (kernel[0] * kernel[1] <= kMaxWindow) return;
    fail("E_QPARAM", "kernel", "an area of at most " + std::to_string(kMaxWindow),
         std::to_string(kernel[0] * kernel[1]));
  }

  void bounded_image() const {
    if (in_.pixels() <= kMaxWindow) return;
    fail("E_QPARAM", slot(0), "at most " + std::to_string(kMaxWindow) + " positions",
         std::to_string(in_.pixels()));
  }
};

}  // namespace pqk::engine
