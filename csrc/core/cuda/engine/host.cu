#include <cuda_runtime.h>

#include "core/cuda/engine/host.h"
#include "core/cuda/engine_kernels.h"

namespace pqk::engine::device {
namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  throw DeviceError(std::string("CUDA: ") + cudaGetErrorString(error));
}

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void check_driver() {
  int driver = 0, runtime = 0;
  check(cudaRuntimeGetVersion(&runtime));
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    throw DeviceError("no NVIDIA driver was found; device=\"cuda\" needs one for CUDA " +
                      version_text(runtime));
  }
  // A driver serves every runtime of its own major version, and older ones.
  if (driver / 1000 < runtime / 1000) {
    throw DeviceError("the NVIDIA driver is too old: it supports CUDA " + version_text(driver) +
                      ", this build needs CUDA " + version_text(runtime / 1000 * 1000));
  }
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

void check_code(const DeviceInfo& info) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel());
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    throw DeviceError("this build has no code for " + info.name + " (" + info.architecture +
                      "): configure with CMAKE_CUDA_ARCHITECTURES for it");
  }
  check(error);
}

std::string mebibytes(size_t bytes) { return std::to_string((bytes + (size_t{1} << 20) - 1) >> 20) + " MiB"; }

}  // namespace

DeviceInfo open_device(int index) {
  check_driver();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) {
    cudaGetLastError();
    count = 0;
  } else {
    check(error);
  }
  if (count == 0) throw DeviceError("no CUDA device was found (CUDA_VISIBLE_DEVICES may hide it)");
  if (index < 0 || index >= count) {
    throw DeviceError("there is no device \"cuda:" + std::to_string(index) +
                      "\": CUDA devices are numbered 0 to " + std::to_string(count - 1));
  }
  const CurrentDevice current(index);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index));
  DeviceInfo info{index, properties.name, "sm_" + std::to_string(10 * properties.major + properties.minor),
                  attribute(cudaDevAttrMultiProcessorCount, index),
                  attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index)};
  check_code(info);
  return info;
}

CurrentDevice::CurrentDevice(int index) {
  check(cudaGetDevice(&previous_));
  check(cudaSetDevice(index));
}
CurrentDevice::~CurrentDevice() { cudaSetDevice(previous_); }

Memory::Memory(Place place, int64_t bytes) : place_(place) {
  const auto size = static_cast<size_t>(bytes > 0 ? bytes : 1);
  const bool host = place == Place::kHost;
  const cudaError_t error = host ? cudaHostAlloc(&data_, size, cudaHostAllocDefault) : cudaMalloc(&data_, size);
  if (error != cudaErrorMemoryAllocation) {
    check(error);
    return;
  }
  cudaGetLastError();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  throw DeviceError(host ? "out of page-locked host memory: " + mebibytes(size) + " wanted"
                         : "out of GPU memory: " + mebibytes(size) + " wanted, " + mebibytes(free) + " of " +
                               mebibytes(total) + " free");
}

void Memory::release() noexcept {
  if (data_ == nullptr) return;
  place_ == Place::kHost ? cudaFreeHost(data_) : cudaFree(data_);
  data_ = nullptr;
}

Stream::Stream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  handle_ = stream;
}
Stream::~Stream() { cudaStreamDestroy(stream_of(handle_)); }

void Stream::to_device(void* to, const void* from, int64_t bytes) const {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_of(handle_)));
}
void Stream::to_host(void* to, const void* from, int64_t bytes) const {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_of(handle_)));
}
void Stream::clear(void* to, int64_t bytes) const {
  check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_of(handle_)));
}
void Stream::wait() const { check(cudaStreamSynchronize(stream_of(handle_))); }

double Stream::time(const std::function<void()>& work) const {
  cudaEvent_t start = nullptr, stop = nullptr;
  float milliseconds = 0;
  try {
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&stop));
    check(cudaEventRecord(start, stream_of(handle_)));
    work();
    check(cudaEventRecord(stop, stream_of(handle_)));
    check(cudaEventSynchronize(stop));
    check(cudaEventElapsedTime(&milliseconds, start, stop));
  } catch (...) {
    if (start != nullptr) cudaEventDestroy(start);
    if (stop != nullptr) cudaEventDestroy(stop);
    throw;
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return milliseconds * 1e-3;
}

struct Recording::State {
  cudaStream_t stream;
  cudaGraphExec_t executable = nullptr;
};

Recording::Recording(const Stream& stream, const std::function<void()>& work)
    : state_(new State{stream_of(stream.handle())}) {
  // Kernels are loaded at their first launch, which a recording might not permit.
  work();
  stream.wait();
  check(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    if (cudaStreamEndCapture(state_->stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(state_->stream, &graph));
  const cudaError_t error = cudaGraphInstantiate(&state_->executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error);
}

Recording::~Recording() {
  if (state_->executable != nullptr) cudaGraphExecDestroy(state_->executable);
}

void Recording::launch() const { check(cudaGraphLaunch(state_->executable, state_->stream)); }

}  // namespace pqk::engine::device
