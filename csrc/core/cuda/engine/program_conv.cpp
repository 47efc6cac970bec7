// Integer convolutions and linear layers: how their weights lie for the kernels of conv.cuh.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "core/cuda/engine/program_builder.h"
#include "core/engine/steps.h"

namespace pqk::engine::device {
namespace {

constexpr int64_t kBlock = 64;  // bytes of a window that two matrix instructions take
constexpr int64_t kTile = 16;   // output channels of a pair of matrix tiles
constexpr int64_t kVector = 16, kWord = 4;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const Codes& codes, int64_t bytes) {
  return codes.offset % bytes == 0 && codes.row_stride % bytes == 0 && codes.pixel_stride % bytes == 0;
}

// A byte of a window: its tap, and its channel within the group.
struct WindowByte {
  int64_t tap, channel;
};

// In the order of the sum, which goes on with bytes of weight 0 to whole blocks.
std::vector<WindowByte> window_bytes(const Conv2dShape& s, int64_t load_bytes) {
  const int64_t group_in = s.in_channels / s.groups, taps = s.kernel_height * s.kernel_width;
  const int64_t channels = round_up(group_in, load_bytes);
  std::vector<WindowByte> bytes;
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < channels; ++c) bytes.push_back({tap, c});
  }
  bytes.resize(static_cast<size_t>(round_up(taps * channels, kBlock)), {0, group_in});
  return bytes;
}

// Lane l of tile `half` holds column l / 4, and of its 64 bytes of the sum those from 16 * (l % 4) on. Columns
// are channels in an order by which a lane's four results are neighbours.
std::vector<int8_t> pack_weight(const Conv2dShape& s, const int8_t* weight,
                                const std::vector<WindowByte>& bytes) {
  const int64_t group_in = s.in_channels / s.groups, group_out = s.out_channels / s.groups;
  const int64_t taps = s.kernel_height * s.kernel_width, tiles = ceil_div(group_out, kTile);
  const int64_t blocks = static_cast<int64_t>(bytes.size()) / kBlock;
  std::vector<int8_t> packed(static_cast<size_t>(s.groups * tiles * blocks * kBlock * kTile));
  int8_t* to = packed.data();
  for (int64_t tile = 0; tile < s.groups * tiles; ++tile) {
    const int64_t group = tile / tiles, first = tile % tiles * kTile;
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t slot = 0; slot < 64; ++slot, to += kVector) {
        const int64_t half = slot / 32, column = slot % 32 / 4, quad_lane = slot % 4;
        const int64_t channel = first + column / 2 * 4 + half * 2 + column % 2;
        if (channel >= group_out) continue;
        const int8_t* row = weight + (group * group_out + channel) * group_in * taps;
        for (int64_t i = 0; i < kVector; ++i) {
          const WindowByte& byte = bytes[static_cast<size_t>(block * kBlock + quad_lane * kVector + i)];
          if (byte.channel < group_in) to[i] = row[byte.channel * taps + byte.tap];
        }
      }
    }
  }
  return packed;
}

}  // namespace

Epilogue ProgramBuilder::epilogue(const Conv2dShape& s, int64_t channel_unit) {
  const int64_t group_out = s.out_channels / s.groups, room = round_up(group_out, channel_unit);
  const int64_t fan_in = s.in_channels / s.groups * s.kernel_height * s.kernel_width;
  const auto size = static_cast<size_t>(s.groups * room);
  std::vector<int32_t> start(size);
  std::vector<float> multiplier(size), bias(size);
  for (int64_t c = 0; c < s.out_channels; ++c) {
    const auto at = static_cast<size_t>(c / group_out * room + c % group_out);
    const int8_t* row = node().weight + c * fan_in;
    start[at] = -in().zero_point * std::accumulate(row, row + fan_in, 0);
    multiplier[at] = node().multiplier[c];
    bias[at] = node().bias[c];
  }
  Epilogue e{};
  e.start = constant(start.data(), static_cast<int64_t>(size));
  e.multiplier = constant(multiplier.data(), static_cast<int64_t>(size));
  e.bias = constant(bias.data(), static_cast<int64_t>(size));
  e.float_output = out().dtype == DType::kF32;
  if (e.float_output) {
    e.floats = out_floats();
    return e;
  }
  e.output = out_codes();
  e.quant_min = quant_min();
  e.quant_max = quant_max();
  // Whole quads of channels: of a group, or of all of a depthwise layer.
  const bool quads = s.groups == 1 || group_out % kWord == 0 || channel_unit == 1;
  e.words = quads && aligned(e.output, kWord);
  e.has_residual = node().inputs.size() == 2;
  if (!e.has_residual) return e;
  e.residual = in_codes(1);
  e.residual_zero_point = in(1).zero_point;
  e.residual_multiplier = node().attributes.residual_multiplier;
  e.words = e.words && aligned(e.residual, kWord);
  return e;
}

