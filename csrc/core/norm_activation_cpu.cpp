#include "core/norm_activation_lanes.h"

#include "core/isa_begin.h"

namespace {

using L = FloatLanes;

// Sums of differences from a value near the mean, and of their squares; even and odd steps apart, so that the
// additions do not wait for each other.
template <int kGroups>
struct Moments {
  using Lanes = NormLanes<kGroups>;
  Lanes sum[2], square[2];

  Moments() {
    for (auto& v : sum) v = Lanes::set(0);
    for (auto& v : square) v = Lanes::set(0);
  }
  PQK_INLINE void add(const float* x, const Lanes& near, int parity) {
    for (int i = 0; i < Lanes::kCount; ++i) {
      const L::V difference = L::load(x + i * L::kWidth) - near.v[i];
      sum[parity].v[i] = sum[parity].v[i] + difference;
      square[parity].v[i] = square[parity].v[i] + difference * difference;
    }
  }
  void run(const float* x, const NormStrip& strip, const Lanes& near) {
    float buffer[kStep];
    int64_t step = 0;
    if (strip.lanes >= kStep) {
      for (; step + 2 <= strip.steps; step += 2) {
        add(x + step * strip.stride, near, 0);
        add(x + (step + 1) * strip.stride, near, 1);
      }
    }
    for (; step < strip.steps; ++step) {
      const float* at = x + step * strip.stride;
      add(strip.lanes >= kStep ? at : fetch<float>(at, buffer, strip.lanes), near, 0);
    }
    for (int i = 0; i < Lanes::kCount; ++i) {
      sum[0].v[i] = sum[0].v[i] + sum[1].v[i];
      square[0].v[i] = square[0].v[i] + square[1].v[i];
    }
  }
};

// Mean and sum of squared differences from it, out of sums of differences from `near`.
void finish(double* out, double near, double sum, double square, double count) {
  const double mean = sum / count;
  out[0] = near + mean;
  out[1] = std::max(0.0, square - sum * mean);
}

// A value that is near enough to the mean: that of the first elements. Their share of the item bounds what is
// lost.
constexpr int64_t kNearRows = 4;

template <int kGroups>
void column_strip(const float* input, const NormStrip& strip, double* out) {
  const float* x = input + strip.at;
  const int64_t rows = std::min(strip.steps, kNearRows);
  float near[kGroups * kStep] = {};
  for (int64_t row = 0; row < rows; ++row) {
    for (int i = 0; i < strip.lanes; ++i) near[i] += x[row * strip.stride + i];
  }
  for (float& value : near) value /= static_cast<float>(rows);
  Moments<kGroups> moments;
  moments.run(x, strip, NormLanes<kGroups>::load(near));
  float sum[kGroups * kStep], square[kGroups * kStep];
  moments.sum[0].store(sum);
  moments.square[0].store(square);
  for (int i = strip.first; i < strip.lanes; ++i) {
    finish(out + 2 * i, near[i], sum[i], square[i], static_cast<double>(strip.steps));
  }
}

template <bool kResidual, bool kQuantized, class Lanes>
PQK_INLINE void forward_step(const float* x, const float* residual, float* y, const Lanes& multiplier,
                             const Lanes& shift, const NormElement& element) {
  for (int i = 0, at = 0; i < Lanes::kCount; ++i, at += L::kWidth) {
    L::V sum = L::load(x + at) * multiplier.v[i] + shift.v[i];
    if constexpr (kResidual) sum = sum + L::load(residual + at);
    L::store(y + at, element.output(sum, kQuantized));
  }
}

template <bool kResidual, bool kQuantized>
void forward(const NormActivationForward& job, const NormItems& items, int64_t begin, int64_t end) {
  const NormActivation& values = job.values;
  const NormElement element(values);
  for (int64_t item = begin; item < end; ++item) {
    for_each_strip<4>(items, item, [&]<int kGroups>(const NormStrip& strip) {
      using Lanes = NormLanes<kGroups>;
      const Lanes multiplier = Lanes::of(values.multiplier, strip, items.by_column);
      const Lanes shift = Lanes::of(values.shift, strip, items.by_column);
      int64_t at = strip.at;
      if (strip.lanes >= kStep) {
        for (int64_t step = 0; step < strip.steps; ++step, at += strip.stride) {
          forward_step<kResidual, kQuantized>(values.input + at, kResidual ? values.residual + at : nullptr,
                                              job.output + at, multiplier, shift, element);
        }
        return;
      }
      float x[Lanes::kElements], residual[Lanes::kElements], y[Lanes::kElements];
      for (int64_t step = 0; step < strip.steps; ++step, at += strip.stride) {
        fetch<float>(values.input + at, x, strip.lanes);
        if constexpr (kResidual) fetch<float>(values.residual + at, residual, strip.lanes);
        forward_step<kResidual, kQuantized>(x, residual, y, multiplier, shift, element);
        flush(job.output + at, y, strip.lanes);
      }
    });
  }
}

}  // namespace

void norm_statistics_kernel(const NormStatistics& job, const NormItems& items, double* partial, int64_t begin,
                            int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / items.blocks;
    double* out = partial + 2 * group * job.view.channels;
    if (items.by_column) {
      for_each_strip<4>(items, item, [&]<int kGroups>(const NormStrip& strip) {
        column_strip<kGroups>(job.input, strip, out + 2 * strip.channel);
      });
      continue;
    }
    float near = 0;
    double sum = 0, square = 0;
    for_each_strip<1>(items, item, [&]<int kGroups>(const NormStrip& strip) {
      const float* x = job.input + strip.at;
      if (strip.first == 0) {
        for (int i = 0; i < strip.lanes; ++i) near += x[i];
        near /= static_cast<float>(strip.lanes);
      }
      Moments<kGroups> moments;
      moments.run(x, strip, NormLanes<kGroups>::set(near));
      sum += moments.sum[0].total(strip);
      square += moments.square[0].total(strip);
    });
    finish(out + 2 * (item % items.blocks), near, sum, square, static_cast<double>(items.length(group)));
  }
}

void norm_activation_kernel(const NormActivationForward& job, const NormItems& items, int64_t begin,
                            int64_t end) {
  if (job.values.residual == nullptr) {
    job.values.quantized ? forward<false, true>(job, items, begin, end)
                         : forward<false, false>(job, items, begin, end);
  } else {
    job.values.quantized ? forward<true, true>(job, items, begin, end)
                         : forward<true, false>(job, items, begin, end);
  }
}

#include "core/isa_end.h"
