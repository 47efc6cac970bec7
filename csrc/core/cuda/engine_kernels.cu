#include "core/cuda/engine_kernels.h"

#include <algorithm>

#include "core/cuda/engine/conv.cuh"
#include "core/cuda/engine/floats.cuh"
#include "core/cuda/engine/maps.cuh"
#include "core/cuda/engine/moves.cuh"
#include "core/cuda/engine/pools.cuh"

namespace pqk::engine::device {
namespace {

static_assert(std::is_trivially_copyable_v<Step>);

PQK_DEVICE void run_any(const Step& step, const Frame& frame, const ResidentTeam& team) {
  switch (step.kind) {
#define PQK_RUN(Name)     \
  case StepKind::k##Name: \
    return run(step.as_##Name, frame, team);
    PQK_DEVICE_STEPS(PQK_RUN)
#undef PQK_RUN
  }
}

PQK_DEVICE void fill_bytes(uint8_t* to, int64_t bytes, uint8_t value, const Team& team) {
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % sizeof(uint4));
  const int64_t head = misaligned == 0 ? 0 : min(bytes, static_cast<int64_t>(sizeof(uint4)) - misaligned);
  const int64_t vectors = (bytes - head) / static_cast<int64_t>(sizeof(uint4));
  const uint32_t word = value * 0x01010101u;
  auto* body = reinterpret_cast<uint4*>(to + head);
  for (int64_t i = team.thread; i < vectors; i += team.threads) body[i] = make_uint4(word, word, word, word);
  const int64_t tail = head + vectors * static_cast<int64_t>(sizeof(uint4));
  for (int64_t i = team.thread; i < head; i += team.threads) to[i] = value;
  for (int64_t i = tail + team.thread; i < bytes; i += team.threads) to[i] = value;
}

PQK_DEVICE void fill(const DeviceProgram& program, uint8_t* arena, const Team& team) {
  for (int i = 0; i < program.num_borders; ++i) {
    const Border& border = program.borders[i];
    fill_bytes(arena + border.offset, border.bytes, border.value, team);
  }
}

__global__ void __launch_bounds__(kStepThreads) fill_kernel(DeviceProgram program, Frame frame) {
  const Team team{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  for (int image = static_cast<int>(blockIdx.x); image < frame.images; image += static_cast<int>(gridDim.x)) {
    fill(program, frame.arena + image * frame.arena_step, team);
  }
}

template <class Kind>
__global__ void __launch_bounds__(kStepThreads) step_kernel(Kind step, Frame frame) {
  const Team team{static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
                  static_cast<int>(gridDim.x * blockDim.x)};
  run(step, frame, team);
}

constexpr int kStepWords = static_cast<int>(sizeof(Step) / sizeof(uint32_t));
static_assert(kStepWords <= kResidentThreads && sizeof(Step) % sizeof(uint32_t) == 0);

// Step `index` of the program, counted round and round, to one of two places behind the arena in turns.
PQK_DEVICE void fetch_step(const DeviceProgram& program, int index, uint32_t* places, int thread) {
  if (thread >= kStepWords) return;
  const auto* from = reinterpret_cast<const uint32_t*>(program.steps + index % program.num_steps);
  places[index % 2 * kStepWords + thread] = from[thread];
}

// A step is fetched while the one before it runs.
__global__ void __launch_bounds__(kResidentThreads) resident_kernel(DeviceProgram program, Frame frame) {
  uint8_t* const arena = cuda::dynamic_shared<uint8_t>();
  auto* const places = reinterpret_cast<uint32_t*>(arena + program.arena_bytes);
  const ResidentTeam team{{static_cast<int>(threadIdx.x), kResidentThreads}};
  fetch_step(program, 0, places, team.thread);
  fill(program, arena, team);
  __syncthreads();
  int fetched = 0;
  for (int image = static_cast<int>(blockIdx.x); image < frame.images; image += static_cast<int>(gridDim.x)) {
    const Frame one{arena,
                    frame.input + image * frame.input_step,
                    frame.output + image * frame.output_step,
                    frame.constants,
                    frame.nan + image,
                    0,
                    frame.input_step,
                    frame.output_step,
                    1};
    for (int i = 0; i < program.num_steps; ++i) {
      const Step& step = *reinterpret_cast<const Step*>(places + fetched % 2 * kStepWords);
      fetch_step(program, ++fetched, places, team.thread);
      run_any(step, one, team);
      __syncthreads();
    }
  }
}

int ceil_blocks(int64_t threads, int max_blocks) {
  return static_cast<int>(std::clamp<int64_t>(cuda::ceil_div(threads, kStepThreads), 1, max_blocks));
}

// Threads that have work in a step.
template <class Kind>
int64_t num_threads(const Kind& step, int images) {
  return int64_t{images} * step.extent.by_pixels.divisor * step.extent.by_channels.divisor;
}
int64_t num_threads(const Softmax&, int images) { return int64_t{images} * cuda::kWarp; }
int64_t num_threads(const Conv& step, int images) {
  const int64_t rows = int64_t{images} * step.by_pixels.divisor;
  return cuda::ceil_div(rows, 16 * step.row_tiles) * step.groups * (step.channel_tiles / step.pair_tiles) *
         cuda::kWarp;
}

template <class Kind>
const char* launch_step(const Kind& step, const Frame& frame, int max_blocks, void* stream) {
  const int blocks = ceil_blocks(num_threads(step, frame.images), max_blocks);
  return cuda::launch(&step_kernel<Kind>, blocks, kStepThreads, 0, stream, step, frame);
}

}  // namespace

const char* fill_borders(const DeviceProgram& program, const Frame& frame, void* stream) {
  return cuda::launch(&fill_kernel, frame.images, kStepThreads, 0, stream, program, frame);
}

const char* run_step(const Step& step, const Frame& frame, int max_blocks, void* stream) {
  switch (step.kind) {
#define PQK_LAUNCH(Name)  \
  case StepKind::k##Name: \
    return launch_step(step.as_##Name, frame, max_blocks, stream);
    PQK_DEVICE_STEPS(PQK_LAUNCH)
#undef PQK_LAUNCH
  }
  return nullptr;
}

size_t resident_shared_bytes(int64_t arena_bytes) {
  return static_cast<size_t>(arena_bytes) + 2 * sizeof(Step);
}

const char* run_resident(const DeviceProgram& program, const Frame& frame, int max_blocks, void* stream) {
  return cuda::launch(&resident_kernel, std::min(frame.images, max_blocks), kResidentThreads,
                      resident_shared_bytes(program.arena_bytes), stream, program, frame);
}

const void* probe_kernel() { return reinterpret_cast<const void*>(&resident_kernel); }

}  // namespace pqk::engine::device
