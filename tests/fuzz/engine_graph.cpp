#include "engine_graph.h"

#include <numeric>

#include "core/engine/schema.h"

namespace pqk::fuzz {
namespace {

using engine::RawAttribute;
using engine::RawNode;
using engine::RawValue;

constexpr int64_t kActivationBytes = 1 << 16;
constexpr int64_t kMostWeights = 1 << 13;

const std::vector<std::string>& operators() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (int op = 0; op <= static_cast<int>(engine::Op::kFloatMap); ++op) {
      all.push_back(engine::op_name(static_cast<engine::Op>(op)));
    }
    return all;
  }();
  return names;
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }
bool is_float_op(const RawNode& node) { return starts_with(node.op, "float_"); }

struct Integers {
  const char* name;
  int count;  // 0 for a number by itself
  int64_t low, high;
};
// Ranges in which graphs are mostly right.
constexpr Integers kIntegers[] = {
    {"stride", 2, 1, 3},      {"padding", 4, 0, 3},       {"dilation", 2, 1, 3}, {"kernel", 2, 1, 4},
    {"output_size", 2, 1, 4}, {"start", 3, 0, 2},         {"stop", 3, 1, 8},     {"step", 3, 1, 3},
    {"before", 3, 0, 2},      {"after", 3, 0, 2},         {"groups", 0, 1, 4},   {"count_include_pad", 0, 0, 1},
    {"quant_min", 0, 0, 0},   {"quant_max", 0, 255, 255}, {"zero", 0, 0, 15}};

RawValue input_value(Bytes& bytes) {
  RawValue value;
  value.dtype = "f32";
  value.shape = {bytes.range(1, 20)};
  const int64_t kind = bytes.range(0, 7);
  if (kind) value.shape = {value.shape[0], bytes.range(1, 9), bytes.range(1, 9)};
  if (kind == 1) value.shape.erase(value.shape.begin() + 1);  // a sequence
  return value;
}

// "(3, 4, 5)" or "(7,)", as errors name shapes.
std::vector<int64_t> shape_in(const std::string& text) {
  std::vector<int64_t> shape;
  for (const char* at = text.c_str(); *at;) {
    char* end = nullptr;
    const int64_t size = std::strtoll(at, &end, 10);
    if (end == at) {
      ++at;
    } else {
      shape.push_back(size);
      at = end;
    }
  }
  return shape;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

GraphSource::GraphSource(Bytes& bytes)
    : bytes_(bytes),
      random_(bytes.number(2)),
      values_{input_value(bytes)},
      graph_(values_[0], {bytes.range(0, 15) ? kActivationBytes : bytes.range(6480, 12000)}) {
  if (graph_.sequence()) values_[0].shape.insert(values_[0].shape.begin() + 1, 1);
  if (bytes_.range(0, 15)) {
    RawNode node;
    node.op = "quantize";
    node.name = "q";
    node.inputs = {0};
    node.value = {values_[0].shape, "u8", true, true, 0.05, bytes_.u8()};
    node.attributes = {{"quant_min", int64_t{0}}, {"quant_max", int64_t{255}}};
    add(node);
  }
  for (int64_t nodes = bytes_.range(1, 15); nodes > 0 && bytes_.remaining() > 0; --nodes) add_any_node();
}

bool GraphSource::complete() {
  if (graph_.nodes().empty()) return false;
  if (values_.back().dtype == "u8") {
    RawNode node;
    node.op = "dequantize";
    node.name = "out";
    node.inputs = {static_cast<int64_t>(values_.size()) - 1};
    node.value = {values_.back().shape, "f32"};
    if (!add(node)) return false;
  }
  const std::vector<int64_t>& shape = values_.back().shape;
  if (graph_.sequence() && shape.size() == 3 && shape[1] != 1) return false;  // of no sequence
  return true;
}

void GraphSource::add_any_node() {
  RawNode node;
  node.op = bytes_.pick(operators());
  node.name = "n";
  set_inputs(node);
  const RawValue& in = values_[static_cast<size_t>(node.inputs[0])];
  node.value = {in.shape, "u8"};
  set_qparams(node.value);
  const bool sums = node.op == "conv2d" || node.op == "linear";
  if (is_float_op(node) || node.op == "dequantize" || node.op == "softmax" ||
      (sums && bytes_.range(0, 7) == 0)) {
    node.value = {in.shape, "f32"};
  }
  set_attributes(node);
  set_tensors(node);
  const engine::OpSchema& schema = engine::schema_of(engine::parse_op(node.op, "node"));
  if (node.tensors.size() < schema.tensors.size() && bytes_.range(0, 15)) return;
  if (bytes_.range(0, 15) == 15) spoil(node);
  add(node);
}

// One thing that no graph may have, or may only have elsewhere.
void GraphSource::spoil(RawNode& node) {
  const int64_t value = bytes_.i64();
  const uint8_t which = bytes_.u8();
  const auto tensor =
      node.tensors.empty() ? node.tensors.end() : std::next(node.tensors.begin(), which % node.tensors.size());
  const auto field = node.attributes.empty()
                         ? node.attributes.end()
                         : std::next(node.attributes.begin(), which % node.attributes.size());
  switch (bytes_.range(0, 16)) {
    case 0:
      node.op = "eval";
      break;
    case 1:
      node.value.dtype = "f16";
      break;
    case 2:
      node.value.shape.push_back(value);
      break;
    case 3:
      node.value.shape.clear();
      break;
    case 4:
      node.value.shape[which % node.value.shape.size()] = value;
      break;
    case 5:
      node.value.has_zero_point = !node.value.has_zero_point;
      break;
    case 6:
      node.value.has_scale = node.value.has_zero_point = !node.value.has_scale;
      break;
    case 7:
      node.value.zero_point = value;
      break;
    case 8:
      node.value.scale = static_cast<double>(value) * 1e-30;
      break;
    case 9:
      node.inputs[which % node.inputs.size()] = value;
      break;
    case 10:
      node.inputs.resize(which % 4, 0);
      break;
    case 11:
      node.attributes["quant_max"] = value;
      break;
    case 12:
      node.attributes["colour"] = 1.0;
      break;
    case 13:
      if (field != node.attributes.end()) node.attributes.erase(field);
      break;
    case 14:
      if (field == node.attributes.end()) break;
      if (which % 3 == 0) field->second = 0.5;
      if (which % 3 == 1) field->second = std::vector<int64_t>{value};
      if (which % 3 == 2) field->second = std::string("relu");
      break;
    case 15:
      if (tensor != node.tensors.end()) node.tensors.erase(tensor);
      break;
    default:
      if (tensor == node.tensors.end()) break;
      if (which % 3 == 0) tensor->second.dtype = "f64";
      if (which % 3 == 1) tensor->second.shape.push_back(1);
      if (which % 3 == 2 && !codes_.empty() && codes_.back().size() > 0) codes_.back()[0] = -128;
  }
}

void GraphSource::set_inputs(RawNode& node) {
  const engine::OpSchema& schema = engine::schema_of(engine::parse_op(node.op, "node"));
  const int64_t more = static_cast<int64_t>(std::min<size_t>(schema.max_inputs - schema.min_inputs, 2));
  const int64_t count = static_cast<int64_t>(schema.min_inputs) + (more ? bytes_.range(0, more) : 0);
  const int64_t last = static_cast<int64_t>(values_.size()) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t back = bytes_.range(0, 255);
    // Mostly the value before, or the same input again.
    const int64_t input = back < 160 ? last : back < 250 ? last - back % (last + 1) : bytes_.i64();
    node.inputs.push_back(std::clamp<int64_t>(input, 0, back < 250 ? last : INT32_MAX));
    if (node.inputs.back() > last) node.inputs.back() = last;
  }
}

