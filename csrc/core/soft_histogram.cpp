#include "core/soft_histogram.h"

#include <algorithm>
#include <limits>
#include <mutex>

namespace pqk {
namespace {

constexpr int64_t kElementsPerThread = 32768;

int64_t rows_per_thread(const SoftHistogramParams& params) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, params.columns));
}

}  // namespace

void soft_histogram(const SoftHistogramParams& params, double* counts, const Parallel& parallel) {
  std::vector<int64_t> total(params.bins() + 1);
  bool nan_seen = false;
  std::mutex mutex;
  parallel(params.rows, rows_per_thread(params), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> part(total.size());
    const bool nan_here = active_soft_histogram_kernel()(params, part.data(), begin, end);
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t i = 0; i < part.size(); ++i) total[i] += part[i];
    nan_seen |= nan_here;
  });
  for (int64_t i = 0; i < params.bins(); ++i) {
    counts[i] = nan_seen ? std::numeric_limits<double>::quiet_NaN()
                         : static_cast<double>(total[i]) / static_cast<double>(1 << kShareBits);
  }
}

void soft_histogram_backward(const SoftHistogramBackward& job, const Parallel& parallel) {
  parallel(job.params.rows, rows_per_thread(job.params),
           [&](int64_t begin, int64_t end) { active_soft_histogram_backward_kernel()(job, begin, end); });
}

}  // namespace pqk
