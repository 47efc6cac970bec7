// One block of threads: its fibers, its shared memory and who may run when.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/cuda/emulation/fiber.h"
#include "core/cuda/emulation/grid.h"

namespace pqk::cuda::emulation {

class Scheduler {
 public:
  Scheduler() = default;
  Scheduler(Order order, uint32_t seed) : order_(order), state_(seed * 2654435761u + 1) {}
  Order order() const { return order_; }
  // Puts a forward sequence into the order.
  void arrange(std::vector<uint32_t>& sequence);
  bool chance(uint32_t one_in) { return next() % one_in == 0; }

 private:
  uint32_t next();
  Order order_ = Order::kForward;
  uint32_t state_ = 1;
};

struct Copy {
  void* shared;
  const void* global;
  bool valid;
  uint32_t group;
};

struct Fiber {
  enum class State { kRunnable, kAtBarrier, kAtCollective, kReturned };
  Context context;
  uint32_t index = 0;
  State state = State::kReturned;
  bool value = false;
  Site site{};
  uint32_t mask = 0;
  Request* request = nullptr;
  std::vector<Copy> copies;  // under way, the oldest first
  uint32_t open_group = 0;
};

struct Memory {
  void* begin = nullptr;
  size_t bytes = 0;
};

class Block {
 public:
  Scheduler scheduler;

  bool prepare(const dim3& dimensions, size_t shared_bytes, void (*thread)(void*), void* context);
  // Of block blockIdx; false if a thread did what it must not.
  bool run();
  const std::string& error() const { return error_; }
  void* shared_memory() { return shared_begin_; }

  Fiber& current() { return *current_; }
  [[noreturn]] void fail(const std::string& text);
  Vote barrier(bool value, const Site& site);
  void collective(uint32_t mask, Request& request);
  void start_copy(void* shared, const void* global, bool valid);
  void commit_copies() { ++current_->open_group; }
  void wait_for_copies(uint32_t pending);
  void enter();

 private:
  void start_threads();
  void resume(Fiber& fiber);
  void leave();
  bool pass();
  bool release_barrier();
  bool complete_collective(uint32_t warp, uint32_t mask);
  void returned();
  void poison_shared_memory();
  bool shared_memory_is_whole() const;
  std::string describe(const Fiber& fiber) const;
  void report_deadlock();

  uint32_t count_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<uint32_t> sequence_;
  Stacks stacks_;
  Context scheduler_context_;
  Fiber* current_ = nullptr;
  void (*thread_)(void*) = nullptr;
  void* argument_ = nullptr;
  std::vector<unsigned char> shared_;
  unsigned char* shared_begin_ = nullptr;
  size_t shared_bytes_ = 0;
  Memory static_shared_;
  Vote vote_{};
  std::string error_;
};

}  // namespace pqk::cuda::emulation
