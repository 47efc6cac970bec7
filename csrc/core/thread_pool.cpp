#include "core/thread_pool.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>

namespace pqk {
namespace {

// How long a thread that waits stays awake: longer than the pause between two layers, much shorter than a
// scheduler's time slice.
constexpr std::chrono::microseconds kSpin{20};
constexpr int kChecksPerClock = 64;
// More than one, so that a thread that the system holds back leaves its share to the others.
constexpr int64_t kPiecesPerThread = 4;

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

// A job is cut into pieces, which the caller and the workers claim one by one: a worker that comes late finds
// nothing left, and nobody waits for it.
struct ThreadPool::State {
  // What claims look like: the job's number, how many pieces it has, how many are claimed. One word, so that a
  // successful exchange proves the job is this one; it then cannot end, nor its fields change, before the piece
  // is done.
  struct Claim {
    uint64_t word;
    static Claim of(uint64_t job, uint64_t pieces) { return {job << 32 | pieces << 16}; }
    uint64_t job() const { return word >> 32; }
    int64_t pieces() const { return static_cast<int64_t>(word >> 16 & 0xffff); }
    int64_t next() const { return static_cast<int64_t>(word & 0xffff); }
    bool has_work() const { return next() < pieces(); }
  };

  int generation;
  std::atomic<bool> busy{false};

  Range range = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  std::atomic<uint64_t> claim{0};
  std::atomic<int64_t> unfinished{0};
  std::atomic<bool> stop{false};

  // Asleep: those who must be notified. Counted before they look for work a last time, read after work is
  // there.
  std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable finished;
  std::vector<std::thread> workers;

  bool called() const { return Claim{claim.load()}.has_work() || stop; }

  void run_pieces() {
    Claim seen{claim.load(std::memory_order_acquire)};
    while (seen.has_work()) {
      if (!claim.compare_exchange_weak(seen.word, seen.word + 1, std::memory_order_acq_rel)) continue;
      const int64_t piece = seen.next(), pieces = seen.pieces();
      range(context, piece * count / pieces, (piece + 1) * count / pieces);
      if (unfinished.fetch_sub(1) == 1 && caller_sleeps) {
        {
          const std::lock_guard<std::mutex> lock(mutex);
        }
        finished.notify_one();
      }
      seen.word = claim.load(std::memory_order_acquire);
    }
  }

  void wait_until_finished() {
    const auto done = [this] { return unfinished.load() == 0; };
    if (spin_until(done)) return;
    std::unique_lock<std::mutex> lock(mutex);
    caller_sleeps = true;
    finished.wait(lock, done);
    caller_sleeps = false;
  }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  if (num_threads <= 1) return;
  state_ = std::make_unique<State>();
  state_->generation = current_generation();
  for (int id = 1; id < num_threads; ++id) {
    state_->workers.emplace_back([state = state_.get()] { work(*state); });
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
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::work(State& state) {
  const auto called = [&state] { return state.called(); };
  while (true) {
    if (!spin_until(called)) {
      std::unique_lock<std::mutex> lock(state.mutex);
      ++state.sleepers;
      state.wake.wait(lock, called);
      --state.sleepers;
    }
    if (state.stop) return;
    state.run_pieces();
  }
}

void ThreadPool::run(int64_t count, int64_t grain, Range range, void* context) const {
  const int64_t pieces = std::min<int64_t>(kPiecesPerThread * num_threads_, (count + grain - 1) / grain);
  if (pieces <= 1 || state_ == nullptr || state_->generation != current_generation() ||
      state_->busy.exchange(true, std::memory_order_acquire)) {
    range(context, 0, count);
    return;
  }
  State& state = *state_;
  state.range = range;
  state.context = context;
  state.count = count;
  state.unfinished = pieces;
  const uint64_t job = State::Claim{state.claim.load(std::memory_order_relaxed)}.job() + 1;
  state.claim = State::Claim::of(job & 0xffffffff, static_cast<uint64_t>(pieces)).word;
  if (state.sleepers > 0) {
    {
      const std::lock_guard<std::mutex> lock(state.mutex);
    }
    state.wake.notify_all();
  }
  state.run_pieces();
  state.wait_until_finished();
  state.busy.store(false, std::memory_order_release);
}

}  // namespace pqk
