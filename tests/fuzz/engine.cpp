// Graphs from bytes, with small limits: refused with a name, or planned and run. Every instruction set, every
// kernel, any batch and number of threads give the bits of the first kernel on the baseline set, image by
// image.
#include "core/engine/execute.h"

#include <cmath>

#include "engine_graph.h"

namespace pqk::fuzz {
namespace {

constexpr int64_t kMostProducts = 1 << 18;

struct Result {
  int64_t nan = -1;
  std::vector<float> output;
  bool refused = false;
};

struct Way {
  Isa isa = Isa::kBaseline;
  std::string kernel;
  int threads = 1;
  bool together = false;  // all images in one call
};

Result run(const engine::Graph& graph, const std::vector<float>& input, int64_t batch, const Way& way) {
  const WithIsa with(way.isa);
  engine::KernelOptions options;
  if (!way.kernel.empty()) options.choices["*"] = way.kernel;
  Result result;
  std::unique_ptr<engine::Engine> engine;
  try {
    engine = std::make_unique<engine::Engine>(graph, way.threads, options);
  } catch (const FormatError& error) {
    require_named(error);
    result.refused = true;
    return result;
  }
  const int64_t in = engine->plan().input_numel(), out = engine->plan().output_numel();
  Exact<float> from(input.data(), in * batch), to(out * batch);
  if (way.together) {
    result.nan = engine->run(from.data(), to.data(), batch);
  } else {
    for (int64_t i = 0; i < batch && result.nan < 0; ++i) {
      result.nan = engine->run(from.data() + i * in, to.data() + i * out, 1);
      if (result.nan >= 0) result.nan += i * in;
    }
  }
  result.output.assign(to.data(), to.data() + to.size());
  return result;
}

std::vector<float> read_input(Bytes& bytes, int64_t count) {
  Random random(bytes.number(2));
  std::vector<float> input(static_cast<size_t>(count));
  for (float& number : input) number = static_cast<float>(random.below(4001) - 2000) * 0.005f;
  constexpr float kOdd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-42f, -0.0f, 0.125f};
  const uint8_t odd = bytes.u8();
  if (odd < 64) input[random.below(count)] = kOdd[odd % 8];
  return input;
}

void require_same(const Result& got, const Result& expected, const Way& way) {
  const std::string name = std::string(isa_name(way.isa)) + " " + way.kernel;
  require(got.refused == expected.refused, "the same answer from", name);
  require(got.nan == expected.nan, "the same place of a NaN from", name);
  if (expected.nan >= 0 || expected.output.empty()) return;
  require(std::memcmp(got.output.data(), expected.output.data(), expected.output.size() * sizeof(float)) == 0,
          "the same bits from", name);
}

Way read_way(Bytes& bytes) {
  const auto& kernels = conv2d_kernels();
  Way way;
  way.isa = bytes.pick(isas());
  const int64_t kernel = bytes.range(0, static_cast<int64_t>(kernels.size()));
  if (kernel > 0) way.kernel = kernels[static_cast<size_t>(kernel - 1)].name;
  way.threads = bytes.range(0, 15) == 15 ? 2 : 1;
  way.together = bytes.flag();
  return way;
}

}  // namespace
}  // namespace pqk::fuzz

PQK_FUZZ_TARGET(engine) {
  const Way way = read_way(bytes);
  const int64_t batch = bytes.range(1, 3);
  const uint64_t seed = bytes.number(3);
  const uint8_t seeds[] = {static_cast<uint8_t>(seed), static_cast<uint8_t>(seed >> 8),
                           static_cast<uint8_t>(seed >> 16)};
  GraphSource source(bytes);
  if (!source.complete() || source.products() > kMostProducts) return;
  source.graph().finish();
  Bytes input_bytes(seeds, sizeof seeds);
  const std::vector<float> input = read_input(input_bytes, source.graph().input().numel() * batch);
  const Result expected = run(source.graph(), input, batch, {});
  const Result got = run(source.graph(), input, batch, way);
  if (source.bits_are_specified()) require_same(got, expected, way);
}
