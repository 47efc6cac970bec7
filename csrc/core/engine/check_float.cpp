#include "core/engine/node_checker.h"

namespace pqk::engine {
namespace {

class FloatChecker : public NodeChecker {
 public:
  using NodeChecker::NodeChecker;

  void run() const {
    for (size_t i = 0; i < node_.inputs.size(); ++i) {
      if (graph_.value(node_.inputs[i]).dtype != DType::kF32) {
        fail("E_GRAPH_REF", slot(i), "an f32 value", "a u8 value");
      }
    }
    output_floats();
    const Attributes& a = node_.attributes;
    if (a.clamp_min > a.clamp_max) {
      fail("E_QPARAM", "clamp_min", "at most clamp_max " + std::to_string(a.clamp_max),
           std::to_string(a.clamp_min));
    }
    check_operator();
  }

 private:
  void check_operator() const {
    switch (node_.op) {
      case Op::kFloatConv2d:
        convolution_shape();
        return weighted();
      case Op::kFloatLinear:
        linear_shape();
        return weighted();
      case Op::kFloatAdd:
        shape_as(in_);
        return shape_as(graph_.value(node_.inputs[1]));
      case Op::kFloatAffine:
        shape_as(in_);
        return channel_scales();
      case Op::kFloatMaxPool2d:
        input_image();
        return pooled_shape(node_.attributes.dilation);
      case Op::kFloatAvgPool2d:
        input_image();
        bounded_window();
        return pooled_shape(kUndilated);
      case Op::kFloatAdaptiveAvgPool2d:
        input_image();
        bounded_image();
        return shape_is(3, in_.channels, node_.attributes.output_size[0], node_.attributes.output_size[1]);
      default:
        shape_as(in_);
    }
  }

  void weighted() const {
    codebook();
    codes();
    channel_scales();
    if (node_.inputs.size() == 2) shape_as(graph_.value(node_.inputs[1]));
  }

  void codebook() const {
    const int64_t size = node_.codebook_size;
    if (size < 1 || size > kMaxCodebook) {
      fail("E_GRAPH_SHAPE", "tensors.codebook.shape[0]", "1 to " + std::to_string(kMaxCodebook),
           std::to_string(size));
    }
    if (node_.attributes.zero >= size) {
      fail("E_GRAPH_ATTR", "zero", "less than " + std::to_string(size), std::to_string(node_.attributes.zero));
    }
    for (int64_t i = 0; i < size; ++i) {
      const float entry = node_.codebook[i];
      const std::string field = "tensors.codebook[" + std::to_string(i) + "]";
      if (!(std::fabs(entry) <= kMaxMultiplier)) {
        fail("E_QPARAM", field, "a finite number of bounded magnitude", std::to_string(entry));
      }
      if (i > 0 && entry < node_.codebook[i - 1]) {
        fail("E_QPARAM", field, "at least the entry before", std::to_string(entry));
      }
    }
  }

  void codes() const {
    int64_t count = 1;
    for (const int64_t size : raw_.tensors.at("weight").shape) count *= size;
    const int64_t low = -node_.attributes.zero, high = node_.codebook_size - 1 + low;
    for (int64_t i = 0; i < count; ++i) {
      if (node_.weight[i] >= low && node_.weight[i] <= high) continue;
      fail("E_VALUE_RANGE", "tensors.weight[" + std::to_string(i) + "]",
           "a code from " + std::to_string(low) + " to " + std::to_string(high),
           std::to_string(node_.weight[i]));
    }
  }
};

}  // namespace

void check_float_node(const Graph& graph, const RawNode& raw, const std::string& label, const Node& node) {
  FloatChecker(graph, raw, label, node).run();
}

}  // namespace pqk::engine
