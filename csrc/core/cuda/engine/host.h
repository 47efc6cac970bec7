// What the host asks of a GPU: memory, copies, captured work, time. host.cu is CUDA's runtime;
// host_emulated.cpp does the same with the CPU's own memory, for tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace pqk::engine::device {

// No driver, no GPU, no memory left, ...: words for people.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws for what a launch returned, unless that is null.
inline void check_launch(const char* error) {
  if (error != nullptr) throw DeviceError(std::string("CUDA: ") + error);
}

struct DeviceInfo {
  int index;
  std::string name;          // "NVIDIA H100 80GB HBM3"
  std::string architecture;  // "sm_90"
  int multiprocessors;
  int64_t shared_bytes;  // dynamic, that a block may have
};

// Throws DeviceError where there is no such GPU, or none that this build can use.
DeviceInfo open_device(int index);

// Makes a device the calling thread's current one, and the former one again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = -1;
};

// Memory of the current device, or of the host where the GPU can reach it. Freed as soon as no work can use it.
class Memory {
 public:
  enum class Place { kDevice, kHost };
  Memory() = default;
  Memory(Place place, int64_t bytes);
  ~Memory() { release(); }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(place_, other.place_);
  }
  void release() noexcept;

  void* data_ = nullptr;
  Place place_ = Place::kDevice;
};

// Work in order.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void* handle() const { return handle_; }
  void to_device(void* to, const void* from, int64_t bytes) const;
  void to_host(void* to, const void* from, int64_t bytes) const;
  void clear(void* to, int64_t bytes) const;
  // Throws what any of the work ran into.
  void wait() const;
  // Seconds that the GPU takes for what `work` puts on the stream.
  double time(const std::function<void()>& work) const;

 private:
  void* handle_ = nullptr;
};

// Work on a stream, recorded and launched as a whole. Making it may do the work once.
class Recording {
 public:
  Recording(const Stream& stream, const std::function<void()>& work);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  void launch() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pqk::engine::device
