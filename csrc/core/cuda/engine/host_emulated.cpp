// The host's side of the emulation: one device, whose memory is a little of the CPU's, and whose streams do
// their work at once.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "core/cuda/device.h"
#include "core/cuda/engine/host.h"

namespace pqk::engine::device {
namespace {

// Allocations begin with their size.
constexpr size_t kAlignment = 256;
constexpr int64_t kMemoryBytes = 64 << 20;
std::atomic<int64_t> free_bytes{kMemoryBytes};

}  // namespace

DeviceInfo open_device(int index) {
  if (index != 0) {
    throw DeviceError("there is no device \"cuda:" + std::to_string(index) +
                      "\": CUDA devices are numbered 0 to 0");
  }
  return {0, "emulation", "emulated", cuda::num_multiprocessors(0),
          static_cast<int64_t>(cuda::max_shared_bytes(0))};
}

CurrentDevice::CurrentDevice(int) {}
CurrentDevice::~CurrentDevice() {}

// Aligned as the driver's, and filled with what no kernel should rely on.
Memory::Memory(Place place, int64_t bytes) : place_(place) {
  const int64_t left = free_bytes.fetch_sub(bytes) - bytes;
  const size_t size = (static_cast<size_t>(bytes) / kAlignment + 2) * kAlignment;
  void* const block = left < 0 ? nullptr : std::aligned_alloc(kAlignment, size);
  if (block == nullptr) {
    free_bytes += bytes;
    throw DeviceError("out of GPU memory: " + std::to_string(bytes) + " bytes wanted, " +
                      std::to_string(left + bytes) + " of " + std::to_string(kMemoryBytes) + " free");
  }
  std::memset(block, 0xa5, size);
  std::memcpy(block, &bytes, sizeof bytes);
  data_ = static_cast<uint8_t*>(block) + kAlignment;
}

void Memory::release() noexcept {
  if (data_ == nullptr) return;
  void* const block = static_cast<uint8_t*>(data_) - kAlignment;
  int64_t bytes;
  std::memcpy(&bytes, block, sizeof bytes);
  free_bytes += bytes;
  std::free(block);
  data_ = nullptr;
}

Stream::Stream() {}
Stream::~Stream() {}

void Stream::to_device(void* to, const void* from, int64_t bytes) const {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}
void Stream::to_host(void* to, const void* from, int64_t bytes) const {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}
void Stream::clear(void* to, int64_t bytes) const { std::memset(to, 0, static_cast<size_t>(bytes)); }
void Stream::wait() const {}

double Stream::time(const std::function<void()>& work) const {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Recording::State {
  std::function<void()> work;
};

Recording::Recording(const Stream&, const std::function<void()>& work) : state_(new State{work}) {}
Recording::~Recording() {}
void Recording::launch() const { state_->work(); }

}  // namespace pqk::engine::device
