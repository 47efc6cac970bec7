#include "core/cuda/norm_activation.h"
#include "core/cuda/norm_element.h"

namespace pqk::cuda {
namespace {

constexpr int kFew = 16;  // steps whose sums are float32

__global__ void factors_kernel(NormActivationParams p, NormAffine affine) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= p.view.channels) return;
  const NormFactors factors(p, channel);
  affine.multiplier[channel] = factors.multiplier;
  affine.shift[channel] = factors.shift;
  affine.mean[channel] = factors.mean;
}

// Of each part, sums of the gradient of s, and of that times (x - mean); of each block, those for the scale.
template <int kVector>
__global__ void __launch_bounds__(kNormThreads)
    sums_kernel(NormActivationParams p, NormCut cut, NormAffine affine, const float* grad_output,
                float* grad_sum, double* partial, double* scale_partial) {
  __shared__ double sums[kNormThreads];
  const NormWalk<kVector> walk(cut);
  const NormElement element(p);
  const Lanes<kVector> multiplier = walk.parameters(affine.multiplier), shift = walk.parameters(affine.shift),
                       mean = walk.parameters(affine.mean);
  NormSum grad[kVector], grad_input[kVector], scale;
  int few = 0;
  walk([&](int64_t at) {
    const Lanes<kVector> x = Lanes<kVector>::load(p.input + at), dy = Lanes<kVector>::load(grad_output + at);
    Lanes<kVector> residual{}, ds;
    if (p.residual != nullptr) residual = Lanes<kVector>::load(p.residual + at);
    float scale_sum = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float sum = x.v[i] * multiplier.v[i] + shift.v[i];
      if (p.residual != nullptr) sum = sum + residual.v[i];
      ds.v[i] = element.gradient(sum, dy.v[i], scale_sum);
      grad[i].add(ds.v[i]);
      grad_input[i].add(ds.v[i] * (x.v[i] - mean.v[i]));
    }
    scale.add(scale_sum);
    if (grad_sum != nullptr) ds.store(grad_sum + at);
    if (++few % kFew != 0) return;
    scale.carry();
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      grad[i].carry();
      grad_input[i].carry();
    }
  });
  double* const out = partial + 2 * blockIdx.y * cut.view.channels;
  store_sums(cut, walk, grad, sums, out);
  store_sums(cut, walk, grad_input, sums, out + 1);
  sums[threadIdx.x] = scale.value();
  add_over_rows(sums, 1);
  if (threadIdx.x == 0) scale_partial[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = sums[0];
}

// A thread a channel: what the last pass subtracts, and the gradients of weight and bias. The last block adds
// up the gradient of the scale.
__global__ void __launch_bounds__(kNormThreads)
    finish_kernel(NormActivationParams p, NormCut cut, NormAffine affine, const double* partial,
                  const double* scale_partial, NormActivationGradients job) {
  __shared__ double sums[kNormThreads];
  if (blockIdx.x == gridDim.x - 1) {
    const int64_t blocks = static_cast<int64_t>(cut.grid.x) * cut.grid.y;
    double sum = 0;
    for (int64_t block = threadIdx.x; block < blocks; block += kNormThreads) sum += scale_partial[block];
    sums[threadIdx.x] = sum;
    add_over_rows(sums, 1);
    if (threadIdx.x == 0) *job.grad_scale = static_cast<float>(sums[0] * job.grad_factor);
    return;
  }
  const int64_t channels = cut.view.channels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  double grad = 0, grad_input = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    grad += partial[2 * (part * channels + channel)];
    grad_input += partial[2 * (part * channels + channel) + 1];
  }
  const NormFactors factors(p, channel);
  job.grad_weight[channel] = static_cast<float>(grad_input * factors.inverse);
  job.grad_bias[channel] = static_cast<float>(grad);
  const double count = static_cast<double>(cut.view.outer * cut.view.inner), multiplier = factors.multiplier;
  const bool follows = job.batch_statistics;
  affine.slope[channel] =
      follows ? static_cast<float>(multiplier * factors.inverse * factors.inverse * grad_input / count) : 0.0f;
  affine.offset[channel] = follows ? static_cast<float>(multiplier * grad / count) : 0.0f;
}

// `grad` is the gradient of s if kKnown, else of the output.
template <int kVector, bool kKnown>
__global__ void __launch_bounds__(kNormThreads)
    gradient_kernel(NormActivationParams p, NormCut cut, NormAffine affine, const float* grad,
                    float* grad_input) {
  const NormWalk<kVector> walk(cut);
  const NormElement element(p);
  const Lanes<kVector> multiplier = walk.parameters(affine.multiplier), shift = walk.parameters(affine.shift),
                       mean = walk.parameters(affine.mean), slope = walk.parameters(affine.slope),
                       offset = walk.parameters(affine.offset);
  walk([&](int64_t at) {
    const Lanes<kVector> x = Lanes<kVector>::load(p.input + at), given = Lanes<kVector>::load(grad + at);
    Lanes<kVector> dx;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float g = given.v[i], unused = 0;
      if constexpr (!kKnown) g = element.gradient(x.v[i] * multiplier.v[i] + shift.v[i], g, unused);
      const float spread = (x.v[i] - mean.v[i]) * slope.v[i];
      dx.v[i] = (g * multiplier.v[i] - spread) - offset.v[i];
    }
    dx.store(grad_input + at);
  });
}

}  // namespace

const char* norm_activation_backward(const NormActivationParams& p, void* memory,
                                     const NormActivationGradients& job) {
  const DeviceGuard guard(p.device);
  const NormCut cut = norm_cut(p, is_vector_aligned(job.grad_output) && is_vector_aligned(job.grad_input) &&
                                      is_vector_aligned(job.grad_sum));
  const NormScratch scratch(p, cut, memory);
  const NormAffine affine(scratch.affine, p.view.channels);
  const dim3 channels = norm_channel_grid(p.view.channels), block(kNormThreads);
  const char* error = launch(factors_kernel, channels, block, 0, p.stream, p, affine);
  if (error != nullptr) return error;
  const bool normalizes = p.mean != nullptr;
  float* const grad_sum = normalizes ? job.grad_sum : job.grad_input;
  error = for_vector(cut, [&]<int kVector>() {
    return launch(sums_kernel<kVector>, cut.grid, block, 0, p.stream, p, cut, affine, job.grad_output, grad_sum,
                  scratch.partial, scratch.scale_partial);
  });
  if (error != nullptr) return error;
  error = launch(finish_kernel, dim3(channels.x + 1), block, 0, p.stream, p, cut, affine, scratch.partial,
                 scratch.scale_partial, job);
  if (error != nullptr || !normalizes) return error;
  return for_vector(cut, [&]<int kVector>() {
    return job.grad_sum != nullptr ? launch(gradient_kernel<kVector, true>, cut.grid, block, 0, p.stream, p,
                                            cut, affine, job.grad_sum, job.grad_input)
                                   : launch(gradient_kernel<kVector, false>, cut.grid, block, 0, p.stream, p,
                                            cut, affine, job.grad_output, job.grad_input);
  });
}

}  // namespace pqk::cuda
