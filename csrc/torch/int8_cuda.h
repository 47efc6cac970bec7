// What the integer layers' CUDA bindings share. The values of arguments are not checked: reading them would
// stop the stream.
#pragma once

#include "core/cuda/int8_conv2d.h"
#include "torch/cuda_library.h"
#include "torch/int8_arguments.h"

namespace pqk::torch_ops {

// An argument that is on a device is what brings a call here; `input` need not be the one.
inline void check_on_device(const Tensor& input, const char* op) {
  STD_TORCH_CHECK(on_device(input), op, ": input must be on a CUDA device, where other arguments are");
}

// multiplier and bias as kernels read them.
struct ChannelConstants {
  ChannelConstants(const Tensor& multiplier, const Tensor& bias, int64_t channels, const Tensor& input,
                   const char* op)
      : multiplier(checked(multiplier, channels, input, op, "multiplier")),
        bias(checked(bias, channels, input, op, "bias")) {}

  Tensor multiplier, bias;

 private:
  static Tensor checked(const Tensor& values, int64_t channels, const Tensor& input, const char* op,
                        const char* argument) {
    check_same_device(values, input, op, argument);
    check_channel_shape(values, channels, op, argument);
    return torch::stable::contiguous(values);
  }
};

// A job but for its input, weight, residual and output.
inline cuda::Int8Conv2d cuda_job(const Tensor& input, const Conv2dShape& shape, int64_t images,
                                 const ChannelConstants& constants, const Int8Epilogue& e) {
  const CudaPlace place(input);
  cuda::Int8Conv2d job{};
  job.device = place.device, job.stream = place.stream;
  job.shape = shape, job.images = images;
  job.multiplier = constants.multiplier.const_data_ptr<float>();
  job.bias = constants.bias.const_data_ptr<float>();
  job.input_zero_point = static_cast<int32_t>(e.input_zero_point);
  job.quant_min = static_cast<int32_t>(e.quant_min), job.quant_max = static_cast<int32_t>(e.quant_max);
  job.residual_multiplier = static_cast<float>(e.residual_multiplier);
  job.residual_zero_point = static_cast<int32_t>(e.residual_zero_point);
  job.float_output = e.float_output;
  return job;
}

inline ScalarType output_type(bool float_output) { return float_output ? ScalarType::Float : ScalarType::Byte; }

// Runs the job in memory of torch's, which is free again for whatever follows on the stream.
inline void run_cuda_job(const cuda::Int8Conv2d& job, const Tensor& input, const char* op) {
  const Tensor workspace =
      torch::stable::new_empty(input, {cuda::int8_conv2d_workspace(job)}, ScalarType::Byte);
  check_launch(cuda::int8_conv2d(job, workspace.mutable_data_ptr()), op);
}

}  // namespace pqk::torch_ops
