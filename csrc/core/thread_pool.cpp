#include "core/thread_pool.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include <chrono>

namespace pqk {
namespace {

// How long a thread that waits stays awake: longer than the pause between two layers, much shorter than a
// scheduler's time slice.
constexpr std::chrono::microseconds kSpin{20};
constexpr int kChecksPerClock = 64;

// Counts the forks that lead to this process. A pool made before a fork has lost its workers.
std::atomic<int> fork_generation{0};

int current_generation() {
#if defined(__unix__) || defined(__APPLE__)
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
  (void)registered;
#endif
  return fork_generation.load(std::memory_order_relaxed);
}

void relax() {
#if defined(PQK_X86_64)
  _mm_pause();
#endif
}

// True as soon as `done` holds, false after kSpin.
template <class Done>
bool spin_until(const Done& done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kChecksPerClock; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

struct ThreadPool::State {
  int generation;
  std::atomic<bool> busy{false};

  // A job: written by the caller before `ticket` moves on, read by workers after they saw that.
  Range range = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  int64_t pieces = 0;
  std::atomic<uint64_t> ticket{0};
  std::atomic<int> unfinished{0};
  std::atomic<bool> stop{false};

  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable finished;
  std::vector<std::thread> workers;

  void run_piece(int64_t piece) const { range(context, piece * count / pieces, (piece + 1) * count / pieces); }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  if (num_threads <= 1) return;
  state_ = std::make_unique<State>();
  state_->generation = current_generation();
  for (int id = 1; id < num_threads; ++id) {
    state_->workers.emplace_back([state = state_.get(), id] { work(*state, id); });
  }
}

ThreadPool::~ThreadPool() {
  if (state_ == nullptr) return;
  if (state_->generation != current_generation()) {
    // The workers exist in the parent only; their handles cannot be joined, nor destroyed before that.
    state_.release();
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
    state_->ticket.fetch_add(1);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::work(State& state, int id) {
  uint64_t seen = 0;
  while (true) {
    const auto called = [&] { return state.ticket.load(std::memory_order_acquire) != seen; };
    if (!spin_until(called)) {
      std::unique_lock<std::mutex> lock(state.mutex);
      state.wake.wait(lock, called);
    }
    // Every worker answers every ticket, also with nothing to do, so that tickets advance one by one.
    ++seen;
    if (state.stop) return;
    if (id < state.pieces) state.run_piece(id);
    if (state.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      {
        const std::lock_guard<std::mutex> lock(state.mutex);
      }
      state.finished.notify_one();
    }
  }
}

void ThreadPool::run(int64_t count, int64_t grain, Range range, void* context) const {
  const int64_t pieces = std::min<int64_t>(num_threads_, (count + grain - 1) / grain);
  if (pieces <= 1 || state_ == nullptr || state_->generation != current_generation() ||
      state_->busy.exchange(true, std::memory_order_acquire)) {
    range(context, 0, count);
    return;
  }
  State& state = *state_;
  state.range = range;
  state.context = context;
  state.count = count;
  state.pieces = pieces;
  state.unfinished.store(num_threads_ - 1, std::memory_order_relaxed);
  {
    const std::lock_guard<std::mutex> lock(state.mutex);
    state.ticket.fetch_add(1, std::memory_order_release);
  }
  state.wake.notify_all();
  state.run_piece(0);
  const auto done = [&] { return state.unfinished.load(std::memory_order_acquire) == 0; };
  if (!spin_until(done)) {
    std::unique_lock<std::mutex> lock(state.mutex);
    state.finished.wait(lock, done);
  }
  state.busy.store(false, std::memory_order_release);
}

}  // namespace pqk
