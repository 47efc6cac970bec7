// The parts of make_program, one file a family of operators.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/cuda/engine/program.h"
#include "core/engine/layout.h"
#include "core/int8_conv2d.h"

namespace pqk::engine::device {

inline constexpr int64_t kQuad = 4;  // channels that a thread takes at once

// Distance to the next position along an axis. A step that is never taken may be of any size in the file.
inline int step_of_axis(int64_t count, int64_t stride, int64_t distance) {
  return count == 1 ? 0 : static_cast<int>(stride * distance);
}

class ProgramBuilder {
 public:
  ProgramBuilder(const Graph& graph, const Layout& layout, Program& program)
      : graph_(graph), layout_(layout), program_(program) {}

  void add_node(int value);
  // Copies a value to where float operators read it.
  void add_import(int value);
  // Puts the dense NHWC output in NCHW order.
  void add_reordered_output();

 private:
  // --- the node at hand ---
  const Node& node() const { return graph_.nodes()[static_cast<size_t>(value_ - 1)]; }
  const Value& in(size_t slot = 0) const { return graph_.value(node().inputs[slot]); }
  const Value& out() const { return node().value; }
  Codes codes(int value) const;
  Codes in_codes(size_t slot = 0) const { return codes(node().inputs[slot]); }
  Codes out_codes() const { return codes(value_); }
  static Floats floats(const FloatSlot& slot);
  Floats in_floats() const { return floats(layout_.floats(node().inputs[0])); }
  Floats in_float_image(size_t slot = 0) const { return floats(layout_.float_image(node().inputs[slot])); }
  Floats out_floats() const { return floats(layout_.floats(value_)); }
  float quant_min() const { return static_cast<float>(node().attributes.quant_min); }
  float quant_max() const { return static_cast<float>(node().attributes.quant_max); }

  // --- what goes into the program ---
  void add(const Step& step, const char* kernel);
  // Items are so many channels of a pixel each.
  Extent extent(const Value& value, int64_t unit);
  template <class T>
  Constant<T> constant(const T* data, int64_t count) {
    constexpr size_t kAlignment = 256;
    std::vector<uint8_t>& block = program_.constants;
    const size_t offset = (block.size() + kAlignment - 1) / kAlignment * kAlignment;
    // Kernels may load a vector where the last constants begin.
    block.resize(offset + static_cast<size_t>(count) * sizeof(T) + kAlignment);
    std::memcpy(block.data() + offset, data, static_cast<size_t>(count) * sizeof(T));
    return {static_cast<int64_t>(offset)};
  }

  // --- families of operators ---
  void add_map();
  void add_pool();
  void add_move();
  void add_concat();
  void add_moved_codes(const Node& node, const Value& from, const Value& to, const Codes& input,
                       const Codes& output, int output_channel_stride);
  // As `node` says, or without one as it is.
  void add_moved_floats(const Node* node, const Value& from, const Value& to, const Floats& input,
                        const Floats& output, bool tells);
  void add_conv();
  void add_depthwise(const Conv2dShape& shape);
  // Constants are padded to a multiple of `channel_unit` in each group.
  Epilogue epilogue(const Conv2dShape& shape, int64_t channel_unit);
  void add_float();
  void add_float_conv();

  const Graph& graph_;
  const Layout& layout_;
  Program& program_;
  int value_ = 0;
  std::string name_;
};

}  // namespace pqk::engine::device
