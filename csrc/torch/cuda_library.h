// How the CUDA ops register themselves and check where their tensors are. The emulated build runs the same
// bindings on CPU tensors, as kernels of a namespace of its own.
#pragma once

#include "torch/check.h"

#if defined(PQK_CUDA_EMULATION)
#define PQK_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pqk_emulated, CPU, m)
#else
#include "torch/cuda_stream.h"
// PQK_CUDA_LIBRARY_IMPL(m) { m.impl("op", TORCH_BOX(&function)); }
#define PQK_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pqk, CUDA, m)
#endif

namespace pqk::torch_ops {

#if defined(PQK_CUDA_EMULATION)
inline bool on_device(const Tensor& tensor) { return tensor.is_cpu(); }
inline int device_index(const Tensor&) { return 0; }
inline void* current_cuda_stream(int32_t) { return nullptr; }
#else
inline bool on_device(const Tensor& tensor) { return tensor.is_cuda(); }
inline int device_index(const Tensor& tensor) { return static_cast<int>(tensor.get_device_index()); }
#endif

// Where the work of a call goes: the device of its tensors and torch's current stream there.
struct CudaPlace {
  explicit CudaPlace(const Tensor& tensor)
      : device(device_index(tensor)), stream(current_cuda_stream(device)) {}
  int device;
  void* stream;
};

inline void check_same_device(const Tensor& tensor, const Tensor& input, const char* op, const char* argument) {
  STD_TORCH_CHECK(on_device(tensor) && device_index(tensor) == device_index(input), op, ": ", argument,
                  " must be on input's device, cuda:", device_index(input));
}

// `error` is what a function of core/cuda returned.
inline void check_launch(const char* error, const char* op) {
  STD_TORCH_CHECK(error == nullptr, op, ": CUDA: ", error);
}

}  // namespace pqk::torch_ops
