#include "core/fake_quantize_lanes.h"

#include "core/isa_begin.h"

namespace {

template <class Lanes>
struct Sums {
  typename Lanes::V scale[kStep / Lanes::kWidth];
  typename Lanes::V zero_point[kStep / Lanes::kWidth];
  Sums() {
    for (auto& v : scale) v = Lanes::set(0);
    for (auto& v : zero_point) v = Lanes::set(0);
  }
  static double lane(const typename Lanes::V* lanes, int64_t index) {
    typename Lanes::Element value;
    memcpy(&value, reinterpret_cast<const char*>(lanes) + index * sizeof value, sizeof value);
    return value;
  }
  // A fixed tree, in double.
  static double total(const typename Lanes::V* lanes) {
    typename Lanes::Element values[kStep];
    for (int i = 0; i < kStep; i += Lanes::kWidth) Lanes::store(values + i, lanes[i / Lanes::kWidth]);
    double sums[kStep];
    for (int i = 0; i < kStep; ++i) sums[i] = values[i];
    for (int width = kStep / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0];
  }
};

// Padding elements have grad_output 0 and input 0, which adds 0 to the sums.
template <bool kMask, class Lanes, class Source>
PQK_INLINE void backward_step(const typename Lanes::Element* x, const typename Lanes::Element* dy,
                              typename Lanes::Element* dx, const uint8_t* mask, const Source& source,
                              int64_t at, const Bounds<Lanes>& bounds, Sums<Lanes>& sums) {
  for (int i = 0; i < kStep; i += Lanes::kWidth) {
    const auto zero_point = source.zero_point(at + i);
    const auto scaled = Lanes::load(x + i) * source.inv_scale(at + i);
    const auto rounded = Lanes::rint(scaled);
    const auto shifted = rounded + zero_point;
    const auto grad = Lanes::load(dy + i);
    auto in_range = bounds.contain(shifted);
    auto counts = Lanes::ordered(shifted);
    if constexpr (kMask) {
      const auto keep = Lanes::from_bytes(mask + i);
      in_range = Lanes::both(in_range, keep);
      counts = Lanes::both(counts, keep);
    }
    Lanes::store(dx + i, Lanes::zero_unless(in_range, grad));
    const auto clamped = Lanes::clamp(shifted, bounds.low, bounds.high) - zero_point;
    const auto slope = Lanes::select(in_range, rounded - scaled, clamped);
    const int lane = i / Lanes::kWidth;
    sums.scale[lane] = sums.scale[lane] + Lanes::zero_unless(counts, grad * slope);
    sums.zero_point[lane] = sums.zero_point[lane] + Lanes::zero_unless(Lanes::not_and(in_range, counts), grad);
  }
}

template <class Lanes, class Storage>
class BackwardRun {
 public:
  using E = typename Lanes::Element;
  explicit BackwardRun(const FakeQuantizeBackward& job) : job_(job), bounds_(job.params) {}

  // Elements [at, at + count) with count <= 16; their parameters start at `offset` of `source`.
  template <bool kMask, class Source>
  PQK_INLINE void step(int64_t at, int count, const Source& source, int64_t offset, Sums<Lanes>& sums) {
    Storage* out = static_cast<Storage*>(job_.grad_input) + at;
    const E* x = fetch<E>(static_cast<const Storage*>(job_.input) + at, x_buffer_, count);
    const E* dy = fetch<E>(static_cast<const Storage*>(job_.grad_output) + at, dy_buffer_, count);
    E* dx = target<E>(out, dx_buffer_, count);
    const uint8_t* mask = nullptr;
    if constexpr (kMask) mask = fetch(job_.params.mask + at, mask_buffer_, count);
    backward_step<kMask, Lanes>(x, dy, dx, mask, source, offset, bounds_, sums);
    flush(out, dx, count);
  }

