// How a kernel is spread over threads, without knowing whose threads they are: the torch binding passes torch's
// pool, the runtime its own, tests a serial one. A kernel must give the same bits for every split.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pqk {

class Parallel {
 public:
  using Range = void (*)(void* context, int64_t begin, int64_t end);

  virtual ~Parallel() = default;
  // Calls `range` so that [0, count) is covered exactly once by disjoint pieces, each at least `grain` long but
  // for the last; returns when all have ended.
  virtual void run(int64_t count, int64_t grain, Range range, void* context) const = 0;
  virtual int num_threads() const = 0;

  template <class Body>
  void operator()(int64_t count, int64_t grain, const Body& body) const {
    if (count <= 0) return;
    run(
        count, grain,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

class Serial final : public Parallel {
 public:
  void run(int64_t count, int64_t, Range range, void* context) const override { range(context, 0, count); }
  int num_threads() const override { return 1; }
};

}  // namespace pqk
