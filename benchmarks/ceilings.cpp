// The float32 peak of one core: independent chains of fused multiply-adds over the widest vectors the compiler
// targets.

#include <algorithm>
#include <chrono>
#include <cstdint>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

// Most multiply-adds a second over several short runs.
extern "C" double fma_peak() {
  constexpr int kChains = 12;  // latency 4, two a cycle: eight would do
  constexpr std::int64_t kSteps = 200000;
  constexpr int kRuns = 30;
  Vector sums[kChains] = {};
  Vector factor = {};
  factor += 0.5F;
  double best = 0;
  volatile float sink = 0;  // the sums are used
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) {  // unrolled, so that all sums stay in registers
        sums[i] = sums[i] * factor + factor;
      }
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    for (Vector& sum : sums) {
      sink = sink + sum[0];
    }
    best = std::max(best, double(kSteps) * kChains * kLanes / seconds.count());
  }
  return best;
}
