// Which attributes and tensors each operator has: the C++ side of OPS in graph.py.
#pragma once

#include "core/engine/graph.h"

namespace pqk::engine {

// Keep every float32 expression of the formulas finite, as |accumulator| < 2^31.
inline constexpr double kMaxMultiplier = 0x1p64;
inline constexpr double kMaxBias = 0x1p96;
inline constexpr int64_t kMaxCodebook = 256;  // entries; a weight is an int8 code

struct AttributeField {
  enum class Kind { kInt, kInts, kFloat, kFunction };
  const char* name;
  Kind kind;
  int count;      // of integers
  size_t offset;  // in Attributes
  int64_t low, high;
};

struct OpSchema {
  const char* name;
  size_t min_inputs, max_inputs;
  std::vector<const char*> attributes;
  std::vector<const char*> tensors;
  std::vector<const char*> optional;  // attributes that may be absent
};

const OpSchema& schema_of(Op op);
// Throws E_ENUM for a name that is no operator.
Op parse_op(const std::string& name, const std::string& label);
// Fills node.attributes and the tensor pointers; throws E_GRAPH_ATTR for a missing, unknown, wrongly typed or
// out of range field, E_QPARAM for a quantization range, E_GRAPH_SHAPE for a tensor of the wrong rank.
void parse_fields(const RawNode& raw, const std::string& label, Node& node);
bool has_attribute(const RawNode& raw, const char* name);

}  // namespace pqk::engine
