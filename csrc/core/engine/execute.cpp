#include "core/engine/execute.h"

#include <algorithm>
#include <chrono>
#include <new>

namespace pqk::engine {
namespace {

// Keeps the smaller of two indices of a NaN, where -1 is none.
int64_t first_of(int64_t a, int64_t b) { return a < 0 ? b : (b < 0 ? a : std::min(a, b)); }

void lower(std::atomic<int64_t>& first, int64_t index) {
  int64_t seen = first.load();
  while (first_of(seen, index) != seen && !first.compare_exchange_weak(seen, first_of(seen, index))) {
  }
}

}  // namespace

// The arenas of the images that one thread computes together, and its scratch memory.
class Engine::Workspace {
 public:
  explicit Workspace(const Plan& plan)
      : plan_(&plan),
        arenas_(static_cast<uint8_t*>(::operator new(
            static_cast<size_t>(scratch_offset(plan) + plan.scratch_bytes()), std::align_val_t{kAlignment}))) {}
  ~Workspace() { ::operator delete(arenas_, std::align_val_t{kAlignment}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // For images [first, first + count) of the caller's; memory that no call needs is never touched.
  Frame frame(const float* input, float* output, int64_t first, int64_t count) {
    for (; ready_ < count; ++ready_) plan_->prepare(arenas_ + ready_ * plan_->arena_bytes());
    return {arenas_,
            input + first * plan_->input_numel(),
            output + first * plan_->output_numel(),
            count,
            plan_->arena_bytes(),
            plan_->input_numel(),
            plan_->output_numel(),
            scratch()};
  }
  uint8_t* scratch() const { return arenas_ + scratch_offset(*plan_); }

 private:
  static constexpr size_t kAlignment = 4096;
  static int64_t scratch_offset(const Plan& plan) { return (plan.arena_bytes() * plan.group() + 63) / 64 * 64; }

  const Plan* plan_;
  uint8_t* arenas_;
  int64_t ready_ = 0;
};

// A workspace for the duration of a call.
class Engine::Lease {
 public:
  explicit Lease(const Engine& engine) : engine_(&engine), workspace_(engine.acquire()) {}
  ~Lease() { engine_->release(std::move(workspace_)); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Workspace& operator*() const { return *workspace_; }

 private:
  const Engine* engine_;
  std::unique_ptr<Workspace> workspace_;
};

Engine::Engine(const Graph& graph, int num_threads, const KernelOptions& options)
    : pool_(num_threads), plan_(graph, options, pool_) {}

Engine::~Engine() {
  for (std::atomic<Workspace*>& slot : idle_) delete slot.load();
}

std::unique_ptr<Engine::Workspace> Engine::acquire() const {
  for (std::atomic<Workspace*>& slot : idle_) {
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    if (Workspace* workspace = slot.exchange(nullptr, std::memory_order_acquire)) {
      return std::unique_ptr<Workspace>(workspace);
    }
  }
  return std::make_unique<Workspace>(plan_);
}

void Engine::release(std::unique_ptr<Workspace> workspace) const {
  for (std::atomic<Workspace*>& slot : idle_) {
    Workspace* expected = nullptr;
    if (slot.compare_exchange_strong(expected, workspace.get(), std::memory_order_release,
                                     std::memory_order_relaxed)) {
      workspace.release();
      return;
    }
  }
}

int64_t Engine::run(const float* input, float* output, int64_t batch) const {
  if (batch <= 0) return -1;
  if (num_threads() > 1) {
    return batch >= num_threads() && !plan_.decodes() ? run_images_parallel(input, output, batch)
                                                      : run_parts_parallel(input, output, batch);
  }
  const Lease lease(*this);
  return run_images(input, output, 0, batch, *lease);
}

// Calls run(step, images of the frame that go through it together); returns the first NaN that one tells of.
template <class Run>
int64_t Engine::for_each_step(const Frame& frame, const Run& run) const {
  for (const Stretch& stretch : plan_.stretches()) {
    for (int64_t first = 0; first < frame.images; first += stretch.images) {
      const Frame part = frame.images_from(first, std::min(stretch.images, frame.images - first));
      for (size_t i = stretch.begin; i < stretch.end; ++i) {
        const int64_t nan = run(*plan_.steps()[i], part);
        if (nan >= 0) return first * frame.input_step + nan;
      }
    }
  }
  return -1;
}

int64_t Engine::run_frame(const Frame& frame) const {
  return for_each_step(frame,
                       [](const Step& step, const Frame& part) { return step.run(part, 0, step.parts); });
}

int64_t Engine::run_images(const float* input, float* output, int64_t begin, int64_t end,
                           Workspace& workspace) const {
  for (int64_t first = begin; first < end; first += plan_.group()) {
    const int64_t nan = run_frame(workspace.frame(input, output, first, std::min(plan_.group(), end - first)));
    if (nan >= 0) return first * plan_.input_numel() + nan;
  }
  return -1;
}

// Whole images to each thread: nothing to wait for but the end. A piece is less than what could go together, so
// that a thread that the system holds back leaves some to the others.
int64_t Engine::run_images_parallel(const float* input, float* output, int64_t batch) const {
  std::atomic<int64_t> first_nan{-1};
  std::atomic<bool> out_of_memory{false};
  constexpr int64_t kPiecesAShare = 4;
  const int64_t share = std::min(plan_.group(), (batch + num_threads() - 1) / num_threads());
  pool_(batch, std::max<int64_t>(1, share / kPiecesAShare), [&](int64_t begin, int64_t end) {
    try {
      const Lease lease(*this);
      lower(first_nan, run_images(input, output, begin, end, *lease));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  if (out_of_memory) throw std::bad_alloc();
  return first_nan;
}

// The parts of large layers spread over the threads: of one image after the other, or, where weights are
// decoded in each run, of all images that go together. A thread that needs scratch memory takes that of a
// workspace of its own.
int64_t Engine::run_parts_parallel(const float* input, float* output, int64_t batch) const {
  const Lease lease(*this);
  std::atomic<bool> out_of_memory{false};
  const auto run_with_scratch = [&](const Step& step, Frame frame, int64_t begin, int64_t end) {
    try {
      const Lease own(*this);
      frame.scratch = (*own).scratch();
      return step.run(frame, begin, end);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
      return int64_t{-1};
    }
  };
  const auto run_step = [&](const Step& step, const Frame& frame) {
    std::atomic<int64_t> first_nan{-1};
    pool_(step.parts, std::max<int64_t>(1, step.grain / frame.images), [&](int64_t begin, int64_t end) {
      lower(first_nan,
            step.scratch_bytes > 0 ? run_with_scratch(step, frame, begin, end) : step.run(frame, begin, end));
    });
    if (out_of_memory) throw std::bad_alloc();
    return first_nan.load();
  };
  const int64_t together = plan_.decodes() ? plan_.group() : 1;
  for (int64_t image = 0; image < batch; image += together) {
    const Frame frame = (*lease).frame(input, output, image, std::min(together, batch - image));
    const int64_t nan = for_each_step(frame, run_step);
    if (nan >= 0) return image * plan_.input_numel() + nan;
  }
  return -1;
}

std::vector<double> Engine::profile(const float* input, int repeats) const {
  using Clock = std::chrono::steady_clock;
  std::vector<float> output(static_cast<size_t>(plan_.output_numel()));
  std::vector<double> least(plan_.steps().size(), 1e30);
  const Lease lease(*this);
  const Frame frame = (*lease).frame(input, output.data(), 0, 1);
  for (int i = 0; i < repeats; ++i) {
    for (size_t s = 0; s < least.size(); ++s) {
      const Step& step = *plan_.steps()[s];
      const Clock::time_point start = Clock::now();
      step.run(frame, 0, step.parts);
      least[s] = std::min(least[s], std::chrono::duration<double>(Clock::now() - start).count());
    }
  }
  return least;
}

}  // namespace pqk::engine
