#include "core/cuda/emulation/block.h"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/cuda/emulation/cuda.h"

namespace pqk::cuda::emulation {
namespace {

constexpr size_t kAlignment = 128;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0x5d;
// Stacks whose tops lie a page apart would share the same few lines of the cache.
constexpr size_t kStagger = 192, kStaggers = 16;

Block* running = nullptr;

void enter_fiber() { running->enter(); }

// __shared__ variables are thread-local variables of this library, which has no others: all of them together
// are its block of thread-local memory.
__attribute__((tls_model("global-dynamic"))) thread_local unsigned char first_shared_byte;

int find_static_shared(dl_phdr_info* info, size_t, void* found) {
  const auto own = reinterpret_cast<uintptr_t>(&enter_fiber);
  bool is_own = false;
  const ElfW(Phdr)* tls = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && begin <= own && own < begin + header.p_memsz) is_own = true;
    if (header.p_type == PT_TLS) tls = &header;
  }
  if (!is_own) return 0;
  if (tls != nullptr) *static_cast<Memory*>(found) = {info->dlpi_tls_data, tls->p_memsz};
  return 1;
}

Memory static_shared() {
  first_shared_byte = 0;  // now the memory exists
  Memory memory;
  dl_iterate_phdr(find_static_shared, &memory);
  return memory;
}

std::string text(const uint3& index) {
  std::string result = "(";
  result += std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z);
  return result += ")";
}

uint3 position(uint32_t index) {
  return {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
}

// One place in the source may have several names for its file.
bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.column == b.column && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

void finish(const Copy& copy) {
  copy.valid ? memcpy(copy.shared, copy.global, 16) : memset(copy.shared, 0, 16);
}

}  // namespace

uint32_t Scheduler::next() {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 17;
  return state_ ^= state_ << 5;
}

void Scheduler::arrange(std::vector<uint32_t>& sequence) {
  if (order_ == Order::kBackward) std::reverse(sequence.begin(), sequence.end());
  if (order_ != Order::kShuffled) return;
  for (size_t i = sequence.size(); i > 1; --i) std::swap(sequence[i - 1], sequence[next() % i]);
}

bool Block::prepare(const dim3& dimensions, size_t shared_bytes, void (*thread)(void*), void* context) {
  count_ = dimensions.x * dimensions.y * dimensions.z;
  if (!stacks_.reserve(count_)) return false;
  if (fibers_.size() < count_) fibers_.resize(count_);
  thread_ = thread;
  argument_ = context;
  shared_bytes_ = shared_bytes;
  static_shared_ = static_shared();  // of the calling thread
  shared_.resize(kAlignment + kMaxSharedBytes + kGuardBytes);
  const auto address = reinterpret_cast<uintptr_t>(shared_.data());
  shared_begin_ = shared_.data() + (kAlignment - address % kAlignment) % kAlignment;
  return true;
}

void Block::start_threads() {
  for (uint32_t i = 0; i < count_; ++i) {
    Fiber& fiber = fibers_[i];
    fiber.index = i;
    fiber.state = Fiber::State::kRunnable;
    fiber.copies.clear();
    fiber.open_group = 0;
    emulation::prepare(fiber.context, stacks_.stack(i), Stacks::kBytes - i % kStaggers * kStagger, enter_fiber);
  }
}

bool Block::run() {
  running = this;
  error_.clear();
  poison_shared_memory();
  start_threads();
  do {
    // One thread after another until each of them waits.
    while (error_.empty() && pass()) {
    }
  } while (error_.empty() && release_barrier());
  current_ = nullptr;
  if (error_.empty() && !shared_memory_is_whole()) {
    error_ = "block " + text(blockIdx) + " writes behind its " + std::to_string(shared_bytes_) +
             " bytes of dynamic shared memory";
  }
  return error_.empty();
}

// Whether any thread ran.
bool Block::pass() {
  sequence_.resize(count_);
  std::iota(sequence_.begin(), sequence_.end(), 0u);
  scheduler.arrange(sequence_);
  bool ran = false, skipped = false;
  for (const uint32_t index : sequence_) {
    Fiber& fiber = fibers_[index];
    if (fiber.state != Fiber::State::kRunnable) continue;
    // At random some threads fall behind the others.
    if (scheduler.order() == Order::kShuffled && scheduler.chance(4)) {
      skipped = true;
      continue;
    }
    ran = true;
    resume(fiber);
    if (!error_.empty()) return false;
  }
  return ran || skipped;
}

void Block::resume(Fiber& fiber) {
  current_ = &fiber;
  threadIdx = position(fiber.index);
  switch_context(scheduler_context_, fiber.context);
}

void Block::leave() { switch_context(current_->context, scheduler_context_); }

void Block::enter() {
  thread_(argument_);
  returned();
  leave();
}