int64_t GraphSource::integer(int64_t low, int64_t high) {
  const uint8_t byte = bytes_.u8();
  if (byte < 252) return low + byte % (high - low + 1);
  constexpr int64_t kHostile[] = {-1, 0, INT32_MAX, int64_t{1} << 31, INT64_MAX, INT64_MIN, 255, 1 << 16};
  return byte == 255 ? bytes_.i64() : kHostile[bytes_.u8() % std::size(kHostile)];
}

RawAttribute GraphSource::attribute(const std::string& name) {
  for (const Integers& field : kIntegers) {
    if (name != field.name) continue;
    if (field.count == 0) return integer(field.low, field.high);
    std::vector<int64_t> numbers;
    for (int i = 0; i < field.count; ++i) numbers.push_back(integer(field.low, field.high));
    return numbers;
  }
  if (name == "function") {
    static const std::vector<std::string> functions{"relu",       "relu6",        "sigmoid", "silu",
                                                    "hard_swish", "hard_sigmoid", "tanh",    "eval"};
    return bytes_.pick(functions);
  }
  const uint8_t byte = bytes_.u8();
  if (byte < 250) return (byte - 100) / 64.0;
  constexpr double kHostile[] = {1e300, -1e19, 1e-45, 0.0, 1e38, -1e30};
  return kHostile[byte % std::size(kHostile)];
}

void GraphSource::set_attributes(RawNode& node) {
  const engine::OpSchema& schema = engine::schema_of(engine::parse_op(node.op, "node"));
  const bool floats = node.value.dtype == "f32";
  for (const std::string name : schema.attributes) {
    const bool range = name == "quant_min" || name == "quant_max";
    if (floats && range) continue;
    if (name == "residual_multiplier" && node.inputs.size() < 2) continue;
    if (starts_with(name, "clamp_") && bytes_.flag()) continue;
    node.attributes[name] = attribute(name);
  }
}

template <class T>
T* GraphSource::tensor(RawNode& node, const char* name, const char* dtype, std::vector<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(count, size, &count) || count < 0 || count > kMostWeights) return nullptr;
  }
  T* data;
  if constexpr (sizeof(T) == 4) {
    data = floats_.emplace_back(count).data();
  } else if constexpr (std::is_signed_v<T>) {
    data = codes_.emplace_back(count).data();
  } else {
    data = bytes_tensors_.emplace_back(count).data();
  }
  node.tensors[name] = {dtype, std::move(shape), data};
  return data;
}

