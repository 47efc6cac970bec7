#include "torch/norm_activation.h"

#include <tuple>

namespace pqk::torch_ops {
namespace {

using namespace norm_activation_detail;

void check_place(const Tensor& tensor, const char* argument) { check_cpu(tensor, kOp, argument); }

void check(const Arguments& arguments) {
  arguments.check(check_place);
  if (arguments.scale.has_value()) check_scale(*arguments.scale, kOp);
}

// Batch norm as a factor and a summand of each channel, in double until the last step.
struct Affine {
  Affine(const Arguments& a, const Tensor& mean, const Tensor& variance)
      : multiplier(a.channels(), 1.0f), shift(a.channels(), 0.0f), inverse(a.channels(), 1.0) {
    if (mean.numel() == 0) return;
    const float* means = mean.const_data_ptr<float>();
    const float* variances = variance.const_data_ptr<float>();
    const float* weights = a.weight.has_value() ? a.weight->const_data_ptr<float>() : nullptr;
    const float* biases = a.bias.has_value() ? a.bias->const_data_ptr<float>() : nullptr;
    for (size_t c = 0; c < multiplier.size(); ++c) {
      inverse[c] = 1.0 / std::sqrt(static_cast<double>(variances[c]) + a.eps);
      multiplier[c] = static_cast<float>(inverse[c] * (weights == nullptr ? 1.0 : weights[c]));
      shift[c] = static_cast<float>((biases == nullptr ? 0.0 : biases[c]) -
                                    static_cast<double>(means[c]) * multiplier[c]);
    }
  }
  std::vector<float> multiplier, shift;
  std::vector<double> inverse;  // of the standard deviation
};

// Tensors in one memory order, and the job's values that point into them.
struct Values {
  Values(const Arguments& a, const Affine& affine, const Tensor& like)
      : input(laid_out_as(a.input, like)),
        residual(a.residual.has_value() ? std::optional<Tensor>(laid_out_as(*a.residual, like))
                                        : std::nullopt) {
    const bool quantized = a.scale.has_value();
    job = {memory_view(like, 1),
           input.const_data_ptr<float>(),
           residual.has_value() ? residual->const_data_ptr<float>() : nullptr,
           affine.multiplier.data(),
           affine.shift.data(),
           static_cast<float>(a.low),
           static_cast<float>(a.high),
           quantized,
           quantized ? a.scale->const_data_ptr<float>()[0] : 1.0f,
           quantized ? static_cast<float>(a.zero_point->const_data_ptr<int32_t>()[0]) : 0.0f,
           static_cast<float>(a.quant_max)};
  }
  Tensor input;
  std::optional<Tensor> residual;
  NormActivation job;
};

void fill_statistics(const Tensor& input, const Tensor& mean, const Tensor& variance) {
  const ChannelView view = memory_view(input, 1);
  std::vector<double> means(view.channels), variances(view.channels);
  norm_statistics({view, input.const_data_ptr<float>(), means.data(), variances.data()}, TorchParallel());
  std::copy(means.begin(), means.end(), mean.mutable_data_ptr<float>());
  std::copy(variances.begin(), variances.end(), variance.mutable_data_ptr<float>());
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(const Tensor& input, std::optional<Tensor> residual,
                                               std::optional<Tensor> weight, std::optional<Tensor> bias,
                                               std::optional<Tensor> mean, std::optional<Tensor> variance,
                                               std::optional<Tensor> scale, std::optional<Tensor> zero_point,
                                               bool batch_statistics, double eps, double low, double high,
                                               int64_t quant_max, double) {
  const Arguments arguments{input, residual, weight, bias, scale, zero_point, eps, low, high, quant_max};
  check(arguments);
  const int64_t channels = arguments.channels();
  arguments.check_statistics(mean, variance, batch_statistics, check_place);
  const bool normalizes = batch_statistics || mean.has_value();
  Tensor output = empty_dense(input);
  Tensor used_mean = new_floats(input, normalizes ? channels : 0);
  Tensor used_variance = new_floats(input, normalizes ? channels : 0);
  const Tensor dense = laid_out_as(input, output);
  if (batch_statistics) {
    fill_statistics(dense, used_mean, used_variance);
  } else if (normalizes) {
    torch::stable::copy_(used_mean, *mean);
    torch::stable::copy_(used_variance, *variance);
  }
  if (input.numel() == 0) return {output, used_mean, used_variance};
  const Affine affine(arguments, used_mean, used_variance);
  const Values values(arguments, affine, output);
  norm_activation({values.job, output.mutable_data_ptr<float>()}, TorchParallel());
  return {output, used_mean, used_variance};
}

// What the second pass subtracts, and the gradients of weight and bias.
struct ChannelGradients {
  ChannelGradients(const Affine& affine, const std::vector<double>& grad, const std::vector<double>& grad_input,
                   double count, bool batch_statistics, const Tensor& weight, const Tensor& bias)
      : slope(grad.size(), 0.0f), offset(grad.size(), 0.0f) {
    for (size_t c = 0; c < grad.size(); ++c) {
      const double inverse = affine.inverse[c];
      weight.mutable_data_ptr<float>()[c] = static_cast<float>(grad_input[c] * inverse);
      bias.mutable_data_ptr<float>()[c] = static_cast<float>(grad[c]);
      if (!batch_statistics) continue;
      slope[c] = static_cast<float>(affine.multiplier[c] * inverse * inverse * grad_input[c] / count);
      offset[c] = static_cast<float>(affine.multiplier[c] * grad[c] / count);
    }
  }
  std::vector<float> slope, offset;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_cpu(
    const Tensor& grad_output, const Tensor& input, std::optional<Tensor> residual,
    std::optional<Tensor> weight, std::optional<Tensor> bias, const Tensor& mean, const Tensor& variance,
    std::optional<Tensor> scale, std::optional<Tensor> zero_point, bool batch_statistics, double eps,
    double low, double high, int64_t quant_max, double grad_scale) {
  const Arguments arguments{input, residual, weight, bias, scale, zero_point, eps, low, high, quant_max};
  check(arguments);
  const int64_t channels = arguments.channels();
  const bool normalizes = arguments.check_backward(grad_output, mean, variance, check_place);
  const Tensor grad_input = empty_dense(input);
  const bool stores_sum = residual.has_value() || !normalizes;
  const Tensor grad_sum = normalizes && stores_sum ? empty_dense(input) : new_floats(input, 0);
  const Tensor grad_weight = new_floats(input, channels), grad_bias = new_floats(input, channels);
  const Tensor grad_of_scale = new_floats(input, 1);

  const Affine affine(arguments, mean, variance);
  const Values values(arguments, affine, grad_input);
  const Tensor grad = laid_out_as(grad_output, grad_input);
  const std::vector<float> zeros(channels, 0.0f);
  const float* means = normalizes ? mean.const_data_ptr<float>() : zeros.data();
  float* sum_at = !stores_sum ? nullptr : (normalizes ? grad_sum : grad_input).mutable_data_ptr<float>();
  std::vector<double> sums(channels), input_sums(channels);
  double scale_sum = 0;
  norm_activation_sums(
      {values.job, grad.const_data_ptr<float>(), means, sum_at, sums.data(), input_sums.data(), &scale_sum},
      TorchParallel());
  *grad_of_scale.mutable_data_ptr<float>() = static_cast<float>(scale_sum * grad_scale);
  const double count = static_cast<double>(input.numel()) / static_cast<double>(channels);
  const ChannelGradients gradients(affine, sums, input_sums, count, batch_statistics, grad_weight, grad_bias);
  if (normalizes) {
    norm_activation_gradient({values.job, grad.const_data_ptr<float>(), sum_at, means, gradients.slope.data(),
                              gradients.offset.data(), grad_input.mutable_data_ptr<float>()},
                             TorchParallel());
  }
  return {grad_input, grad_sum, grad_weight, grad_bias, grad_of_scale};
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "norm_activation(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean, "
      "Tensor? variance, Tensor? scale, Tensor? zero_point, bool batch_statistics, float eps, float low, "
      "float high, int quant_max, float grad_scale) -> (Tensor output, Tensor mean, Tensor variance)");
  m.def(
      "norm_activation_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, "
      "Tensor? bias, Tensor mean, Tensor variance, Tensor? scale, Tensor? zero_point, bool batch_statistics, "
      "float eps, float low, float high, int quant_max, float grad_scale) -> "
      "(Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale)");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("norm_activation", TORCH_BOX(&pqk::torch_ops::forward_cpu));
  m.impl("norm_activation_backward", TORCH_BOX(&pqk::torch_ops::backward_cpu));
}