void Block::returned() {
  std::for_each(current_->copies.begin(), current_->copies.end(), finish);
  current_->state = Fiber::State::kReturned;
  // Lanes that waited for this one alone may go on.
  const uint32_t warp = current_->index / 32 * 32;
  for (uint32_t i = warp; i < std::min(warp + 32, count_); ++i) {
    if (fibers_[i].state == Fiber::State::kAtCollective) complete_collective(warp, fibers_[i].mask);
  }
}

void Block::fail(const std::string& what) {
  error_ = "thread " + text(position(current_->index)) + " of block " + text(blockIdx) + ": " + what;
  leave();
  __builtin_unreachable();
}

Vote Block::barrier(bool value, const Site& site) {
  current_->state = Fiber::State::kAtBarrier;
  current_->value = value;
  current_->site = site;
  leave();
  return vote_;
}

// Whether all threads waited at one barrier and now may go on; false also when all have returned.
bool Block::release_barrier() {
  const Fiber* first = nullptr;
  Vote vote{0, true, false};
  for (uint32_t i = 0; i < count_; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.state == Fiber::State::kReturned) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.state != Fiber::State::kAtBarrier || !same(fiber.site, first->site)) {
      report_deadlock();
      return false;
    }
    vote.count += fiber.value;
    vote.all = vote.all && fiber.value;
    vote.any = vote.any || fiber.value;
  }
  if (first == nullptr) return false;
  vote_ = vote;
  for (uint32_t i = 0; i < count_; ++i) {
    if (fibers_[i].state == Fiber::State::kAtBarrier) fibers_[i].state = Fiber::State::kRunnable;
  }
  return true;
}

std::string Block::describe(const Fiber& fiber) const {
  std::string where = "thread " + text(position(fiber.index)) + " waits ";
  if (fiber.state == Fiber::State::kAtCollective) {
    return where + "in " + fiber.request->name + " with mask " + std::to_string(fiber.mask);
  }
  return where + "at the barrier of " + fiber.site.file + ":" + std::to_string(fiber.site.line);
}

void Block::report_deadlock() {
  error_ = "the threads of block " + text(blockIdx) + " wait for each other: ";
  const Fiber* first = nullptr;
  for (uint32_t i = 0; i < count_; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.state == Fiber::State::kReturned) continue;
    const bool differs = first == nullptr || fiber.state != first->state || !same(fiber.site, first->site);
    if (!differs) continue;
    error_ += (first == nullptr ? "" : "; ") + describe(fiber);
    if (first != nullptr) return;
    first = &fiber;
  }
}

void Block::collective(uint32_t mask, Request& request) {
  const uint32_t lane = current_->index % 32;
  if ((mask >> lane & 1) == 0) {
    fail(std::string(request.name) + " with mask " + std::to_string(mask) + ", which leaves out lane " +
         std::to_string(lane) + " itself");
  }
  current_->mask = mask;
  current_->request = &request;
  current_->state = Fiber::State::kAtCollective;
  if (complete_collective(current_->index / 32 * 32, mask)) return;
  leave();
}

bool Block::complete_collective(uint32_t warp, uint32_t mask) {
  Request* requests[32] = {};
  const Request* first = nullptr;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0 || warp + lane >= count_) continue;
    const Fiber& fiber = fibers_[warp + lane];
    if (fiber.state == Fiber::State::kReturned) continue;
    if (fiber.state != Fiber::State::kAtCollective || fiber.mask != mask) return false;
    requests[lane] = fiber.request;
    if (first == nullptr) first = fiber.request;
    if (fiber.request->complete != first->complete) return false;
  }
  first->complete(requests);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (requests[lane] != nullptr) fibers_[warp + lane].state = Fiber::State::kRunnable;
  }
  return true;
}

void Block::start_copy(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail("an asynchronous copy of 16 bytes from or to an address that is no multiple of 16");
  }
  const Copy copy{shared, global, valid, current_->open_group};
  const bool at_once =
      scheduler.order() == Order::kBackward || (scheduler.order() == Order::kShuffled && scheduler.chance(2));
  at_once ? finish(copy) : current_->copies.push_back(copy);
}

void Block::wait_for_copies(uint32_t pending) {
  auto& copies = current_->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group + pending < current_->open_group) finish(copies[done++]);
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

void Block::poison_shared_memory() {
  if (static_shared_.begin != nullptr) memset(static_shared_.begin, kPoison, static_shared_.bytes);
  memset(shared_begin_, kPoison, shared_bytes_);
  memset(shared_begin_ + shared_bytes_, kGuard, kGuardBytes);
}

bool Block::shared_memory_is_whole() const {
  const unsigned char* guard = shared_begin_ + shared_bytes_;
  return std::all_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte == kGuard; });
}

}  // namespace pqk::cuda::emulation
