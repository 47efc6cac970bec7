// Runs a Plan: any batch, one or more threads, any number of callers at once.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "core/engine/plan.h"
#include "core/thread_pool.h"

namespace pqk::engine {

class Engine {
 public:
  Engine(const Graph& graph, int num_threads, const KernelOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // `input` is [batch, *input shape] and `output` [batch, *output shape], dense. Returns -1, or the flat index
  // of the first NaN in `input`, after which `output` holds nothing of use.
  int64_t run(const float* input, float* output, int64_t batch) const;

  // Seconds that each step takes for one image: the least of `repeats` runs, on the calling thread.
  std::vector<double> profile(const float* input, int repeats) const;

  const Plan& plan() const { return plan_; }
  int num_threads() const { return pool_.num_threads(); }

 private:
  class Workspace;
  class Lease;

  std::unique_ptr<Workspace> acquire() const;
  void release(std::unique_ptr<Workspace> workspace) const;
  template <class Run>
  int64_t for_each_step(const Frame& frame, const Run& run) const;
  int64_t run_frame(const Frame& frame) const;
  int64_t run_images(const float* input, float* output, int64_t begin, int64_t end, Workspace& workspace) const;
  int64_t run_parts_parallel(const float* input, float* output, int64_t batch) const;
  int64_t run_images_parallel(const float* input, float* output, int64_t batch) const;

  ThreadPool pool_;
  Plan plan_;
  // Workspaces that nobody uses now. Slots are taken and given back by one atomic exchange, so that a fork in
  // the middle of another thread's call leaves nothing locked.
  static constexpr size_t kKeptWorkspaces = 64;
  mutable std::array<std::atomic<Workspace*>, kKeptWorkspaces> idle_{};
};

}  // namespace pqk::engine
