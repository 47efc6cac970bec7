// Every integer kernel of one instruction set against plain arithmetic, on layers that the bytes describe.
// Images lie in memory as kernels may ask for it: borders of the zero point and exactly 64 readable bytes
// around.
#include <cmath>

#include "core/int8_packing.h"
#include "core/numerics.h"
#include "fuzz.h"

namespace pqk::fuzz {
namespace {

constexpr int64_t kMargin = 64;
constexpr int64_t kMostProducts = 1 << 14;

struct Layer {
  Conv2dShape shape{};
  Conv2dConstants constants{};
  std::vector<int8_t> weight;
  std::vector<float> multiplier, bias;
  int64_t images = 1;
  int64_t output_pixel_stride = 0;

  int64_t group_inputs() const { return shape.in_channels / shape.groups; }
  int64_t outputs() const { return shape.out_channels * shape.out_height * shape.out_width; }
  int64_t padded_height() const { return shape.in_height + shape.pad_top + shape.pad_bottom; }
  int64_t padded_width() const { return shape.in_width + shape.pad_left + shape.pad_right; }
  int64_t input_row() const { return constants.input_pixel_stride * padded_width(); }
  int64_t input_bytes() const { return input_row() * padded_height(); }
  int64_t residual_pixel() const { return int8_pixel_stride(shape.out_channels); }
  int64_t residual_bytes() const { return residual_pixel() * shape.out_width * shape.out_height; }
  int64_t output_row() const { return output_pixel_stride * shape.out_width; }
  int64_t output_bytes() const { return output_row() * shape.out_height; }
  // From an image to the next, in all memories.
  int64_t step() const { return (input_bytes() + residual_bytes() + output_bytes() + 5 * kMargin) / 64 * 64; }
};

int64_t out_size(int64_t padded, int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t room = padded - ((kernel - 1) * dilation + 1);
  return room < 0 ? 0 : room / stride + 1;
}

Conv2dShape read_shape(Bytes& bytes) {
  Conv2dShape s{};
  const int64_t channels = bytes.range(0, 7) ? 40 : 140;
  s.in_channels = bytes.range(1, channels);
  s.out_channels = bytes.range(1, channels);
  s.in_height = bytes.range(1, 9);
  s.in_width = bytes.range(1, bytes.range(0, 4) ? 9 : 40);
  const bool usual = bytes.flag();
  s.kernel_height = usual ? 3 : bytes.range(1, 5);
  s.kernel_width = usual ? 3 : bytes.range(1, 5);
  s.stride_height = bytes.range(1, 3);
  s.stride_width = bytes.range(1, 3);
  const int64_t dilation = bytes.range(0, 3) ? 1 : 3;
  s.dilation_height = bytes.range(1, dilation);
  s.dilation_width = bytes.range(1, dilation);
  s.groups = 1;
  const int64_t groups = bytes.range(0, 7);
  if (groups >= 6) s.groups = s.out_channels = s.in_channels;
  if (groups == 5 && s.in_channels % 2 == 0 && s.out_channels % 2 == 0) s.groups = 2;
  for (int64_t* pad : {&s.pad_top, &s.pad_left, &s.pad_bottom, &s.pad_right}) *pad = bytes.range(0, 3);
  s.out_height =
      out_size(s.in_height + s.pad_top + s.pad_bottom, s.kernel_height, s.stride_height, s.dilation_height);
  s.out_width =
      out_size(s.in_width + s.pad_left + s.pad_right, s.kernel_width, s.stride_width, s.dilation_width);
  return s;
}

void read_constants(Bytes& bytes, Random& random, Layer& layer) {
  const Conv2dShape& s = layer.shape;
  layer.weight.resize(
      static_cast<size_t>(s.out_channels * layer.group_inputs() * s.kernel_height * s.kernel_width));
  random.codes(layer.weight.data(), static_cast<int64_t>(layer.weight.size()), bytes.range(0, 100),
               bytes.range(1, 127));
  layer.bias.assign(static_cast<size_t>(s.out_channels), 100.f);
  layer.multiplier.resize(layer.bias.size());
  for (float& m : layer.multiplier) m = static_cast<float>(random.below(1000) - 200) * 1e-6f;
  Conv2dConstants& k = layer.constants;
  k.weight = layer.weight.data();
  k.multiplier = layer.multiplier.data();
  k.bias = layer.bias.data();
  k.input_zero_point = bytes.flag() ? 0 : static_cast<int32_t>(bytes.range(0, 255));
  k.quant_min = bytes.flag() ? 0 : static_cast<int32_t>(bytes.range(0, 20));
  k.quant_max = bytes.flag() ? 255 : static_cast<int32_t>(bytes.range(200, 255));
  k.has_residual = bytes.flag();
  k.residual_multiplier = .3f;
  k.residual_zero_point = 5;
  k.float_output = !k.has_residual && bytes.range(0, 3) == 0;
  k.input_pixel_stride = int8_pixel_stride(s.in_channels);
  if (s.in_channels > 1 && bytes.range(0, 3) == 0) k.input_pixel_stride += 4 * bytes.range(0, 9);
  layer.output_pixel_stride = s.out_channels + (bytes.range(0, 2) == 0 ? 8 : 0);
  layer.images = bytes.range(1, 3);
}

// Input and residual of all images; the border holds the zero point, everything else any code.
struct Memory {
  Exact<uint8_t> input, residual;

