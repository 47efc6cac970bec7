// What the fuzz targets share. A target is one file: PQK_FUZZ_TARGET(name) { ... } gets `bytes`, reads what it
// needs from them and calls require() for everything that must hold. With PQK_FUZZ_ENGINE the file is
// libFuzzer's entry point; otherwise the target is registered by its name for replay.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/byte_reader.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace pqk::fuzz {

// An array without a spare byte behind it, so that AddressSanitizer sees every access beyond its end.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t count) : size_(count), data_(new T[static_cast<size_t>(count)]()) {}
  Exact(const T* from, int64_t count) : Exact(count) { std::copy(from, from + count, data()); }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  bool operator==(const Exact& other) const {
    return size_ == other.size_ && std::equal(data(), data() + size_, other.data());
  }
  ByteSpan span() const { return {reinterpret_cast<const uint8_t*>(data()), size_ * int64_t{sizeof(T)}}; }

 private:
  int64_t size_;
  std::unique_ptr<T[]> data_;
};

// The input, read from its front; past its end there are zeros.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(static_cast<int64_t>(size)) {}

  int64_t remaining() const { return size_ - at_; }
  uint8_t u8() { return at_ < size_ ? data_[at_++] : uint8_t{0}; }
  uint64_t number(int width) {
    uint64_t value = 0;
    for (int i = 0; i < width; ++i) value |= uint64_t{u8()} << (8 * i);
    return value;
  }
  int64_t i64() { return static_cast<int64_t>(number(8)); }
  // A number of [low, high] from one byte or, where that is not enough, two.
  int64_t range(int64_t low, int64_t high) {
    const uint64_t span = static_cast<uint64_t>(high - low) + 1;
    return low + static_cast<int64_t>(number(span > 256 ? 2 : 1) % span);
  }
  bool flag() { return u8() & 1; }
  template <class Container>
  const typename Container::value_type& pick(const Container& from) {
    return from[static_cast<size_t>(range(0, static_cast<int64_t>(from.size()) - 1))];
  }
  Exact<uint8_t> rest() {
    Exact<uint8_t> copy(data_ + at_, size_ - at_);
    at_ = size_;
    return copy;
  }

 private:
  const uint8_t* data_;
  int64_t size_, at_ = 0;
};

// Numbers for what need not be in the input byte by byte, such as weights (xorshift64*).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1dull >> 32);
  }
  int64_t below(int64_t count) {
    return static_cast<int64_t>(uint64_t{next()} * static_cast<uint64_t>(count) >> 32);
  }
  // int8 codes, `percent` of them drawn from -spread..spread, the others 0.
  void codes(int8_t* out, int64_t count, int64_t percent, int64_t spread) {
    for (int64_t i = 0; i < count; ++i) {
      const bool used = below(100) < percent;
      out[i] = static_cast<int8_t>(used ? below(2 * spread + 1) - spread : 0);
    }
  }

 private:
  uint64_t state_;
};

inline void require(bool holds, const char* what, const std::string& detail = "") {
  if (holds) return;
  std::fprintf(stderr, "broken: %s %s\n", what, detail.c_str());
  std::abort();
}

// Whatever was refused was refused in the documented way.
inline void require_named(const FormatError& error) {
  const bool named = error.code.compare(0, 2, "E_") == 0 && !error.field.empty() && !error.expected.empty() &&
                     !error.got.empty();
  require(named, "an error with code, field, expected and got", error.what());
}

// The instruction set for the duration of a scope.
class WithIsa {
 public:
  explicit WithIsa(Isa isa) { force_isa(isa_name(isa)); }
  ~WithIsa() { force_isa(""); }
  WithIsa(const WithIsa&) = delete;
  WithIsa& operator=(const WithIsa&) = delete;
};

inline const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = supported_isas();
  return all;
}

// Threads that come one after the other, the last piece first.
class Backwards final : public Parallel {
 public:
  void run(int64_t count, int64_t grain, Range range, void* context) const override {
    grain = std::max<int64_t>(1, grain);
    for (int64_t pieces = (count + grain - 1) / grain; pieces > 0; --pieces) {
      range(context, (pieces - 1) * grain, std::min(pieces * grain, count));
    }
  }
  int num_threads() const override { return 3; }
};

using Target = void (*)(Bytes bytes);
struct NamedTarget {
  const char* name;
  Target run;
};
inline std::vector<NamedTarget>& targets() {
  static std::vector<NamedTarget> all;
  return all;
}

}  // namespace pqk::fuzz

#if defined(PQK_FUZZ_ENGINE)
#define PQK_FUZZ_REGISTER(name)                                             \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
    pqk::fuzz::fuzz_##name(pqk::fuzz::Bytes(data, size));                   \
    return 0;                                                               \
  }
#else
#define PQK_FUZZ_REGISTER(name)                                                                             \
  namespace pqk::fuzz {                                                                                     \
  [[maybe_unused]] static const bool registered_##name = (targets().push_back({#name, fuzz_##name}), true); \
  }
#endif

#define PQK_FUZZ_TARGET(name)           \
  namespace pqk::fuzz {                 \
  static void fuzz_##name(Bytes bytes); \
  }                                     \
  PQK_FUZZ_REGISTER(name)               \
  static void pqk::fuzz::fuzz_##name([[maybe_unused]] Bytes bytes)
