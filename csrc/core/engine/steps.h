// The computation of a graph as a flat list: one Step per node that has something to do.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/engine/choose.h"
#include "core/engine/graph.h"
#include "core/engine/layout.h"

namespace pqk::engine {

class Step {
 public:
  explicit Step(const char* kernel) : kernel_(kernel) {}
  virtual ~Step() = default;
  // Computes parts [begin, end) of the output of every image of the frame: rows, or what else the step divides
  // its work into. Returns -1, or the index of the first NaN in the graph's inputs.
  virtual int64_t run(const Frame& frame, int64_t begin, int64_t end) const = 0;
  const char* kernel_name() const { return kernel_; }

  int64_t parts = 1;
  int64_t grain = 1;          // fewest parts that are worth a thread
  int64_t scratch_bytes = 0;  // of Frame::scratch that a run uses
  int64_t weight_bytes = 0;   // of its weights: one for each of them, or those of a payload that it keeps
  bool decodes = false;       // its weights are coded

 private:
  const char* kernel_;
};

// Work below which a second thread costs more than it saves, in multiply-adds and in bytes.
inline constexpr int64_t kProductsPerThread = 400000;
inline constexpr int64_t kBytesPerThread = 65536;

// A Step from a function of (frame, first part, last part) that owns what it needs and computes all images.
template <class Body>
std::unique_ptr<Step> batch_step_of(const char* kernel, int64_t parts, int64_t work, int64_t work_per_thread,
                                    Body body) {
  class BodyStep final : public Step {
   public:
    BodyStep(const char* kernel, Body body) : Step(kernel), body_(std::move(body)) {}
    int64_t run(const Frame& frame, int64_t begin, int64_t end) const override {
      if constexpr (std::is_void_v<decltype(body_(frame, begin, end))>) {
        body_(frame, begin, end);
        return -1;
      } else {
        return body_(frame, begin, end);
      }
    }

   private:
    Body body_;
  };
  auto step = std::make_unique<BodyStep>(kernel, std::move(body));
  step->parts = parts;
  step->grain = std::clamp<int64_t>(work_per_thread / std::max<int64_t>(1, work / parts), 1, parts);
  return step;
}

// The same from a function that computes the one image of its frame.
template <class Body>
std::unique_ptr<Step> step_of(const char* kernel, int64_t parts, int64_t work, int64_t work_per_thread,
                              Body body) {
  return batch_step_of(kernel, parts, work, work_per_thread,
                       [body = std::move(body)](const Frame& frame, int64_t begin, int64_t end) -> int64_t {
                         for (int64_t i = 0; i < frame.images; ++i) {
                           if constexpr (std::is_void_v<decltype(body(frame, begin, end))>) {
                             body(frame.images_from(i, 1), begin, end);
                           } else {
                             const int64_t nan = body(frame.images_from(i, 1), begin, end);
                             if (nan >= 0) return i * frame.input_step + nan;
                           }
                         }
                         return -1;
                       });
}

// What a step is made from. Steps copy what they need: the graph's constants do not outlive planning.
struct StepContext {
  const Graph& graph;
  const Layout& layout;
  const Node& node;
  int value;            // the node's
  int64_t most_images;  // of a frame
  KernelChooser& chooser;

  const Value& in(size_t slot = 0) const { return graph.value(node.inputs[slot]); }
  const Value& out() const { return node.value; }
  ImageSlot in_image(size_t slot = 0) const { return layout.image(node.inputs[slot]); }
  ImageSlot out_image() const { return layout.image(value); }
  FloatSlot in_floats() const { return layout.floats(node.inputs[0]); }
  FloatSlot in_float_image(size_t slot = 0) const { return layout.float_image(node.inputs[slot]); }
  FloatSlot out_floats() const { return layout.floats(value); }
  int32_t quant_min() const { return static_cast<int32_t>(node.attributes.quant_min); }
  int32_t quant_max() const { return static_cast<int32_t>(node.attributes.quant_max); }
};

// A linear layer is a convolution whose kernel is the whole image; see steps_conv.cpp.
Conv2dShape linear_shape(const Value& in, const Node& node);
Conv2dShape conv_shape(const Value& in, const Node& node);
// Parts [begin, end) of an output, counted through its `rows` rows of panel after panel.
void run_parts(const PackedConv2d& packed, const Int8ConvImages& images, int64_t rows, int64_t begin,
               int64_t end);

// Kernels are those of the instruction set in use now. Null where nothing is left to do, or kernels have to be
// timed that the chooser may not time.
std::unique_ptr<Step> make_conv_step(const StepContext& context);  // conv2d and linear
// The same with weights that stay coded. Null where they cannot: the codec has no rows that can be decoded by
// themselves; groups; one input channel.
std::unique_ptr<Step> make_coded_step(const StepContext& context, const Conv2dShape& shape,
                                      const Conv2dConstants& constants);
std::unique_ptr<Step> make_map_step(
    const StepContext& context);  // quantize, add, affine, lookup, dequantize, softmax
std::unique_ptr<Step> make_pool_step(const StepContext& context);        // the three pools
std::unique_ptr<Step> make_move_step(const StepContext& context);        // concat, flatten, slice, pad, dilate
std::unique_ptr<Step> make_float_conv_step(const StepContext& context);  // float_conv2d and float_linear
std::unique_ptr<Step> make_float_step(const StepContext& context);       // the other operators float_...
std::unique_ptr<Step> make_float_move_step(const StepContext& context);  // concat, slice, pad, dilate of floats
// Copies a value to where float operators read it (Layout::imports); says where the graph's input has a NaN.
std::unique_ptr<Step> make_import_step(const Graph& graph, const Layout& layout, int value);
// Puts the dense NHWC output in NCHW order.
std::unique_ptr<Step> make_output_step(const StepContext& context);

}  // namespace pqk::engine
