#include "core/engine/graph.h"

#include <cmath>
#include <limits>

#include "core/engine/check.h"
#include "core/engine/schema.h"
#include "core/error.h"

namespace pqk::engine {
namespace {

[[noreturn]] void fail(const char* code, const std::string& field, const std::string& expected,
                       const std::string& got) {
  throw FormatError(code, field, -1, expected, got);
}

void parse_qparams(const RawValue& raw, const std::string& label, Value& value) {
  if (raw.has_scale != raw.has_zero_point) {
    fail("E_QPARAM", label, "scale and zero_point, or neither",
         raw.has_scale ? "scale only" : "zero_point only");
  }
  value.has_qparams = raw.has_scale;
  if (!raw.has_scale) return;
  if (value.dtype == DType::kF32) fail("E_QPARAM", label + ".scale", "none for f32", std::to_string(raw.scale));
  value.scale = static_cast<float>(raw.scale);
  if (!(raw.scale > 0) || !std::isnormal(value.scale)) {
    fail("E_QPARAM", label + ".scale", "a positive, finite, normal number", std::to_string(raw.scale));
  }
  if (raw.zero_point < 0 || raw.zero_point > 255) {
    fail("E_QPARAM", label + ".zero_point", "an integer from 0 to 255", std::to_string(raw.zero_point));
  }
  value.zero_point = static_cast<int32_t>(raw.zero_point);
}

Value parse_value(const RawValue& raw, const std::string& label, const Limits& limits) {
  Value value;
  if (raw.dtype != "u8" && raw.dtype != "f32") {
    fail("E_ENUM", label + ".dtype", "'u8' or 'f32'", "'" + raw.dtype + "'");
  }
  value.dtype = raw.dtype == "u8" ? DType::kU8 : DType::kF32;
  if (raw.shape.size() != 1 && raw.shape.size() != 3) {
    fail("E_GRAPH_SHAPE", label + ".shape", "(C,) or (C, H, W)",
         std::to_string(raw.shape.size()) + " dimensions");
  }
  value.rank = static_cast<int>(raw.shape.size());
  int64_t bytes = value.dtype == DType::kU8 ? 1 : 4;
  for (size_t i = 0; i < raw.shape.size(); ++i) {
    const int64_t size = raw.shape[i];
    if (size < 1 || size > INT32_MAX) {
      fail("E_GRAPH_SHAPE", label + ".shape[" + std::to_string(i) + "]", "a size from 1 to 2147483647",
           std::to_string(size));
    }
    if (__builtin_mul_overflow(bytes, size, &bytes) || bytes > limits.activation_bytes) {
      fail("E_BOMB", label + ".shape", "at most " + std::to_string(limits.activation_bytes) + " bytes", "more");
    }
  }
  value.channels = raw.shape[0];
  if (value.rank == 3) {
    value.height = raw.shape[1];
    value.width = raw.shape[2];
  }
  parse_qparams(raw, label, value);
  return value;
}

}  // namespace

std::string node_label(size_t index, const std::string& name) {
  return "nodes[" + std::to_string(index) + "] '" + name + "'";
}

Graph::Graph(const RawValue& input, const Limits& limits) : limits_(limits) {
  sequence_ = input.shape.size() == 2;
  RawValue image = input;
  if (sequence_) image.shape.insert(image.shape.begin() + 1, 1);
  input_ = parse_value(image, "input", limits);
  if (input_.dtype != DType::kF32) fail("E_ENUM", "input.dtype", "'f32'", "'" + input.dtype + "'");
}

void Graph::add(const RawNode& raw) {
  const std::string label = node_label(nodes_.size(), raw.name);
  Node node;
  node.op = parse_op(raw.op, label);
  node.name = raw.name;
  node.coded_weight = raw.coded_weight;
  const OpSchema& schema = schema_of(node.op);
  if (raw.inputs.size() < schema.min_inputs || raw.inputs.size() > schema.max_inputs) {
    fail("E_GRAPH_REF", label + ".inputs",
         std::to_string(schema.min_inputs) + " to " + std::to_string(schema.max_inputs),
         std::to_string(raw.inputs.size()));
  }
  for (size_t slot = 0; slot < raw.inputs.size(); ++slot) {
    const int64_t index = raw.inputs[slot];
    if (index < 0 || index > static_cast<int64_t>(nodes_.size())) {
      fail("E_GRAPH_REF", label + ".inputs[" + std::to_string(slot) + "]",
           "an earlier value, 0 to " + std::to_string(nodes_.size()), std::to_string(index));
    }
    node.inputs.push_back(static_cast<int>(index));
  }
  node.value = parse_value(raw.value, label + ".value", limits_);
  parse_fields(raw, label, node);
  check_node(*this, raw, label, node);
  nodes_.push_back(std::move(node));
}

void Graph::finish() const {
  if (nodes_.empty()) fail("E_GRAPH_REF", "nodes", "at least one node", "none");
  if (output().dtype != DType::kF32) {
    fail("E_ENUM", node_label(nodes_.size() - 1, nodes_.back().name) + ".value.dtype",
         "'f32', it is the output", "'u8'");
  }
  if (sequence_ && output().height != 1) {
    fail("E_GRAPH_SHAPE", node_label(nodes_.size() - 1, nodes_.back().name) + ".value.shape",
         "height 1, as the input is (C, L)", std::to_string(output().height));
  }
}

}  // namespace pqk::engine
