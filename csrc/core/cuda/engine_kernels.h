// Launches of a device program. Every pointer is device memory; work goes to `stream` (a cudaStream_t) of the
// current device, and nothing waits. Each returns nullptr or CUDA's words for what went wrong.
#pragma once

#include <cstddef>

#include "core/cuda/engine/steps.h"

namespace pqk::engine::device {

// A program in device memory.
struct DeviceProgram {
  const Step* steps;
  int num_steps;
  const Border* borders;
  int num_borders;
  int arena_bytes;
};

inline constexpr int kResidentThreads = 512;
inline constexpr int kStepThreads = 128;

// Fills the borders of the images' arenas.
const char* fill_borders(const DeviceProgram& program, const Frame& frame, void* stream);

// One step for all images of the frame, by as many blocks as have work, `max_blocks` at most.
const char* run_step(const Step& step, const Frame& frame, int max_blocks, void* stream);

// All steps in one launch: a block walks the program for an image in shared memory, then for the next one.
// `frame` has no arena.
const char* run_resident(const DeviceProgram& program, const Frame& frame, int max_blocks, void* stream);
// Dynamic shared memory that it needs.
size_t resident_shared_bytes(int64_t arena_bytes);

// A kernel of this library, to ask the driver whether there is code for its GPU.
const void* probe_kernel();

}  // namespace pqk::engine::device
