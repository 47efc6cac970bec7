// Runs a graph on a GPU: any batch, any number of callers at once. Every pointer is the host's.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "core/cuda/engine/host.h"
#include "core/cuda/engine/program.h"
#include "core/cuda/engine_kernels.h"

namespace pqk::engine::device {

// Who walks the program.
enum class Executor {
  kAutomatic,  // the resident one, where a network is small enough for it
  kResident,   // one block of threads an image: all steps in one launch, activations in shared memory
  kSteps,      // a launch a step for all images, recorded for each batch size
};

class Engine {
 public:
  // Throws DeviceError where the GPU cannot be used or lacks memory, std::invalid_argument for a network that
  // the executor asked for cannot run, FormatError when the graph needs too much memory.
  Engine(const Graph& graph, int device, Executor executor);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // `input` is [batch, *input shape] and `output` [batch, *output shape], dense. Returns -1, or the flat index
  // of the first NaN in `input`, after which `output` holds nothing of use.
  int64_t run(const float* input, float* output, int64_t batch) const;

  // Seconds that each step takes for one image in a launch of its own: the least of `repeats` runs.
  std::vector<double> profile(const float* input, int repeats) const;

  const Program& program() const { return program_; }
  const DeviceInfo& device() const { return device_; }
  const char* executor() const { return resident_ ? "resident" : "steps"; }

 private:
  class Workspace;

  std::unique_ptr<Workspace> acquire() const;
  void release(std::unique_ptr<Workspace> workspace) const;
  DeviceProgram device_program() const;
  // With the tiles for a launch a step.
  std::vector<Step> steps_for(int images) const;

  Program program_;
  DeviceInfo device_;
  bool resident_ = false;
  int most_images_ = 1;  // at once
  Memory constants_, steps_, borders_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace pqk::engine::device
