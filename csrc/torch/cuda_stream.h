// The CUDA stream that torch is working on.
#pragma once

#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace pqk::torch_ops {

// Taken from the CUDA library of the torch that is already loaded: linking to it would keep this library from
// being built beside a CPU-only torch.
inline void* current_cuda_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    STD_TORCH_CHECK(symbol != nullptr, "pqk: the CUDA ops need a CUDA build of torch, and found none loaded");
    return reinterpret_cast<GetStream>(symbol);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device, &stream) == 0, "pqk: torch gave no CUDA stream for device ", device);
  return stream;
}

}  // namespace pqk::torch_ops
