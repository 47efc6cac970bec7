#include "core/engine/schema.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "core/error.h"

namespace pqk::engine {
namespace {

constexpr int64_t kMaxInt = INT32_MAX;

const std::vector<AttributeField>& attribute_fields() {
  using Kind = AttributeField::Kind;
  static const std::vector<AttributeField> fields = {
      {"stride", Kind::kInts, 2, offsetof(Attributes, stride), 1, kMaxInt},
      {"padding", Kind::kInts, 4, offsetof(Attributes, padding), 0, kMaxInt},
      {"dilation", Kind::kInts, 2, offsetof(Attributes, dilation), 1, kMaxInt},
      {"kernel", Kind::kInts, 2, offsetof(Attributes, kernel), 1, kMaxInt},
      {"output_size", Kind::kInts, 2, offsetof(Attributes, output_size), 1, kMaxInt},
      {"start", Kind::kInts, 3, offsetof(Attributes, start), 0, kMaxInt},
      {"stop", Kind::kInts, 3, offsetof(Attributes, stop), 1, kMaxInt},
      {"step", Kind::kInts, 3, offsetof(Attributes, step), 1, kMaxInt},
      {"before", Kind::kInts, 3, offsetof(Attributes, before), 0, kMaxInt},
      {"after", Kind::kInts, 3, offsetof(Attributes, after), 0, kMaxInt},
      {"groups", Kind::kInt, 1, offsetof(Attributes, groups), 1, kMaxInt},
      {"count_include_pad", Kind::kInt, 1, offsetof(Attributes, count_include_pad), 0, 1},
      {"quant_min", Kind::kInt, 1, offsetof(Attributes, quant_min), 0, 255},
      {"quant_max", Kind::kInt, 1, offsetof(Attributes, quant_max), 0, 255},
      {"multiplier", Kind::kFloat, 0, offsetof(Attributes, multiplier), 0, 0},
      {"bias", Kind::kFloat, 0, offsetof(Attributes, bias), 0, 0},
      {"multiplier_a", Kind::kFloat, 0, offsetof(Attributes, multiplier_a), 0, 0},
      {"multiplier_b", Kind::kFloat, 0, offsetof(Attributes, multiplier_b), 0, 0},
      {"residual_multiplier", Kind::kFloat, 0, offsetof(Attributes, residual_multiplier), 0, 0},
      {"zero", Kind::kInt, 1, offsetof(Attributes, zero), 0, kMaxCodebook - 1},
      {"clamp_min", Kind::kFloat, 0, offsetof(Attributes, clamp_min), 0, 0},
      {"clamp_max", Kind::kFloat, 0, offsetof(Attributes, clamp_max), 0, 0},
      {"function", Kind::kFunction, 1, offsetof(Attributes, function), 0, 0},
  };
  return fields;
}

const std::vector<OpSchema>& schemas() {
  static const std::vector<OpSchema> list = {
      {"quantize", 1, 1, {"quant_min", "quant_max"}, {}, {}},
      {"conv2d",
       1,
       2,
       {"stride", "padding", "dilation", "groups", "quant_min", "quant_max", "residual_multiplier"},
       {"weight", "multiplier", "bias"},
       {"quant_min", "quant_max", "residual_multiplier"}},
      {"linear",
       1,
       2,
       {"quant_min", "quant_max", "residual_multiplier"},
       {"weight", "multiplier", "bias"},
       {"quant_min", "quant_max", "residual_multiplier"}},
      {"add", 2, 2, {"multiplier_a", "multiplier_b", "bias", "quant_min", "quant_max"}, {}, {}},
      {"concat", 1, 65535, {}, {}, {}},
      {"affine", 1, 1, {"quant_min", "quant_max"}, {"zero_point", "multiplier", "bias"}, {}},
      {"lookup", 1, 1, {}, {"table"}, {}},
      {"max_pool2d", 1, 1, {"kernel", "stride", "padding", "dilation"}, {}, {}},
      {"avg_pool2d",
       1,
       1,
       {"kernel", "stride", "padding", "count_include_pad", "multiplier", "bias", "quant_min", "quant_max"},
       {},
       {}},
      {"adaptive_avg_pool2d", 1, 1, {"output_size", "multiplier", "bias", "quant_min", "quant_max"}, {}, {}},
      {"flatten", 1, 1, {}, {}, {}},
      {"slice", 1, 1, {"start", "stop", "step"}, {}, {}},
      {"pad", 1, 1, {"before", "after"}, {}, {}},
      {"dilate", 1, 1, {"dilation"}, {}, {}},
      {"dequantize", 1, 1, {}, {}, {}},
      {"softmax", 1, 1, {}, {}, {}},
      {"float_conv2d",
       1,
       2,
       {"stride", "padding", "dilation", "groups", "zero", "clamp_min", "clamp_max"},
       {"weight", "codebook", "multiplier", "bias"},
       {"clamp_min", "clamp_max"}},
      {"float_linear",
       1,
       2,
       {"zero", "clamp_min", "clamp_max"},
       {"weight", "codebook", "multiplier", "bias"},
       {"clamp_min", "clamp_max"}},
      {"float_add", 2, 2, {"clamp_min", "clamp_max"}, {}, {"clamp_min", "clamp_max"}},
      {"float_affine", 1, 1, {"clamp_min", "clamp_max"}, {"multiplier", "bias"}, {"clamp_min", "clamp_max"}},
      {"float_max_pool2d", 1, 1, {"kernel", "stride", "padding", "dilation"}, {}, {}},
      {"float_avg_pool2d", 1, 1, {"kernel", "stride", "padding", "count_include_pad"}, {}, {}},
      {"float_adaptive_avg_pool2d", 1, 1, {"output_size"}, {}, {}},
      {"float_map", 1, 1, {"function"}, {}, {}},
  };
  return list;
}

[[noreturn]] void fail(const char* code, const std::string& field, const std::string& expected,
                       const std::string& got) {
  throw FormatError(code, field, -1, expected, got);
}

bool contains(const std::vector<const char*>& names, const std::string& name) {
  return std::any_of(names.begin(), names.end(), [&](const char* other) { return name == other; });
}

const char* kind_of(const RawAttribute& value) {
  static const char* const kinds[] = {"an integer", "a real number", "a list", "a text"};
  return kinds[value.index()];
}

void store_int(const AttributeField& field, const std::string& where, int64_t value, int64_t* to) {
  if (value < field.low || value > field.high) {
    const bool range = !std::strcmp(field.name, "quant_min") || !std::strcmp(field.name, "quant_max");
    fail(range ? "E_QPARAM" : "E_GRAPH_ATTR", where,
         "an integer from " + std::to_string(field.low) + " to " + std::to_string(field.high),
         std::to_string(value));
  }
  *to = value;
}

void store_attribute(const AttributeField& field, const std::string& where, const RawAttribute& value,
                     Attributes& attributes) {
  char* const to = reinterpret_cast<char*>(&attributes) + field.offset;
  if (field.kind == AttributeField::Kind::kFloat) {
    double number = 0;
    if (const double* real = std::get_if<double>(&value)) {
      number = *real;
    } else if (const int64_t* whole = std::get_if<int64_t>(&value)) {
      number = static_cast<double>(*whole);
    } else {
      fail("E_GRAPH_ATTR", where, "a number", kind_of(value));
    }
    if (!(std::fabs(number) <= (std::strcmp(field.name, "bias") == 0 ? kMaxBias : kMaxMultiplier))) {
      fail("E_QPARAM", where, "a finite number of bounded magnitude", std::to_string(number));
    }
    *reinterpret_cast<float*>(to) = static_cast<float>(number);
  } else if (field.kind == AttributeField::Kind::kFunction) {
    const std::string* text = std::get_if<std::string>(&value);
    if (text == nullptr) fail("E_GRAPH_ATTR", where, "a text", kind_of(value));
    const auto function = float_map_by_name(*text);
    if (!function) fail("E_ENUM", where, "a function of the format", "'" + *text + "'");
    *reinterpret_cast<FloatMap*>(to) = *function;
  } else if (field.kind == AttributeField::Kind::kInt) {
    const int64_t* whole = std::get_if<int64_t>(&value);
    if (whole == nullptr) fail("E_GRAPH_ATTR", where, "an integer", kind_of(value));
    store_int(field, where, *whole, reinterpret_cast<int64_t*>(to));
  } else {
    const std::vector<int64_t>* list = std::get_if<std::vector<int64_t>>(&value);
    if (list == nullptr) fail("E_GRAPH_ATTR", where, "a list", kind_of(value));
    if (list->size() != static_cast<size_t>(field.count)) {
      fail("E_GRAPH_ATTR", where, std::to_string(field.count) + " integers", std::to_string(list->size()));
    }
    for (int i = 0; i < field.count; ++i) {
      store_int(field, where + "[" + std::to_string(i) + "]", (*list)[i], reinterpret_cast<int64_t*>(to) + i);
    }
  }
}

const RawTensor& tensor_of(const RawNode& raw, const std::string& label, const char* name, const char* dtype,
                           size_t rank) {
  const std::string where = label + ".tensors." + name;
  const auto found = raw.tensors.find(name);
  if (found == raw.tensors.end()) fail("E_GRAPH_ATTR", where, "a tensor", "none");
  if (found->second.dtype != dtype)
    fail("E_GRAPH_ATTR", where, std::string("dtype ") + dtype, found->second.dtype);
  if (found->second.shape.size() != rank) {
    fail("E_GRAPH_SHAPE", where, std::to_string(rank) + " dimensions",
         std::to_string(found->second.shape.size()));
  }
  return found->second;
}

void parse_tensors(const RawNode& raw, const OpSchema& schema, const std::string& label, Node& node) {
  for (const auto& [name, tensor] : raw.tensors) {
    if (!contains(schema.tensors, name)) {
      fail("E_GRAPH_ATTR", label + ".tensors." + name, std::string("no such tensor for ") + schema.name, "one");
    }
  }
  for (const std::string name : schema.tensors) {
    if (name == "weight") {
      const size_t rank = node.op == Op::kConv2d || node.op == Op::kFloatConv2d ? 4 : 2;
      const RawTensor& weight = tensor_of(raw, label, "weight", "i8", rank);
      node.weight = static_cast<const int8_t*>(weight.data);
      if (rank == 4) std::copy(weight.shape.begin() + 2, weight.shape.end(), node.attributes.kernel);
    } else if (name == "codebook") {
      const RawTensor& codebook = tensor_of(raw, label, "codebook", "f32", 1);
      node.codebook = static_cast<const float*>(codebook.data);
      node.codebook_size = codebook.shape[0];
    } else if (name == "multiplier") {
      node.multiplier = static_cast<const float*>(tensor_of(raw, label, "multiplier", "f32", 1).data);
    } else if (name == "bias") {
      node.bias = static_cast<const float*>(tensor_of(raw, label, "bias", "f32", 1).data);
    } else if (name == "zero_point") {
      node.zero_point = static_cast<const uint8_t*>(tensor_of(raw, label, "zero_point", "u8", 1).data);
    } else {
      node.table = static_cast<const uint8_t*>(tensor_of(raw, label, "table", "u8", 1).data);
    }
  }
}

}  // namespace

const OpSchema& schema_of(Op op) { return schemas()[static_cast<size_t>(op)]; }

const char* op_name(Op op) { return schema_of(op).name; }

Op parse_op(const std::string& name, const std::string& label) {
  for (size_t i = 0; i < schemas().size(); ++i) {
    if (name == schemas()[i].name) return static_cast<Op>(i);
  }
  fail("E_ENUM", label + ".op", "an operator of the format", "'" + name + "'");
}

bool has_attribute(const RawNode& raw, const char* name) { return raw.attributes.count(name) != 0; }

void parse_fields(const RawNode& raw, const std::string& label, Node& node) {
  const OpSchema& schema = schema_of(node.op);
  for (const auto& [name, value] : raw.attributes) {
    if (!contains(schema.attributes, name)) {
      fail("E_GRAPH_ATTR", label + "." + name, std::string("no such attribute for ") + schema.name,
           kind_of(value));
    }
  }
  for (const AttributeField& field : attribute_fields()) {
    if (!contains(schema.attributes, field.name)) continue;
    const auto found = raw.attributes.find(field.name);
    if (found != raw.attributes.end()) {
      store_attribute(field, label + "." + field.name, found->second, node.attributes);
    } else if (!contains(schema.optional, field.name)) {
      fail("E_GRAPH_ATTR", label + "." + field.name, "a value", "none");
    }
  }
  if (node.attributes.quant_min > node.attributes.quant_max) {
    fail("E_QPARAM", label + ".quant_min", "at most quant_max " + std::to_string(node.attributes.quant_max),
         std::to_string(node.attributes.quant_min));
  }
  parse_tensors(raw, schema, label, node);
}

}  // namespace pqk::engine
