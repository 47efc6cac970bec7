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
template <bool kMask, bool kStream, class Lanes, class Source>
PQK_INLINE void backward_step(const typename Lanes::Element* x, const typename Lanes::Element* dy,
                              typename Lanes::Element* dx, const uint8_t* mask, const Source& source,
                              int64_t at, Sums<Lanes>& sums) {
  for (int i = 0; i < kStep; i += Lanes::kWidth) {
    const auto scaled = Lanes::load(x + i) * source.inv_scale(at + i);
    const auto rounded = Lanes::rint(scaled);
    const auto clamped = Lanes::clamp(rounded, source.low(at + i), source.high(at + i));
    const auto grad = Lanes::load(dy + i);
    // A NaN is in neither.
    typename Lanes::M in_range, outside;
    if constexpr (kMask) {
      const auto keep = Lanes::from_bytes(mask + i);
      in_range = Lanes::equal(keep, clamped, rounded);
      outside = Lanes::differ(keep, clamped, rounded);
    } else {
      in_range = Lanes::equal(clamped, rounded);
      outside = Lanes::differ(clamped, rounded);
    }
    put<kStream, Lanes>(dx + i, Lanes::zero_unless(in_range, grad));
    const auto slope = clamped - Lanes::zero_unless(in_range, scaled);
    const int lane = i / Lanes::kWidth;
    sums.scale[lane] = Lanes::add_where(Lanes::either(in_range, outside), sums.scale[lane], grad * slope);
    sums.zero_point[lane] = Lanes::add_where(outside, sums.zero_point[lane], grad);
  }
}

template <class Lanes, class Storage>
class BackwardRun {
 public:
  using E = typename Lanes::Element;
  static constexpr bool kInPlace = std::is_same_v<E, Storage>;
  explicit BackwardRun(const FakeQuantizeBackward& job) : job_(job) {}

  // As many as there are of the steps of elements [at, at + length); returns how many elements these are.
  // Pointers and sums stay in registers.
  template <bool kMask, bool kStream, class Source>
  PQK_INLINE int64_t whole_steps(int64_t at, int64_t length, const Source& source, Sums<Lanes>& total) {
    const E* x = static_cast<const E*>(job_.input) + at;
    const E* dy = static_cast<const E*>(job_.grad_output) + at;
    E* dx = static_cast<E*>(job_.grad_input) + at;
    const uint8_t* mask = kMask ? job_.params.mask + at : nullptr;
    Sums<Lanes> sums = total;
    int64_t i = 0;
    for (; i + 2 * kStep <= length; i += 2 * kStep) {
      backward_step<kMask, kStream, Lanes>(x + i, dy + i, dx + i, mask + i, source, 0, sums);
      backward_step<kMask, kStream, Lanes>(x + i + kStep, dy + i + kStep, dx + i + kStep, mask + i + kStep,
                                           source, 0, sums);
    }
    total = sums;
    return i;
  }

  // Elements [at, at + count) with count <= 16; their parameters start at `offset` of `source`.
  template <bool kMask, bool kStream, class Source>
  PQK_INLINE void step(int64_t at, int count, const Source& source, int64_t offset, Sums<Lanes>& sums) {
    Storage* out = static_cast<Storage*>(job_.grad_input) + at;
    const E* x = fetch<E>(static_cast<const Storage*>(job_.input) + at, x_buffer_, count);
    const E* dy = fetch<E>(static_cast<const Storage*>(job_.grad_output) + at, dy_buffer_, count);
    E* dx = target<E>(out, dx_buffer_, count);
    const uint8_t* mask = nullptr;
    if constexpr (kMask) mask = fetch(job_.params.mask + at, mask_buffer_, count);
    backward_step<kMask, kStream, Lanes>(x, dy, dx, mask, source, offset, sums);
    flush(out, dx, count);
  }

 private:
  const FakeQuantizeBackward& job_;
  E x_buffer_[kStep], dy_buffer_[kStep], dx_buffer_[kStep];
  uint8_t mask_buffer_[kStep] = {};
};

template <class Lanes, class Storage, bool kMask, bool kStream>
void backward_by_row(const FakeQuantizeBackward& job, double* partial, int64_t begin, int64_t end) {
  const ChannelView& view = job.params.view;
  const int64_t pieces = (view.inner + kSumChunk - 1) / kSumChunk;
  const Bounds<Lanes> bounds(job.params);
  BackwardRun<Lanes, Storage> run(job);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item / pieces, first = item % pieces * kSumChunk;
    const int64_t length = std::min(kSumChunk, view.inner - first), at = row * view.inner + first;
    const Constants<Lanes> source(job.params, bounds, {}, row, 0);
    Sums<Lanes> sums;
    int64_t i = 0;
    if constexpr (BackwardRun<Lanes, Storage>::kInPlace) {
      i = run.template whole_steps<kMask, kStream>(at, length, source, sums);
    }
    for (; i + kStep <= length; i += kStep) run.template step<kMask, false>(at + i, kStep, source, 0, sums);
    if (i < length) run.template step<kMask, false>(at + i, static_cast<int>(length - i), source, 0, sums);
    partial[2 * item] = Sums<Lanes>::total(sums.scale);
    partial[2 * item + 1] = Sums<Lanes>::total(sums.zero_point);
  }
  if constexpr (kStream) end_of_stream();
}

template <class Lanes, class Storage, bool kMask>
void backward_by_column(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                        int64_t begin, int64_t end) {
  const ChannelView& view = job.params.view;
  const int64_t row_length = view.channels * view.inner;
  const int64_t block = columns_per_block(view), blocks = (row_length + block - 1) / block;
  const Bounds<Lanes> bounds(job.params);
  BackwardRun<Lanes, Storage> run(job);
  Sums<Lanes> sums[kColumnBlock / kStep];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / blocks, first = item % blocks * block;
    const int64_t length = std::min(block, row_length - first);
    const int64_t last_row = std::min(view.outer, (group + 1) * kSumRows);
    const Tables<Lanes> source(job.params, bounds, tables, 0, first);
    for (auto& s : sums) s = Sums<Lanes>();
    for (int64_t row = group * kSumRows; row < last_row; ++row) {
      for (int64_t i = 0; i < length; i += kStep) {
        const int count = static_cast<int>(std::min<int64_t>(kStep, length - i));
        run.template step<kMask, false>(row * row_length + first + i, count, source, i, sums[i / kStep]);
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

template <class Lanes, class Storage, bool kMask>
void backward_by(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                 int64_t begin, int64_t end) {
  if (tables.used()) return backward_by_column<Lanes, Storage, kMask>(job, tables, partial, begin, end);
  if constexpr (std::is_same_v<Storage, float>) {
    if (job.stream) return backward_by_row<Lanes, Storage, kMask, true>(job, partial, begin, end);
  }
  backward_by_row<Lanes, Storage, kMask, false>(job, partial, begin, end);
}

template <class Lanes, class Storage>
void backward_any(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                  int64_t begin, int64_t end) {
  job.params.mask ? backward_by<Lanes, Storage, true>(job, tables, partial, begin, end)
                  : backward_by<Lanes, Storage, false>(job, tables, partial, begin, end);
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
