// Runs a grid of CUDA threads on the CPU: blocks one after another, the threads of a block as fibers that
// change at barriers and warp collectives. In which order threads run between those is chosen from outside, so
// that a kernel which leans on an order that CUDA does not promise gives different results under different
// orders.
//
// What it does not show: errors that need true concurrency of blocks, anything about speed or registers, and
// how the GPU converts floats out of an integer's range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct dim3;

namespace pqk::cuda::emulation {

// Uninitialised shared memory, and what a lane gets from one that does not take part, consist of this byte.
constexpr unsigned char kPoison = 0xcb;
// What the smallest of the supported GPUs (sm_86) gives to a block.
constexpr size_t kMaxSharedBytes = 101376;
constexpr int kMultiprocessors = 3;

// kForward: lowest thread first, asynchronous copies as late as may be. kBackward: highest thread first, copies
// at once. kShuffled: both at random.
enum class Order { kForward = 0, kBackward = 1, kShuffled = 2 };
void set_order(Order order, uint32_t seed);
int64_t num_launches();

// Calls `thread(context)` once for every thread: nullptr, or what was wrong with the launch or with what a
// thread did; the other threads then go no further.
const char* run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, void (*thread)(void*),
                     void* context);

// The rest is for code that runs as a CUDA thread.

// Ends the launch with this error.
[[noreturn]] void fail(const std::string& error);
void* shared_memory();
unsigned lane();

struct Vote {
  int count;
  bool all, any;
};
// All threads of the block that have not returned; `site` tells barriers apart.
struct Site {
  const char* file;
  unsigned line, column;
};
Vote block_barrier(bool value, const Site& site);

// What a lane brings to a collective of its warp. The last lane to come calls `complete` with the requests of
// all lanes, nullptr for those that are not in `mask` or have returned; it writes each lane's result.
struct Request {
  void (*complete)(Request* const* lanes);
  const char* name;
};
void warp_collective(uint32_t mask, Request& request);

// Asynchronous copies of 16 bytes.
void start_copy(void* shared, const void* global, bool valid);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace pqk::cuda::emulation
