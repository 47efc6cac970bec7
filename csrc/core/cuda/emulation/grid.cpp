#include "core/cuda/emulation/grid.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <vector>

#include "core/cuda/emulation/block.h"
#include "core/cuda/emulation/cuda.h"

namespace pqk::cuda::emulation {
namespace {

std::mutex mutex;
std::string error;
std::atomic<int64_t> launches{0};
Block block_state;

// CUDA's own words for these.
constexpr const char* kInvalidConfiguration = "invalid configuration argument";
constexpr const char* kInvalidValue = "invalid argument";

const char* check(const dim3& grid, const dim3& block, size_t shared_bytes) {
  const bool grid_fits =
      grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  const bool block_fits = block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 && block.y <= 1024 &&
                          block.z <= 64 && uint64_t{block.x} * block.y * block.z <= 1024;
  if (!grid_fits || !block_fits) return kInvalidConfiguration;
  return shared_bytes > kMaxSharedBytes ? kInvalidValue : nullptr;
}

}  // namespace

void set_order(Order order, uint32_t seed) {
  const std::lock_guard lock(mutex);
  block_state.scheduler = {order, seed};
}

int64_t num_launches() { return launches; }

const char* run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, void (*thread)(void*),
                     void* context) {
  const std::lock_guard lock(mutex);
  ++launches;
  if (const char* refused = check(grid, block, shared_bytes)) return refused;
  gridDim = grid;
  blockDim = block;
  if (!block_state.prepare(block, shared_bytes, thread, context)) return "out of memory";
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint32_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), 0u);
  block_state.scheduler.arrange(sequence);
  for (const uint32_t index : sequence) {
    blockIdx = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    if (!block_state.run()) {
      error = block_state.error();
      return error.c_str();
    }
  }
  return nullptr;
}

void fail(const std::string& text) { block_state.fail(text); }
void* shared_memory() { return block_state.shared_memory(); }
unsigned lane() { return block_state.current().index % 32; }
Vote block_barrier(bool value, const Site& site) { return block_state.barrier(value, site); }
void warp_collective(uint32_t mask, Request& request) { block_state.collective(mask, request); }
void start_copy(void* shared, const void* global, bool valid) { block_state.start_copy(shared, global, valid); }
void commit_copies() { block_state.commit_copies(); }
void wait_for_copies(int pending) { block_state.wait_for_copies(static_cast<uint32_t>(pending)); }

}  // namespace pqk::cuda::emulation

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// For tests, which reach this library by ctypes.
extern "C" {
__attribute__((visibility("default"))) void pqk_emulation_set_order(int order, uint32_t seed) {
  pqk::cuda::emulation::set_order(static_cast<pqk::cuda::emulation::Order>(order), seed);
}
__attribute__((visibility("default"))) int64_t pqk_emulation_num_launches() {
  return pqk::cuda::emulation::num_launches();
}
}
