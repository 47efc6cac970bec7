// What every CUDA kernel of this package includes. nvcc compiles the .cu files for the GPU; with
// PQK_CUDA_EMULATION a C++ compiler compiles the same files, and core/cuda/emulation runs their threads on the
// CPU. So kernels are launched by launch() alone, and reach dynamic shared memory by dynamic_shared() alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(PQK_CUDA_EMULATION)
#include "core/cuda/emulation/cuda.h"
#else
#include <cuda_runtime.h>
#endif

namespace pqk::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
// Dynamic shared memory that a kernel may use without asking for it.
constexpr size_t kDefaultSharedBytes = 48 << 10;
// Dynamic shared memory begins at a multiple of this.
constexpr size_t kSharedAlignment = 128;

template <class A, class B>
__host__ __device__ constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

#if !defined(PQK_CUDA_EMULATION)

// The block's dynamic shared memory, of launch()'s `shared_bytes`.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(kSharedAlignment) unsigned char pqk_dynamic_shared[];
  return reinterpret_cast<T*>(pqk_dynamic_shared);
}

// Makes `device` current, and the previous one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (cudaGetDevice(&previous_) == cudaSuccess && previous_ != device) cudaSetDevice(device);
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

// 1 if the driver does not say.
inline int num_multiprocessors(int device) {
  int count = 1;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count < 1 ? 1 : count;
}

// How much shared memory a block can have, static and dynamic together.
inline size_t max_shared_bytes(int device) {
  int bytes = static_cast<int>(kDefaultSharedBytes);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(bytes);
}

inline const char* error_text(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// Puts the kernel on `stream` (a cudaStream_t) of the current device and returns without waiting: nullptr, or
// CUDA's words for what went wrong with the launch. `shared_bytes` are dynamic.
template <class... P, class... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                   A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument for each of the kernel's parameters");
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error_text(error);
  }
  return [&](std::decay_t<P>... values) {
    void* pointers[] = {static_cast<void*>(&values)..., nullptr};
    return error_text(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                                       shared_bytes, static_cast<cudaStream_t>(stream)));
  }(std::forward<A>(arguments)...);
}

#endif

}  // namespace pqk::cuda
