#include "core/cuda/norm_activation.h"

#include "core/cuda/norm_element.h"

namespace pqk::cuda {
namespace {

constexpr int kFew = 16;  // steps whose sums are float32

// Of each part, sums of differences from the channel's first element, and of their squares.
template <int kVector>
__global__ void __launch_bounds__(kNormThreads)
    statistics_kernel(NormCut cut, const float* input, double* partial) {
  __shared__ double sums[kNormThreads];
  const NormWalk<kVector> walk(cut);
  NormSum sum[kVector], square[kVector];
  float near[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) near[i] = walk.has_channel() ? input[walk.first_element(i)] : 0.0f;
  int few = 0;
  walk([&](int64_t at) {
    const Lanes<kVector> x = Lanes<kVector>::load(input + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float difference = x.v[i] - near[i];
      sum[i].add(difference);
      square[i].add(difference * difference);
    }
    if (++few % kFew != 0) return;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      sum[i].carry();
      square[i].carry();
    }
  });
  double* const out = partial + 2 * blockIdx.y * cut.view.channels;
  store_sums(cut, walk, sum, sums, out);
  store_sums(cut, walk, square, sums, out + 1);
}

// A thread a channel.
__global__ void moments_kernel(NormCut cut, const float* input, const double* partial, float* mean,
                               float* variance) {
  const int64_t channels = cut.view.channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  double sum = 0, square = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    sum += partial[2 * (part * channels + channel)];
    square += partial[2 * (part * channels + channel) + 1];
  }
  const double count = static_cast<double>(cut.view.outer * cut.view.inner), shift = sum / count;
  mean[channel] = static_cast<float>(static_cast<double>(input[channel * cut.view.inner]) + shift);
  const double spread = (square - sum * shift) / count;
  variance[channel] = static_cast<float>(spread < 0 ? 0 : spread);
}

__global__ void affine_kernel(NormActivationParams p, NormAffine affine) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= p.view.channels) return;
  const NormFactors factors(p, channel);
  affine.multiplier[channel] = factors.multiplier;
  affine.shift[channel] = factors.shift;
}

template <int kVector>
__global__ void __launch_bounds__(kNormThreads)
    forward_kernel(NormActivationParams p, NormCut cut, NormAffine affine, float* output) {
  const NormWalk<kVector> walk(cut);
  const NormElement element(p);
  const Lanes<kVector> multiplier = walk.parameters(affine.multiplier), shift = walk.parameters(affine.shift);
  walk([&](int64_t at) {
    const Lanes<kVector> x = Lanes<kVector>::load(p.input + at);
    Lanes<kVector> residual{}, y;
    if (p.residual != nullptr) residual = Lanes<kVector>::load(p.residual + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float sum = x.v[i] * multiplier.v[i] + shift.v[i];
      if (p.residual != nullptr) sum = sum + residual.v[i];
      y.v[i] = element.output(sum);
    }
    y.store(output + at);
  });
}

}  // namespace

int64_t norm_activation_scratch(const NormActivationParams& p) {
  // Whether vectors can be loaded changes the number of parts.
  const NormCut wide(p.view, true, p.device), narrow(p.view, false, p.device);
  return std::max(NormScratch::bytes(p.view, wide), NormScratch::bytes(p.view, narrow));
}

const char* norm_statistics(const NormActivationParams& p, void* memory, float* mean, float* variance) {
  const DeviceGuard guard(p.device);
  const NormCut cut(p.view, is_vector_aligned(p.input), p.device);
  const NormScratch scratch(p, cut, memory);
  const char* error = for_vector(cut, [&]<int kVector>() {
    return launch(statistics_kernel<kVector>, cut.grid, dim3(kNormThreads), 0, p.stream, cut, p.input,
                  scratch.partial);
  });
  if (error != nullptr) return error;
  return launch(moments_kernel, norm_channel_grid(p.view.channels), dim3(kNormThreads), 0, p.stream, cut,
                p.input, scratch.partial, mean, variance);
}

const char* norm_activation(const NormActivationParams& p, void* memory, float* output) {
  if (p.view.numel() == 0) return nullptr;
  const DeviceGuard guard(p.device);
  const NormCut cut = norm_cut(p, is_vector_aligned(output));
  const NormAffine affine(NormScratch(p, cut, memory).affine, p.view.channels);
  const char* error =
      launch(affine_kernel, norm_channel_grid(p.view.channels), dim3(kNormThreads), 0, p.stream, p, affine);
  if (error != nullptr) return error;
  return for_vector(cut, [&]<int kVector>() {
    return launch(forward_kernel<kVector>, cut.grid, dim3(kNormThreads), 0, p.stream, p, cut, affine, output);
  });
}

}  // namespace pqk::cuda
