#include "core/cuda/emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

namespace pqk::cuda::emulation {

#if defined(__x86_64__)

// The registers that a function must preserve, and the floating-point modes.
asm(R"(
.text
.p2align 4
.local pqk_emulation_switch
.type pqk_emulation_switch, @function
pqk_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pqk_emulation_switch, .-pqk_emulation_switch
)");

extern "C" __attribute__((visibility("hidden"))) void pqk_emulation_switch(void** save, void* load);

void prepare(Context& fiber, void* stack, size_t bytes, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(static_cast<unsigned char*>(stack) + bytes);
  *--top = nullptr;  // where entry would return to; also makes the stack as aligned as behind a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
}

void switch_context(Context& from, Context& to) { pqk_emulation_switch(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Context& fiber, void* stack, size_t bytes, void (*entry)()) {
  getcontext(&fiber.state);
  fiber.state.uc_stack.ss_sp = stack;
  fiber.state.uc_stack.ss_size = bytes;
  fiber.state.uc_link = nullptr;
  makecontext(&fiber.state, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

Stacks::~Stacks() {
  if (memory_ != nullptr) munmap(memory_, count_ * (kBytes + page_));
}

bool Stacks::reserve(size_t count) {
  if (count <= count_) return true;
  page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t pitch = kBytes + page_;
  void* memory =
      mmap(nullptr, count * pitch, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  if (memory_ != nullptr) munmap(memory_, count_ * pitch);
  memory_ = static_cast<unsigned char*>(memory);
  count_ = count;
  for (size_t i = 0; i < count; ++i) mprotect(memory_ + i * pitch, page_, PROT_NONE);
  return true;
}

}  // namespace pqk::cuda::emulation
