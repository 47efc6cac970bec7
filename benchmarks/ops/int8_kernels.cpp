// A packed integer convolution and the processor's peak behind a C interface, so that bench_int8.py can time
// the kernel alone, beside its peers and in one process. bench_int8.py compiles this file.
#include <chrono>
#include <cstdint>
#include <vector>

#include "core/int8_conv2d.h"

using namespace pqk;

namespace {

constexpr int64_t kSpare = 64;  // bytes around an image and for its alignment

struct Image {
  std::vector<uint8_t> memory;
  Int8Image image;

  Image(int64_t channels, int64_t height, int64_t width, int64_t top, int64_t left, int64_t bottom,
        int64_t right) {
    const int64_t pixel = int8_pixel_stride(channels), row = pixel * (width + left + right);
    memory.resize(row * (height + top + bottom) + 3 * kSpare);
    for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    uint8_t* first = memory.data() + kSpare + (kSpare - address % kSpare) % kSpare;
    image = {first + top * row + left * pixel, row, pixel};
  }
};

struct Layer {
  Conv2dShape shape;
  Image input, residual, output;
  std::vector<float> floats;
  bool has_residual;
  std::unique_ptr<PackedConv2d> packed;
};

}  // namespace

extern "C" {

// `numbers` are the fields of Conv2dShape in their order.
void* bench_create(const int64_t* numbers, int has_residual) {
  const Conv2dShape s{numbers[0],  numbers[1],  numbers[2],  numbers[3],  numbers[4],  numbers[5],
                      numbers[6],  numbers[7],  numbers[8],  numbers[9],  numbers[10], numbers[11],
                      numbers[12], numbers[13], numbers[14], numbers[15], numbers[16]};
  const int64_t fan_in = s.in_channels / s.groups * s.kernel_height * s.kernel_width;
  std::vector<int8_t> weight(s.out_channels * fan_in);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<int8_t>(i * 40503u >> 7);
  const std::vector<float> multiplier(s.out_channels, 1e-3f), bias(s.out_channels, 100.0f);
  auto* layer =
      new Layer{s,
                Image(s.in_channels, s.in_height, s.in_width, s.pad_top, s.pad_left, s.pad_bottom, s.pad_right),
                Image(s.out_channels, s.out_height, s.out_width, 1, 1, 1, 1),
                Image(s.out_channels, s.out_height, s.out_width, 1, 1, 1, 1),
                {},
                has_residual != 0,
                nullptr};
  layer->packed = pack_conv2d(
      s, {weight.data(), multiplier.data(), bias.data(), 128, 0, 255, false, has_residual != 0, 0.5f, 128});
  return layer;
}

void bench_run(void* handle) {
  const Layer& layer = *static_cast<Layer*>(handle);
  layer.packed->run(layer.input.image, layer.has_residual ? &layer.residual.image : nullptr, layer.output.image,
                    nullptr, 0, layer.shape.out_height);
}

// Fastest of `rounds` timings of `calls` runs, in seconds a run.
double bench_seconds(void* handle, int rounds, int calls) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
    for (int call = 0; call < calls; ++call) bench_run(handle);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count() / calls;
    best = seconds < best ? seconds : best;
  }
  return best;
}

void bench_destroy(void* handle) { delete static_cast<Layer*>(handle); }

// Products a second of 512-bit vpdpbusd on registers; 0 where the processor has none.
double bench_peak() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx512vnni")) return 0;
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kLoops = 100000;
  double best = 1e9;
  for (int round = 0; round < 50; ++round) {
    int64_t n = kLoops;
    const auto start = Clock::now();
    asm volatile(
        "1:\n"
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
        "vpdpbusd %%zmm30,%%zmm31,%%zmm\\r\n"
        ".endr\n"
        "dec %0\n"
        "jnz 1b"
        : "+r"(n)
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15");
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = seconds < best ? seconds : best;
  }
  return kLoops * 16 * 64 / best;
#else
  return 0;
#endif
}
}
