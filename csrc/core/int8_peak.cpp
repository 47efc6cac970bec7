#include "core/int8_peak.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <new>

namespace pqk {
namespace {

constexpr double kRoundSeconds = 1e-3;
constexpr int kPeakRounds = 28;
constexpr double kReadSeconds = 0.02;
constexpr int kFewestReads = 4;

// What the measured calls return goes here, so that no compiler can leave them out.
volatile int32_t sink;

template <class Body>
double seconds_of(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// How many calls of `body` take about a round.
template <class Body>
int64_t calls_per_round(const Body& body) {
  int64_t calls = 1;
  while (calls < (int64_t{1} << 40) && seconds_of([&] { body(calls); }) < kRoundSeconds) calls *= 2;
  return calls;
}

struct AlignedFree {
  void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
};

}  // namespace

double int8_peak() {
  Int8PeakKernel* const kernel = active_int8_peak_kernel();
  const auto round = [&](int64_t repeats) { sink = kernel(repeats); };
  // Repeats of the smallest round that takes a millisecond; searching for it also wakes the core's clock up.
  const int64_t repeats = calls_per_round(round);
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kPeakRounds; ++i) best = std::min(best, seconds_of([&] { round(repeats); }));
  return static_cast<double>(repeats * active_int8_peak_products()()) / best;
}

double read_bandwidth(int64_t bytes) {
  const int64_t size = std::max(kReadUnit, (bytes + kReadUnit - 1) / kReadUnit * kReadUnit);
  const std::unique_ptr<uint8_t, AlignedFree> data(
      static_cast<uint8_t*>(::operator new(static_cast<size_t>(size), std::align_val_t{64})));
  // Written, because pages that never were may all be one page of zeros.
  for (int64_t i = 0; i < size; ++i) data.get()[i] = static_cast<uint8_t>(i);
  ReadKernel* const kernel = active_read_kernel();
  const auto round = [&](int64_t passes) {
    for (int64_t i = 0; i < passes; ++i) sink = kernel(data.get(), size);
  };
  const int64_t passes = calls_per_round(round);
  double best = std::numeric_limits<double>::infinity(), spent = 0;
  for (int i = 0; i < kFewestReads || spent < kReadSeconds; ++i) {
    const double seconds = seconds_of([&] { round(passes); });
    best = std::min(best, seconds);
    spent += seconds;
  }
  return static_cast<double>(size * passes) / best;
}

}  // namespace pqk
