// The runtime's own threads. (The torch ops use torch's.)
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/parallel.h"

namespace pqk {

// `num_threads` counts the caller: the pool has one worker less. Workers look for work for some microseconds
// after each job, then sleep. Any thread may call run(); one that finds the pool at work on another's job does
// its own alone. After fork() the child has no workers, and its calls run on the calling thread.
class ThreadPool final : public Parallel {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // `range` must not throw.
  void run(int64_t count, int64_t grain, Range range, void* context) const override;
  int num_threads() const override { return num_threads_; }

 private:
  struct State;
  static void work(State& state);

  int num_threads_;
  std::unique_ptr<State> state_;  // null with one thread
};

}  // namespace pqk
