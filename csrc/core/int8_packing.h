// Memory and channel constants of packed integer layers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "core/int8_conv2d_plan.h"
#include "core/int8_weights.h"

namespace pqk {

// 64-byte aligned, zero-filled memory.
template <class T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t count) : AlignedArray(uninitialized(count)) {
    std::memset(static_cast<void*>(data_.get()), 0, static_cast<size_t>(count) * sizeof(T));
  }
  // For those who write all of it.
  static AlignedArray uninitialized(int64_t count) {
    const size_t used = static_cast<size_t>(count) * sizeof(T), bytes = (used + 127) / 64 * 64;
    AlignedArray array;
    array.data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!array.data_) throw std::bad_alloc();
    array.size_ = count;
    std::memset(reinterpret_cast<uint8_t*>(array.data_.get()) + used, 0, bytes - used);
    return array;
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// The per-channel constants in a kernel's order, `slots` long; padded slots hold zeros.
class PackedEpilogue {
 public:
  PackedEpilogue(const Conv2dConstants& constants, int64_t slots);
  // Puts output channel `channel` with the sums of its weights at `slot`.
  void set(const Conv2dConstants& constants, int64_t channel, const WeightSums& sums, int64_t slot);
  const Int8Epilogue& get() const { return epilogue_; }

 private:
  AlignedArray<int32_t> compensation_;
  AlignedArray<float> multiplier_, bias_;
  Int8Epilogue epilogue_;
};

// Of every output channel's weights.
std::vector<WeightSums> channel_sums(const Conv2dShape& shape, const int8_t* weight);
// Whether no value before rounding can lie beyond the range of int32.
bool values_fit_int32(const Conv2dConstants& constants, const std::vector<WeightSums>& sums);

// Stores the weight of code `i` of a quad for one lane of a vector (or of adjacent vectors, `lanes` in all).
inline void store_weight(uint8_t* vector, WeightFormat format, int64_t lanes, int64_t lane, int64_t i,
                         int8_t value) {
  if (format == WeightFormat::kQuads) {
    reinterpret_cast<int8_t*>(vector)[lane * 4 + i] = value;
  } else {
    reinterpret_cast<int16_t*>(vector)[(i % 2 * lanes + lane) * 2 + i / 2] = value;
  }
}

inline int64_t weight_bytes(WeightFormat format) { return format == WeightFormat::kQuads ? 1 : 2; }

// See Conv2dKernel::pack.
std::unique_ptr<PackedConv2d> pack_direct(const Conv2dShape& shape, const Conv2dConstants& constants);
std::unique_ptr<PackedConv2d> pack_depthwise3x3(const Conv2dShape& shape, const Conv2dConstants& constants);
std::unique_ptr<PackedConv2d> pack_depthwise(const Conv2dShape& shape, const Conv2dConstants& constants);
std::unique_ptr<PackedConv2d> pack_gather(const Conv2dShape& shape, const Conv2dConstants& constants);
std::unique_ptr<PackedConv2d> pack_blocks(const Conv2dShape& shape, const Conv2dConstants& constants);

}  // namespace pqk
