#include "core/fake_quantize.h"

#include <algorithm>
#include <vector>

namespace pqk {
namespace {

constexpr int64_t kElementsPerThread = 32768;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_short(const ChannelView& view) {
  return view.channels > 1 && view.inner > 0 && view.inner < kMinBroadcast;
}

bool can_stream(const void* output, int64_t numel, int64_t bytes_an_element) {
  return numel * bytes_an_element >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(output) % kStreamAlignment == 0;
}

// Float32, and rows that begin where streamed stores can.
bool can_stream(const FakeQuantizeParams& params, const void* output, int64_t bytes_an_element) {
  const ChannelView& view = params.view;
  return params.type == FloatType::kFloat32 && !is_short(view) &&
         view.inner * sizeof(float) % kStreamAlignment == 0 &&
         can_stream(output, view.numel(), bytes_an_element);
}

template <class T>
class TableStorage {
 public:
  explicit TableStorage(const FakeQuantizeParams& params) {
    const ChannelView& view = params.view;
    if (!is_short(view)) return;
    const int64_t row = view.channels * view.inner;
    // Kernels load whole steps of 16 entries.
    const int64_t pitch = row + 16;
    values_.resize(3 * pitch);
    const T* scale = static_cast<const T*>(params.scale);
    const T* zero_point = static_cast<const T*>(params.zero_point);
    for (int64_t channel = 0, at = 0; channel < view.channels; ++channel) {
      const T inv_scale = T(1) / scale[channel];
      for (int64_t i = 0; i < view.inner; ++i, ++at) {
        values_[at] = scale[channel];
        values_[pitch + at] = inv_scale;
        values_[2 * pitch + at] = zero_point[channel];
      }
    }
    tables_ = {values_.data(), values_.data() + pitch, values_.data() + 2 * pitch};
  }
  const FakeQuantizeTables& tables() const { return tables_; }

 private:
  std::vector<T> values_;
  FakeQuantizeTables tables_;
};

// How the backward pass is cut into items, and what each channel sums.
struct SumPlan {
  explicit SumPlan(const ChannelView& v) : view(v), by_column(is_short(v)) {
    const int64_t row = by_column ? v.channels * v.inner : v.inner;
    const int64_t piece = std::max<int64_t>(1, by_column ? columns_per_block(v) : kSumChunk);
    const int64_t rows_an_item = by_column ? std::min(v.outer, kSumRows) : 1;
    groups = by_column ? ceil_div(v.outer, kSumRows) : v.outer;
    pieces = ceil_div(row, piece);
    items = groups * pieces * (by_column ? 1 : v.channels);
    grain =
        std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, rows_an_item * std::min(row, piece)));
    partials_a_channel = by_column ? 1 : pieces;
  }
  int64_t num_partials() const { return 2 * groups * view.channels * partials_a_channel; }
  // `which`: 0 scale, 1 zero point.
  double sum(const std::vector<double>& partial, int64_t channel, int which) const {
    double total = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = (group * view.channels + channel) * partials_a_channel;
      for (int64_t i = first; i < first + partials_a_channel; ++i) total += partial[2 * i + which];
    }
    return total;
  }

  ChannelView view;
  bool by_column;
  int64_t groups = 0, pieces = 0, items = 0, grain = 0, partials_a_channel = 0;
};

template <class T>
void forward(const FakeQuantizeForward& job, const Parallel& parallel) {
  const TableStorage<T> storage(job.params);
  const int64_t numel = job.params.view.numel();
  parallel(ceil_div(numel, kSumChunk), kElementsPerThread / kSumChunk, [&](int64_t begin, int64_t end) {
    active_fake_quantize_forward_kernel()(job, storage.tables(), begin * kSumChunk,
                                          std::min(end * kSumChunk, numel));
  });
}

template <class T>
void backward(const FakeQuantizeBackward& job, const Parallel& parallel) {
  const TableStorage<T> storage(job.params);
  const SumPlan plan(job.params.view);
  std::vector<double> partial(plan.num_partials());
  parallel(plan.items, plan.grain, [&](int64_t begin, int64_t end) {
    active_fake_quantize_backward_kernel()(job, storage.tables(), partial.data(), begin, end);
  });
  for (int64_t channel = 0; channel < plan.view.channels; ++channel) {
    static_cast<T*>(job.grad_scale)[channel] = static_cast<T>(plan.sum(partial, channel, 0) * job.grad_factor);
    if (job.grad_zero_point == nullptr) continue;
    const double scale = static_cast<const T*>(job.params.scale)[channel];
    static_cast<T*>(job.grad_zero_point)[channel] =
        static_cast<T>(plan.sum(partial, channel, 1) * -scale * job.grad_factor);
  }
}

}  // namespace

void fake_quantize(const FakeQuantizeForward& wanted, const Parallel& parallel) {
  if (wanted.params.view.numel() == 0) return;
  FakeQuantizeForward job = wanted;
  job.stream = job.output != job.input && can_stream(job.params, job.output, 8);
  job.params.type == FloatType::kFloat64 ? forward<double>(job, parallel) : forward<float>(job, parallel);
}

void fake_quantize_backward(const FakeQuantizeBackward& wanted, const Parallel& parallel) {
  FakeQuantizeBackward job = wanted;
  job.stream = can_stream(job.params, job.grad_input, 12);
  job.params.type == FloatType::kFloat64 ? backward<double>(job, parallel) : backward<float>(job, parallel);
}

void straight_through(const StraightThrough& wanted, const Parallel& parallel) {
  StraightThrough job = wanted;
  job.stream = job.element_size == 4 && can_stream(job.grad_input, job.numel, 8);
  parallel(ceil_div(job.numel, kSumChunk), kElementsPerThread / kSumChunk, [&](int64_t begin, int64_t end) {
    active_straight_through_kernel()(job, begin * kSumChunk, std::min(end * kSumChunk, job.numel));
  });
}

}  // namespace pqk