void GraphSource::set_tensors(RawNode& node) {
  const RawValue& in = values_[static_cast<size_t>(node.inputs[0])];
  int64_t channels = in.shape[0];
  const engine::OpSchema& schema = engine::schema_of(engine::parse_op(node.op, "node"));
  for (const std::string name : schema.tensors) {
    if (name == "weight") {
      const bool conv = ends_with(node.op, "conv2d");
      int64_t groups = conv ? std::get<int64_t>(node.attributes.at("groups")) : 1;
      channels = bytes_.range(1, 36);
      if (conv && bytes_.range(0, 3) == 0) channels = groups = in.shape[0];  // depthwise
      if (groups < 1 || in.shape[0] % groups || channels % groups) groups = 1;
      std::vector<int64_t> shape{channels, in.shape[0] / groups};
      if (conv) {
        node.attributes["groups"] = groups;
        shape.insert(shape.end(), {bytes_.range(1, 4), bytes_.range(1, 4)});
      }
      if (bytes_.range(0, 127) == 127) shape[bytes_.u8() % shape.size()] = integer(0, 5);
      const int64_t percent = bytes_.range(0, 100), spread = bytes_.range(0, 127);
      int8_t* data = tensor<int8_t>(node, "weight", "i8", shape);
      if (data) random_.codes(data, codes_.back().size(), percent, spread);
      if (data && is_float_op(node)) set_codebook(node, data, codes_.back().size());
    } else if (name == "codebook") {
      continue;  // came with the weight
    } else if (name == "multiplier" || name == "bias") {
      float* data = tensor<float>(node, name.c_str(), "f32", {channels});
      if (!data) continue;
      for (int64_t c = 0; c < channels; ++c) data[c] = static_cast<float>(random_.below(2001) - 1000) * 1e-5f;
      if (bytes_.range(0, 63) == 63) data[bytes_.u8() % channels] = static_cast<float>(bytes_.i64()) * 1e15f;
    } else {
      uint8_t* data = tensor<uint8_t>(node, name.c_str(), "u8", {name == "table" ? 256 : channels});
      if (!data) continue;
      for (int64_t i = 0; i < bytes_tensors_.back().size(); ++i) data[i] = static_cast<uint8_t>(random_.next());
    }
  }
}

// Codes become places in the codebook.
void GraphSource::set_codebook(RawNode& node, int8_t* codes, int64_t count) {
  const int64_t zero = std::get<int64_t>(node.attributes.at("zero"));
  const int64_t size = bytes_.range(1, 24);
  float* codebook = tensor<float>(node, "codebook", "f32", {size});
  for (int64_t i = 0; i < size; ++i)
    codebook[i] = static_cast<float>(i - std::clamp<int64_t>(zero, 0, 15)) * 0.1f;
  if (bytes_.range(0, 63) == 63) codebook[bytes_.u8() % size] = static_cast<float>(bytes_.i64()) * 1e15f;
  if (zero < 0 || zero >= size) return;
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(std::clamp<int64_t>(codes[i], -zero, size - 1 - zero));
  }
}

void GraphSource::set_qparams(RawValue& value) {
  const uint8_t byte = bytes_.u8();
  value.has_scale = value.has_zero_point = byte % 8 != 7;
  value.scale = byte == 255 ? 0.0 : 0.05;
  value.zero_point = byte % 4 == 0 ? 0 : byte;
}

bool GraphSource::add(RawNode& node) {
  for (int attempt = 0; attempt < 6; ++attempt) {
    try {
      graph_.add(node);
    } catch (const FormatError& error) {
      require_named(error);
      if (!mend(node, error)) return false;
      continue;
    }
    values_.push_back(node.value);
    bits_are_specified_ &= !is_float_op(node);
    if (node.tensors.count("weight")) {
      const std::vector<int64_t>& shape = node.tensors["weight"].shape;
      int64_t products = graph_.nodes().back().value.pixels();
      for (const int64_t size : shape) products *= size;
      products_ += products;
    }
    return true;
  }
  return false;
}

// As far as the error says what would be right.
bool GraphSource::mend(RawNode& node, const FormatError& error) {
  if (ends_with(error.field, ".value.shape") && error.code == "E_GRAPH_SHAPE") {
    node.value.shape = shape_in(error.expected);
    return true;
  }
  if (ends_with(error.field, ".value.dtype")) {
    node.value.dtype = error.expected == "'u8'" ? "u8" : "f32";
    node.value.has_scale = node.value.has_zero_point = node.value.dtype == "u8";
    return true;
  }
  if (ends_with(error.field, ".value.scale") &&
      starts_with(error.expected, "scale and zero_point of inputs[")) {
    const size_t slot = std::strtoul(error.expected.c_str() + 31, nullptr, 10);
    std::vector<int64_t> shape = node.value.shape;
    node.value = values_[static_cast<size_t>(node.inputs[slot])];
    node.value.shape = std::move(shape);
    return true;
  }
  return false;
}

}  // namespace pqk::fuzz