 private:
  const FakeQuantizeBackward& job_;
  Bounds<Lanes> bounds_;
  E x_buffer_[kStep], dy_buffer_[kStep], dx_buffer_[kStep];
  uint8_t mask_buffer_[kStep] = {};
};

template <class Lanes, class Storage, bool kMask>
void backward_by_row(const FakeQuantizeBackward& job, double* partial, int64_t begin, int64_t end) {
  const ChannelView& view = job.params.view;
  const int64_t pieces = (view.inner + kSumChunk - 1) / kSumChunk;
  BackwardRun<Lanes, Storage> run(job);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item / pieces, first = item % pieces * kSumChunk;
    const int64_t length = std::min(kSumChunk, view.inner - first), at = row * view.inner + first;
    const Constants<Lanes> source(job.params, {}, row, 0);
    Sums<Lanes> sums;
    int64_t i = 0;
    for (; i + kStep <= length; i += kStep) run.template step<kMask>(at + i, kStep, source, 0, sums);
    if (i < length) run.template step<kMask>(at + i, static_cast<int>(length - i), source, 0, sums);
    partial[2 * item] = Sums<Lanes>::total(sums.scale);
    partial[2 * item + 1] = Sums<Lanes>::total(sums.zero_point);
  }
}

template <class Lanes, class Storage, bool kMask>
void backward_by_column(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                        int64_t begin, int64_t end) {
  const ChannelView& view = job.params.view;
  const int64_t row_length = view.channels * view.inner;
  const int64_t block = columns_per_block(view), blocks = (row_length + block - 1) / block;
  BackwardRun<Lanes, Storage> run(job);
  Sums<Lanes> sums[kColumnBlock / kStep];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / blocks, first = item % blocks * block;
    const int64_t length = std::min(block, row_length - first);
    const int64_t last_row = std::min(view.outer, (group + 1) * kSumRows);
    const Tables<Lanes> source(job.params, tables, 0, first);
    for (auto& s : sums) s = Sums<Lanes>();
    for (int64_t row = group * kSumRows; row < last_row; ++row) {
      for (int64_t i = 0; i < length; i += kStep) {
        const int count = static_cast<int>(std::min<int64_t>(kStep, length - i));
        run.template step<kMask>(row * row_length + first + i, count, source, i, sums[i / kStep]);
      }
    }
    double* out = partial + 2 * (group * view.channels + first / view.inner);
    for (int64_t i = 0; i < length; out += 2) {
      double scale_sum = 0, zero_point_sum = 0;
      for (const int64_t last = i + view.inner; i < last; ++i) {
        scale_sum += Sums<Lanes>::lane(sums[i / kStep].scale, i % kStep);
        zero_point_sum += Sums<Lanes>::lane(sums[i / kStep].zero_point, i % kStep);
      }
      out[0] = scale_sum;
      out[1] = zero_point_sum;
    }
  }
}

template <class Lanes, class Storage>
void backward_any(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                  int64_t begin, int64_t end) {
  if (job.params.mask == nullptr) {
    tables.used() ? backward_by_column<Lanes, Storage, false>(job, tables, partial, begin, end)
                  : backward_by_row<Lanes, Storage, false>(job, partial, begin, end);
  } else {
    tables.used() ? backward_by_column<Lanes, Storage, true>(job, tables, partial, begin, end)
                  : backward_by_row<Lanes, Storage, true>(job, partial, begin, end);
  }
}

}  // namespace

void fake_quantize_backward_kernel(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables,
                                   double* partial, int64_t begin, int64_t end) {
  switch (job.params.type) {
    case FloatType::kFloat32:
      return backward_any<FloatLanes, float>(job, tables, partial, begin, end);
    case FloatType::kFloat64:
      return backward_any<ScalarLanes<double>, double>(job, tables, partial, begin, end);
    case FloatType::kBFloat16:
      return backward_any<FloatLanes, BFloat16>(job, tables, partial, begin, end);
  }
}

#include "core/isa_end.h"
