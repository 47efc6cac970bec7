// Threads of control that one thread of the operating system switches between.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace pqk::cuda::emulation {

// The state of something that does not run now: registers are on its stack.
#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
#else
struct Context {
  ucontext_t state;
};
#endif

// `entry` must never return. `stack` is 16-byte aligned and `bytes` long, and may be used again for another
// fiber once this one is left for the last time.
void prepare(Context& fiber, void* stack, size_t bytes, void (*entry)());
// Goes on with `to`; returns when somebody switches to `from`.
void switch_context(Context& from, Context& to);

// Memory for `count` stacks of `bytes` each, with an unmapped page below each of them.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 << 10;
  ~Stacks();
  // nullptr if the system gives no memory. Earlier stacks become invalid when there must be more.
  bool reserve(size_t count);
  void* stack(size_t index) const { return memory_ + index * (kBytes + page_) + page_; }

 private:
  unsigned char* memory_ = nullptr;
  size_t count_ = 0, page_ = 0;
};

}  // namespace pqk::cuda::emulation
