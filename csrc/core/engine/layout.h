// Where every value of a graph lies while one image is computed.
//
// Codes are NHWC images in one block of memory (the arena), each with the border that its convolutions read,
// filled with the zero point once: nothing ever writes there. Values of the same geometry and zero point, and
// all values without a border, take turns in a buffer. Where it can be, the inputs of a concatenation are
// written where they belong in its image. float32 values are NHWC in the arena, with a border of zeros where a
// float convolution reads one, but for the graph's input and output, which lie with the caller as NCHW. Where
// float operators read the graph's input, or a bordered image of an integer convolution, which writes dense
// ones, they read a copy (an import).
#pragma once

#include <cstdint>
#include <vector>

#include "core/engine/graph.h"
#include "core/float_image.h"
#include "core/int8_conv2d.h"
#include "core/quantize_image.h"

namespace pqk::engine {

// The memory of the images that go through the graph together, each with an arena of its own.
struct Frame {
  uint8_t* arena;
  const float* input;
  float* output;
  int64_t images = 1;
  int64_t arena_step = 0;                   // bytes from an image's arena to the next's
  int64_t input_step = 0, output_step = 0;  // floats
  uint8_t* scratch = nullptr;               // of the thread: what the most demanding step asks for

  Frame images_from(int64_t first, int64_t count) const {
    Frame part = *this;
    part.arena += first * arena_step;
    part.input += first * input_step;
    part.output += first * output_step;
    part.images = count;
    return part;
  }
};

struct ImageSlot {
  int64_t offset = 0;  // of pixel (0, 0) in the arena
  int64_t row_stride = 0, pixel_stride = 0;

  Int8Image at(const Frame& frame) const { return {frame.arena + offset, row_stride, pixel_stride}; }
};

struct FloatSlot {
  enum class Memory { kArena, kInput, kOutput };
  Memory memory = Memory::kArena;
  int64_t offset = 0;  // in the arena, in bytes
  int64_t channel_stride = 1, row_stride = 0, pixel_stride = 0;

  FloatImage at(const Frame& frame) const {
    float* data = memory == Memory::kOutput ? frame.output : reinterpret_cast<float*>(frame.arena + offset);
    return {data, channel_stride, row_stride, pixel_stride};
  }
  // Floats from an image of the frame to the next, of a slot that is written.
  int64_t step(const Frame& frame) const {
    return memory == Memory::kOutput ? frame.output_step
                                     : frame.arena_step / static_cast<int64_t>(sizeof(float));
  }
  // Of a slot whose channels are adjacent.
  NhwcImage image(const Frame& frame) const {
    const FloatImage image = at(frame);
    return {image.data, row_stride, pixel_stride};
  }
  ConstNhwcImage read_image(const Frame& frame) const { return {read(frame).data, row_stride, pixel_stride}; }
  // Floats from an image of the frame to the next, of a slot that is read.
  int64_t read_step(const Frame& frame) const {
    return memory == Memory::kInput ? frame.input_step : step(frame);
  }
  ConstFloatImage read(const Frame& frame) const {
    const float* data = memory == Memory::kInput ? frame.input : at(frame).data;
    return {data, channel_stride, row_stride, pixel_stride};
  }
};

// Bytes of the arena that hold `value` before the first image.
struct Fill {
  int64_t offset, bytes;
  uint8_t value;
};

class Layout {
 public:
  // Throws FormatError E_BOMB, naming the node, when the arena would exceed the graph's limit.
  explicit Layout(const Graph& graph);

  const ImageSlot& image(int value) const { return images_[root_[value]]; }
  FloatSlot floats(int value) const;
  // What float operators read of a value: NHWC, with the border that they ask for.
  FloatSlot float_image(int value) const { return imports(value) ? imported_[value] : floats(value); }
  // float_image is a copy of floats.
  bool imports(int value) const { return imports_[value]; }
  // A flatten that costs nothing: its value is its input's memory, seen otherwise.
  bool is_view(int value) const { return root_[value] != value; }
  // The (C, H, W) value behind a view, or the value itself.
  int source(int value) const { return root_[value]; }
  // The concatenation's input lies in the concatenation's image already.
  bool is_in_place(int input, int concat) const { return hosts_[input].value == concat; }
  // The output was computed as dense NHWC and has to be put in NCHW order at the end.
  bool reorders_output() const { return reorders_output_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  const std::vector<Fill>& fills() const { return fills_; }

 private:
  struct Border {
    int64_t top = 0, left = 0, bottom = 0, right = 0;
    bool operator==(const Border&) const = default;
    bool any() const { return *this != Border{}; }
  };
  // Where a value is part of a concatenation's image.
  struct Host {
    int value = -1;
    int64_t channel = 0;
  };
  struct Buffer {
    Border border;
    int64_t height, width, pixel_stride;  // in bytes
    int64_t bytes;
    int zero_point;
    int free_from;  // node index
  };

  void find_views();
  void find_borders_and_uses();
  void find_hosts();
  bool can_be_hosted(int value, int64_t channel) const;
  void find_imports();
  void place_floats(int value, int node);
  Buffer float_buffer(int value, const Border& border, FloatSlot& slot) const;
  void place_image(int value, int node);
  static bool can_share(const Buffer& a, const Buffer& b);
  int allocate(Buffer wanted, int value, int node);
  void arrange();
  bool flatten_is_view(const Node& node, int value) const;

  const Graph& graph_;
  std::vector<int> root_;
  std::vector<bool> only_linear_;  // read by linear layers only
  std::vector<int> last_use_;      // of a root, node index
  std::vector<Border> borders_;
  std::vector<int> concat_uses_;    // how often a value is an input of a concatenation
  std::vector<Host> hosts_, tops_;  // tops: the outermost host, or the value itself
  std::vector<bool> placed_;
  std::vector<ImageSlot> images_;
  std::vector<FloatSlot> floats_, imported_;
  std::vector<bool> imports_;
  std::vector<Buffer> buffers_;
  std::vector<int> buffer_of_;  // values with memory of the arena
  std::vector<int> import_buffer_of_;
  int64_t buffer_bytes_ = 0;
  std::vector<Fill> fills_;
  int64_t arena_bytes_ = 0;
  bool reorders_output_ = false;
};

}  // namespace pqk::engine