void ProgramBuilder::add_conv() {
  const Value& image = graph_.value(layout_.source(node().inputs[0]));
  const Conv2dShape s = node().op == Op::kConv2d ? conv_shape(image, node()) : linear_shape(image, node());
  const int64_t group_in = s.in_channels / s.groups, group_out = s.out_channels / s.groups;
  const int64_t weights = s.out_channels * group_in * s.kernel_height * s.kernel_width;
  program_.weight_bytes += weights;
  program_.products += weights * s.out_height * s.out_width;
  const Codes input = in_codes();
  if (s.groups > 1 && group_in == 1 && group_out == 1 && aligned(input, kWord)) return add_depthwise(s);
  const bool words = aligned(input, kWord) && (s.groups == 1 || group_in % kWord == 0);
  const bool vectors = aligned(input, kVector) && group_in % kVector == 0;
  const int64_t load_bytes = vectors ? kVector : words ? kWord : 1;
  const std::vector<WindowByte> bytes = window_bytes(s, load_bytes);
  std::vector<int32_t> offsets;
  for (size_t i = 0; i < bytes.size(); i += static_cast<size_t>(load_bytes)) {
    const int64_t row = bytes[i].tap / s.kernel_width * s.dilation_height;
    const int64_t column = bytes[i].tap % s.kernel_width * s.dilation_width;
    const bool real = bytes[i].channel < group_in;
    offsets.push_back(
        real ? static_cast<int32_t>(row * input.row_stride + column * input.pixel_stride + bytes[i].channel)
             : 0);
  }
  const std::vector<int8_t> weight = pack_weight(s, node().weight, bytes);
  if (weight.size() > INT32_MAX) {
    throw std::invalid_argument(name_ + ": on CUDA a layer may have at most 2147483647 bytes of weights");
  }
  Conv conv{};
  conv.input = input;
  conv.epilogue = epilogue(s, kTile);
  conv.weight = constant(weight.data(), static_cast<int64_t>(weight.size()));
  conv.offsets = constant(offsets.data(), static_cast<int64_t>(offsets.size()));
  conv.load = vectors ? Conv::Load::kVectors : words ? Conv::Load::kWords : Conv::Load::kBytes;
  conv.row_step = step_of_axis(s.out_height, s.stride_height, input.row_stride);
  conv.column_step = step_of_axis(s.out_width, s.stride_width, input.pixel_stride);
  conv.origin = static_cast<int>(-s.pad_top * input.row_stride - s.pad_left * input.pixel_stride);
  conv.groups = static_cast<int>(s.groups);
  conv.group_in = static_cast<int>(group_in);
  conv.group_out = static_cast<int>(group_out);
  conv.channel_tiles = static_cast<int>(ceil_div(group_out, kTile));
  conv.blocks = static_cast<int>(bytes.size() / kBlock);
  conv.by_pixels = Divisor::of(s.out_height * s.out_width);
  conv.by_width = Divisor::of(s.out_width);
  conv.by_groups = Divisor::of(s.groups);
  program_.most_items =
      std::max(program_.most_items, s.out_height * s.out_width * s.groups * conv.channel_tiles);
  add(conv, vectors ? "mma" : words ? "mma_words" : "mma_bytes");
}

void ProgramBuilder::add_depthwise(const Conv2dShape& s) {
  const int64_t taps = s.kernel_height * s.kernel_width, channels = round_up(s.out_channels, kQuad);
  std::vector<int8_t> weight(static_cast<size_t>(taps * channels));
  for (int64_t c = 0; c < s.out_channels; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      weight[static_cast<size_t>(tap * channels + c)] = node().weight[c * taps + tap];
    }
  }
  const Codes input = in_codes();
  Depthwise step{};
  step.input = input;
  step.epilogue = epilogue(s, 1);
  step.weight = constant(weight.data(), static_cast<int64_t>(weight.size()));
  step.extent = extent(out(), kQuad);
  step.kernel_height = static_cast<int>(s.kernel_height);
  step.kernel_width = static_cast<int>(s.kernel_width);
  step.tap_row = step_of_axis(s.kernel_height, s.dilation_height, input.row_stride);
  step.tap_column = step_of_axis(s.kernel_width, s.dilation_width, input.pixel_stride);
  step.row_step = step_of_axis(s.out_height, s.stride_height, input.row_stride);
  step.column_step = step_of_axis(s.out_width, s.stride_width, input.pixel_stride);
  step.origin = static_cast<int>(-s.pad_top * input.row_stride - s.pad_left * input.pixel_stride);
  add(step, "depthwise");
}

void choose_tiles(Step& step, int images, int64_t warps, int most_pairs) {
  if (step.kind != StepKind::kConv) return;
  Conv& conv = step.as_Conv;
  const int64_t rows = int64_t{images} * conv.by_pixels.divisor;
  conv.row_tiles = conv.pair_tiles = 1;
  const bool can_be_large = conv.load == Conv::Load::kVectors && conv.epilogue.words;
  for (const int pairs : {4, 2}) {
    const int64_t tiles = ceil_div(rows, 2 * kTile) * conv.groups * (conv.channel_tiles / pairs);
    if (!can_be_large || pairs > most_pairs || conv.channel_tiles % pairs != 0 || tiles < warps) continue;
    conv.row_tiles = 2;
    conv.pair_tiles = pairs;
    break;
  }
  conv.by_channels = Divisor::of(conv.channel_tiles / conv.pair_tiles);
}

}  // namespace pqk::engine::device
