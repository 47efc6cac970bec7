// The names of CUDA C++ that this package's kernels use, for a C++ compiler: see grid.h.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/cuda/emulation/grid.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// One for the block: see block.cpp.
#define __shared__ static thread_local
#define __constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "core/cuda/emulation/vector_types.h"

// Set for the thread that runs.
#define PQK_EMULATION_VARIABLE extern __attribute__((visibility("hidden")))
PQK_EMULATION_VARIABLE uint3 threadIdx, blockIdx;
PQK_EMULATION_VARIABLE dim3 blockDim, gridDim;
#undef PQK_EMULATION_VARIABLE
constexpr int warpSize = 32;

#include "core/cuda/emulation/intrinsics.h"
#include "core/cuda/emulation/warp.h"

namespace pqk::cuda {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::shared_memory());
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
};

inline int num_multiprocessors(int) { return emulation::kMultiprocessors; }
inline size_t max_shared_bytes(int) { return emulation::kMaxSharedBytes; }

// Runs the whole grid before it returns.
template <class... P, class... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void*, A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument for each of the kernel's parameters");
  using Call = std::tuple<void (*)(P...), std::decay_t<P>...>;
  Call call(kernel, std::forward<A>(arguments)...);
  const auto thread = [](void* context) {
    std::apply([](auto function, const auto&... values) { function(values...); }, *static_cast<Call*>(context));
  };
  return emulation::run_grid(grid, block, shared_bytes, thread, &call);
}

}  // namespace pqk::cuda
