#include "core/norm_activation.h"

#include <vector>

namespace pqk {
namespace {

constexpr int64_t kItemsPerThread = 8;

}  // namespace

void norm_statistics(const NormStatistics& job, const Parallel& parallel) {
  const NormItems items(job.view);
  const int64_t channels = job.view.channels;
  std::vector<double> partial(2 * items.groups * channels);
  parallel(items.count(), kItemsPerThread, [&](int64_t begin, int64_t end) {
    active_norm_statistics_kernel()(job, items, partial.data(), begin, end);
  });
  const double count = static_cast<double>(job.view.outer * job.view.inner);
  for (int64_t c = 0; c < channels; ++c) job.mean[c] = job.variance[c] = 0;
  for (int64_t group = 0; group < items.groups; ++group) {
    const double length = static_cast<double>(items.length(group));
    const double* values = partial.data() + 2 * group * channels;
    for (int64_t c = 0; c < channels; ++c) job.mean[c] += values[2 * c] * length;
  }
  for (int64_t c = 0; c < channels; ++c) job.mean[c] /= count;
  // The groups' own spread and that of their means (Chan, Golub and LeVeque, 1979).
  for (int64_t group = 0; group < items.groups; ++group) {
    const double share = static_cast<double>(items.length(group)) / count;
    const double* values = partial.data() + 2 * group * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double difference = values[2 * c] - job.mean[c];
      job.variance[c] += values[2 * c + 1] / count + difference * difference * share;
    }
  }
}

void norm_activation(const NormActivationForward& job, const Parallel& parallel) {
  const NormItems items(job.values.view);
  parallel(items.count(), kItemsPerThread,
           [&](int64_t begin, int64_t end) { active_norm_activation_kernel()(job, items, begin, end); });
}

void norm_activation_sums(const NormActivationSums& job, const Parallel& parallel) {
  const NormItems items(job.values.view);
  const int64_t channels = job.values.view.channels;
  std::vector<double> partial(2 * items.groups * channels), scale_partial(items.count());
  parallel(items.count(), kItemsPerThread, [&](int64_t begin, int64_t end) {
    active_norm_activation_sums_kernel()(job, items, partial.data(), scale_partial.data(), begin, end);
  });
  for (int64_t c = 0; c < channels; ++c) job.grad[c] = job.grad_input[c] = 0;
  for (int64_t group = 0; group < items.groups; ++group) {
    const double* values = partial.data() + 2 * group * channels;
    for (int64_t c = 0; c < channels; ++c) {
      job.grad[c] += values[2 * c];
      job.grad_input[c] += values[2 * c + 1];
    }
  }
  *job.grad_scale = 0;
  for (const double value : scale_partial) *job.grad_scale += value;
}

void norm_activation_gradient(const NormActivationGradient& job, const Parallel& parallel) {
  const NormItems items(job.values.view);
  parallel(items.count(), kItemsPerThread, [&](int64_t begin, int64_t end) {
    active_norm_activation_gradient_kernel()(job, items, begin, end);
  });
}

}  // namespace pqk