  Memory(const Layer& layer, Random& random)
      : input(2 * kMargin + layer.step() * (layer.images - 1) + layer.input_bytes()),
        residual(2 * kMargin + layer.step() * (layer.images - 1) + layer.residual_bytes()) {
    for (Exact<uint8_t>* memory : {&input, &residual}) {
      for (int64_t i = 0; i < memory->size(); ++i) (*memory)[i] = static_cast<uint8_t>(random.next());
    }
    for (int64_t image = 0; image < layer.images; ++image) fill_border(layer, image, random);
  }

  void fill_border(const Layer& layer, int64_t image, Random& random) {
    const Conv2dShape& s = layer.shape;
    uint8_t* first = input.data() + kMargin + image * layer.step();
    std::memset(first, layer.constants.input_zero_point, static_cast<size_t>(layer.input_bytes()));
    for (int64_t y = 0; y < s.in_height; ++y) {
      uint8_t* row =
          first + layer.input_row() * (y + s.pad_top) + layer.constants.input_pixel_stride * s.pad_left;
      for (int64_t i = 0; i < s.in_width * layer.constants.input_pixel_stride; ++i) {
        row[i] = static_cast<uint8_t>(random.next());
      }
    }
  }
};

int32_t accumulator(const Layer& layer, const uint8_t* input, int64_t o, int64_t y, int64_t x) {
  const Conv2dShape& s = layer.shape;
  const int64_t inputs = layer.group_inputs(), first = o / (s.out_channels / s.groups) * inputs;
  const int8_t* weight = layer.weight.data() + o * inputs * s.kernel_height * s.kernel_width;
  int32_t sum = 0;
  for (int64_t c = 0; c < inputs; ++c) {
    for (int64_t ky = 0; ky < s.kernel_height; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
        const int64_t row = y * s.stride_height + ky * s.dilation_height;
        const int64_t pixel = x * s.stride_width + kx * s.dilation_width;
        const int code =
            input[layer.input_row() * row + layer.constants.input_pixel_stride * pixel + first + c];
        sum += (code - layer.constants.input_zero_point) * *weight++;
      }
    }
  }
  return sum;
}

// NHWC, as floats whether they are codes or not.
std::vector<float> reference(const Layer& layer, const Memory& memory) {
  const Conv2dShape& s = layer.shape;
  const Conv2dConstants& k = layer.constants;
  std::vector<float> result;
  for (int64_t image = 0; image < layer.images; ++image) {
    const uint8_t* input = memory.input.data() + kMargin + image * layer.step();
    const uint8_t* residual = memory.residual.data() + kMargin + image * layer.step();
    for (int64_t pixel = 0; pixel < s.out_height * s.out_width; ++pixel) {
      for (int64_t o = 0; o < s.out_channels; ++o) {
        const int32_t sum = accumulator(layer, input, o, pixel / s.out_width, pixel % s.out_width);
        float value = static_cast<float>(sum) * k.multiplier[o];
        if (k.has_residual) {
          const int code = residual[layer.residual_pixel() * pixel + o];
          value = value + static_cast<float>(code - k.residual_zero_point) * k.residual_multiplier;
        }
        value = value + k.bias[o];
        if (!k.float_output) {
          value =
              std::clamp(std::rint(value), static_cast<float>(k.quant_min), static_cast<float>(k.quant_max));
        }
        result.push_back(value);
      }
    }
  }
  return result;
}

bool run_is(const std::vector<float>& expected, const Layer& layer, const Memory& memory,
            const PackedConv2d& packed, int64_t split) {
  const Conv2dShape& s = layer.shape;
  const Conv2dConstants& k = layer.constants;
  Exact<float> floats(k.float_output ? layer.outputs() * layer.images : 0);
  Exact<uint8_t> codes(k.float_output ? 0 : layer.step() * (layer.images - 1) + layer.output_bytes());
  AlignedArray<uint8_t> scratch(packed.scratch_bytes());
  // Kernels only read these.
  uint8_t* residual_data = const_cast<uint8_t*>(memory.residual.data()) + kMargin;
  uint8_t* input_data = const_cast<uint8_t*>(memory.input.data()) + kMargin;
  const Int8Image residual{residual_data, layer.residual_pixel() * s.out_width, layer.residual_pixel()};
  Int8ConvImages images{};
  images.count = layer.images;
  images.step = layer.step();
  images.float_step = layer.outputs();
  images.input = {input_data + layer.input_row() * s.pad_top + k.input_pixel_stride * s.pad_left,
                  layer.input_row(), k.input_pixel_stride};
  images.residual = k.has_residual ? &residual : nullptr;
  images.output = {codes.data(), layer.output_row(), layer.output_pixel_stride};
  images.float_output = k.float_output ? floats.data() : nullptr;
  images.scratch = scratch.data();
  if (split > 0) packed.run(images, 0, split);
  if (split < s.out_height) packed.run(images, split, s.out_height);
  size_t at = 0;
  for (int64_t image = 0; image < layer.images; ++image) {
    for (int64_t pixel = 0; pixel < s.out_height * s.out_width; ++pixel) {
      for (int64_t o = 0; o < s.out_channels; ++o, ++at) {
        const float got =
            k.float_output
                ? floats[static_cast<int64_t>(at)]
                : static_cast<float>(codes[image * layer.step() + pixel * layer.output_pixel_stride + o]);
        if (got != expected[at]) return false;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace pqk::fuzz

PQK_FUZZ_TARGET(kernels) {
  Layer layer;
  layer.shape = read_shape(bytes);
  const Conv2dShape& s = layer.shape;
  const int64_t pixels = s.out_height * s.out_width;
  const int64_t products = pixels * s.out_channels * layer.group_inputs() * s.kernel_height * s.kernel_width;
  if (pixels == 0 || products > kMostProducts) return;
  Random random(bytes.number(2));
  read_constants(bytes, random, layer);
  const Memory memory(layer, random);
  const std::vector<float> expected = reference(layer, memory);
  const int64_t split = bytes.range(0, s.out_height);
  const Isa isa = bytes.pick(isas());
  const WithIsa with(isa);
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    const auto packed = kernel.pack(s, layer.constants);
    if (packed == nullptr) continue;
    require(run_is(expected, layer, memory, *packed, split), "plain arithmetic",
            std::string(isa_name(isa)) + " " + kernel.name);
  }
}
