#include "core/norm_activation_lanes.h"

#include "core/isa_begin.h"

namespace {

using L = FloatLanes;

template <int kGroups>
struct Sums {
  using Lanes = NormLanes<kGroups>;
  Sums() : grad(Lanes::set(0)), grad_input(Lanes::set(0)), scale(Lanes::set(0)) {}
  Lanes grad, grad_input, scale;
};

template <int kGroups>
struct Channel {
  using Lanes = NormLanes<kGroups>;
  Channel(const NormActivation& values, const float* means, const NormStrip& strip, bool by_column)
      : multiplier(Lanes::of(values.multiplier, strip, by_column)),
        shift(Lanes::of(values.shift, strip, by_column)),
        mean(Lanes::of(means, strip, by_column)) {}
  Lanes multiplier, shift, mean;
};

template <bool kResidual, int kGroups>
PQK_INLINE L::V sum_of(L::V x, const float* residual, const Channel<kGroups>& channel, int i) {
  L::V sum = x * channel.multiplier.v[i] + channel.shift.v[i];
  if constexpr (kResidual) sum = sum + L::load(residual + i * L::kWidth);
  return sum;
}

template <bool kResidual, bool kQuantized, bool kStore, int kGroups>
PQK_INLINE void sums_step(const float* x, const float* residual, const float* dy, float* ds,
                          const Channel<kGroups>& channel, const NormElement& element, Sums<kGroups>& sums) {
  for (int i = 0, at = 0; i < NormLanes<kGroups>::kCount; ++i, at += L::kWidth) {
    const L::V input = L::load(x + at);
    const L::V sum = sum_of<kResidual>(input, residual, channel, i);
    L::V grad = L::load(dy + at);
    if constexpr (kQuantized) {
      grad = element.gradient_and_slope(sum, grad, sums.scale.v[i]);
    } else {
      grad = element.gradient(sum, grad, false);
    }
    if constexpr (kStore) L::store(ds + at, grad);
    sums.grad.v[i] = sums.grad.v[i] + grad;
    sums.grad_input.v[i] = sums.grad_input.v[i] + grad * (input - channel.mean.v[i]);
  }
}

template <bool kResidual, bool kQuantized, bool kStore, int kGroups>
Sums<kGroups> sums_of_strip(const NormActivationSums& job, const NormStrip& strip, bool by_column,
                            const NormElement& element) {
  const NormActivation& values = job.values;
  const Channel<kGroups> channel(values, job.mean, strip, by_column);
  Sums<kGroups> sums;
  int64_t at = strip.at;
  if (strip.lanes >= kStep) {
    for (int64_t step = 0; step < strip.steps; ++step, at += strip.stride) {
      sums_step<kResidual, kQuantized, kStore>(values.input + at, kResidual ? values.residual + at : nullptr,
                                               job.grad_output + at, kStore ? job.grad_sum + at : nullptr,
                                               channel, element, sums);
    }
    return sums;
  }
  constexpr int kElements = NormLanes<kGroups>::kElements;
  float x[kElements], residual[kElements], dy[kElements], ds[kElements];
  for (int64_t step = 0; step < strip.steps; ++step, at += strip.stride) {
    fetch<float>(values.input + at, x, strip.lanes);
    if constexpr (kResidual) fetch<float>(values.residual + at, residual, strip.lanes);
    fetch<float>(job.grad_output + at, dy, strip.lanes);
    sums_step<kResidual, kQuantized, kStore>(x, residual, dy, ds, channel, element, sums);
    if constexpr (kStore) flush(job.grad_sum + at, ds, strip.lanes);
  }
  return sums;
}

template <bool kResidual, bool kQuantized, bool kStore>
void sums(const NormActivationSums& job, const NormItems& items, double* partial, double* scale_partial,
          int64_t begin, int64_t end) {
  const NormElement element(job.values);
  for (int64_t item = begin; item < end; ++item) {
    double* out = partial + 2 * (item / items.blocks) * items.view.channels;
    double scale = 0;
    for_each_strip<2>(items, item, [&]<int kGroups>(const NormStrip& strip) {
      const Sums<kGroups> found =
          sums_of_strip<kResidual, kQuantized, kStore, kGroups>(job, strip, items.by_column, element);
      if constexpr (kQuantized) scale += found.scale.total(strip);
      double* at = out + 2 * strip.channel;
      if (!items.by_column) {
        at[0] += found.grad.total(strip);
        at[1] += found.grad_input.total(strip);
        return;
      }
      float grad[kGroups * kStep], grad_input[kGroups * kStep];
      found.grad.store(grad);
      found.grad_input.store(grad_input);
      for (int i = strip.first; i < strip.lanes; ++i) {
        at[2 * i] = grad[i];
        at[2 * i + 1] = grad_input[i];
      }
    });
    scale_partial[item] = scale;
  }
}

template <bool kResidual, bool kQuantized>
void sums_any(const NormActivationSums& job, const NormItems& items, double* partial, double* scale_partial,
              int64_t begin, int64_t end) {
  job.grad_sum == nullptr ? sums<kResidual, kQuantized, false>(job, items, partial, scale_partial, begin, end)
                          : sums<kResidual, kQuantized, true>(job, items, partial, scale_partial, begin, end);
}

enum class Known { kGradSum, kGradOutput, kGradOutputQuantized };

// `grad` is what is known: the gradient of s, or of y.
template <Known kKnown, int kGroups>
PQK_INLINE void gradient_step(const float* x, const float* grad, float* dx, const Channel<kGroups>& channel,
                              const NormLanes<kGroups>& slope, const NormLanes<kGroups>& offset,
                              const NormElement& element) {
  for (int i = 0, at = 0; i < NormLanes<kGroups>::kCount; ++i, at += L::kWidth) {
    const L::V input = L::load(x + at);
    L::V g = L::load(grad + at);
    if constexpr (kKnown != Known::kGradSum) {
      g = element.gradient(sum_of<false>(input, nullptr, channel, i), g, kKnown == Known::kGradOutputQuantized);
    }
    const L::V spread = (input - channel.mean.v[i]) * slope.v[i];
    L::store(dx + at, (g * channel.multiplier.v[i] - spread) - offset.v[i]);
  }
}

template <Known kKnown>
void gradient(const NormActivationGradient& job, const NormItems& items, int64_t begin, int64_t end) {
  const NormActivation& values = job.values;
  const float* grad = kKnown == Known::kGradSum ? job.grad_sum : job.grad_output;
  const NormElement element(values);
  for (int64_t item = begin; item < end; ++item) {
    for_each_strip<4>(items, item, [&]<int kGroups>(const NormStrip& strip) {
      using Lanes = NormLanes<kGroups>;
      const Channel<kGroups> channel(values, job.mean, strip, items.by_column);
      const Lanes slope = Lanes::of(job.slope, strip, items.by_column);
      const Lanes offset = Lanes::of(job.offset, strip, items.by_column);
      int64_t at = strip.at;
      if (strip.lanes >= kStep) {
        for (int64_t step = 0; step < strip.steps; ++step, at += strip.stride) {
          gradient_step<kKnown>(values.input + at, grad + at, job.grad_input + at, channel, slope, offset,
                                element);
        }
        return;
      }
      float x[Lanes::kElements], g[Lanes::kElements], dx[Lanes::kElements];
      for (int64_t step = 0; step < strip.steps; ++step, at += strip.stride) {
        fetch<float>(values.input + at, x, strip.lanes);
        fetch<float>(grad + at, g, strip.lanes);
        gradient_step<kKnown>(x, g, dx, channel, slope, offset, element);
        flush(job.grad_input + at, dx, strip.lanes);
      }
    });
  }
}

}  // namespace

void norm_activation_sums_kernel(const NormActivationSums& job, const NormItems& items, double* partial,
                                 double* scale_partial, int64_t begin, int64_t end) {
  if (job.values.residual == nullptr) {
    job.values.quantized ? sums_any<false, true>(job, items, partial, scale_partial, begin, end)
                         : sums_any<false, false>(job, items, partial, scale_partial, begin, end);
  } else {
    job.values.quantized ? sums_any<true, true>(job, items, partial, scale_partial, begin, end)
                         : sums_any<true, false>(job, items, partial, scale_partial, begin, end);
  }
}

void norm_activation_gradient_kernel(const NormActivationGradient& job, const NormItems& items, int64_t begin,
                                     int64_t end) {
  if (job.grad_sum != nullptr) return gradient<Known::kGradSum>(job, items, begin, end);
  job.values.quantized ? gradient<Known::kGradOutputQuantized>(job, items, begin, end)
                       : gradient<Known::kGradOutput>(job, items, begin, end);
}

#include "core/isa_end.h"
