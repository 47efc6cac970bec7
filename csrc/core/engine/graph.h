// The graph of a .pqk file, checked. pqk_ext/runtime/graph.py states what every operator computes.
//
// A Graph is made from RawNodes, which hold whatever came from outside; everything the engine later relies on
// is checked on the way, and what breaks a rule throws pqk::FormatError with one of the codes E_ENUM,
// E_GRAPH_REF, E_GRAPH_ATTR, E_GRAPH_SHAPE, E_QPARAM, E_BOMB and a field such as "nodes[3]
// 'layer1.conv'.stride".
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "core/byte_reader.h"
#include "core/float_map.h"

namespace pqk::engine {

// In the order of their numbers in OPS of graph.py.
enum class Op {
  kQuantize,
  kConv2d,
  kLinear,
  kAdd,
  kConcat,
  kAffine,
  kLookup,
  kMaxPool2d,
  kAvgPool2d,
  kAdaptiveAvgPool2d,
  kFlatten,
  kSlice,
  kPad,
  kDilate,
  kDequantize,
  kSoftmax,
  // Float codebooks: float32 in and out.
  kFloatConv2d,
  kFloatLinear,
  kFloatAdd,
  kFloatAffine,
  kFloatMaxPool2d,
  kFloatAvgPool2d,
  kFloatAdaptiveAvgPool2d,
  kFloatMap,
};

inline bool is_float_op(Op op) { return op >= Op::kFloatConv2d; }

enum class DType { kU8, kF32 };

// What came from outside, unchecked. Pointers stay valid until the Plan is made.
struct RawTensor {
  std::string dtype;  // "i8", "u8", "f32"
  std::vector<int64_t> shape;
  const void* data;
};
using RawAttribute = std::variant<int64_t, double, std::vector<int64_t>, std::string>;
struct RawValue {
  std::vector<int64_t> shape;
  std::string dtype;
  bool has_scale = false, has_zero_point = false;
  double scale = 0;
  int64_t zero_point = 0;
};
// A weight's payload, to be kept as it is. Its bytes must outlive the Engine.
struct CodedPayload {
  std::string codec;  // empty: none
  ByteSpan bytes{};
};
struct RawNode {
  std::string op, name;
  std::vector<int64_t> inputs;
  RawValue value;
  std::map<std::string, RawAttribute> attributes;
  std::map<std::string, RawTensor> tensors;
  CodedPayload coded_weight;
};

// A checked value, shape (C, H, W), or (C,) as channels x 1 x 1 with rank 1.
struct Value {
  DType dtype = DType::kF32;
  int rank = 3;
  int64_t channels = 1, height = 1, width = 1;
  bool has_qparams = false;
  float scale = 0;
  int32_t zero_point = 0;

  int64_t pixels() const { return height * width; }
  int64_t numel() const { return channels * pixels(); }
};

// All attributes that operators have; a node uses those of its operator.
struct Attributes {
  int64_t stride[2] = {1, 1};
  int64_t padding[4] = {};  // top, left, bottom, right
  int64_t dilation[2] = {1, 1};
  int64_t kernel[2] = {1, 1};
  int64_t output_size[2] = {1, 1};
  int64_t start[3] = {}, stop[3] = {}, step[3] = {1, 1, 1};
  int64_t before[3] = {}, after[3] = {};
  int64_t groups = 1;
  int64_t count_include_pad = 0;
  int64_t quant_min = 0, quant_max = 255;
  float multiplier = 0, bias = 0;
  float multiplier_a = 0, multiplier_b = 0;
  float residual_multiplier = 0;
  int64_t zero = 0;  // index of the codebook that code 0 stands for
  float clamp_min = -std::numeric_limits<float>::infinity();
  float clamp_max = std::numeric_limits<float>::infinity();
  FloatMap function = FloatMap::kRelu;
};

struct Node {
  Op op;
  std::string name;
  std::vector<int> inputs;
  Value value;
  Attributes attributes;
  CodedPayload coded_weight;          // of `weight`
  const int8_t* weight = nullptr;     // conv2d [O, I / groups, KH, KW], linear [O, I]; also float_...
  const float* multiplier = nullptr;  // conv2d, linear, affine: [C]; also float_...
  const float* bias = nullptr;        // as the multiplier
  const float* codebook = nullptr;    // float_conv2d, float_linear: [codebook_size]
  int64_t codebook_size = 0;
  const uint8_t* zero_point = nullptr;  // affine: [C]
  const uint8_t* table = nullptr;       // lookup: [256]
};

struct Limits {
  // Of one image, all buffers together: a graph that needs more is refused before anything is allocated.
  int64_t activation_bytes = int64_t{1} << 30;
};

class Graph {
 public:
  Graph(const RawValue& input, const Limits& limits);
  // Checks the node and appends it; its value gets index nodes().size().
  void add(const RawNode& raw);
  // Call after the last node: the output must be float32.
  void finish() const;

  const Value& value(int index) const { return index == 0 ? input_ : nodes_[index - 1].value; }
  const std::vector<Node>& nodes() const { return nodes_; }
  const Value& input() const { return input_; }
  // Callers give samples (C, L), which are images of height 1, and get results without that height.
  bool sequence() const { return sequence_; }
  const Value& output() const { return nodes_.back().value; }
  const Limits& limits() const { return limits_; }

 private:
  Value input_;
  bool sequence_ = false;
  std::vector<Node> nodes_;
  Limits limits_;
};

const char* op_name(Op op);
// "nodes[3] 'layer1.conv'"
std::string node_label(size_t index, const std::string& name);

}  // namespace pqk::engine
