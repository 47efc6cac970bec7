// Coded payloads in device memory, for the CUDA ops.
#pragma once

#include "core/cuda/coded_plan.h"
#include "torch/coded_weight.h"
#include "torch/cuda_library.h"

namespace pqk::torch_ops {

// Waits for the device, to say what is wrong with a payload: `scratch` begins with its status. Nobody looks
// while a CUDA graph is captured.
inline void check_payload_status(const Tensor& scratch, void* stream, int64_t count, const char* op) {
  if (cuda::is_capturing(stream)) return;
  Tensor bytes = scratch;
  const Tensor status = torch::stable::to(torch::stable::narrow(bytes, 0, 0, sizeof(int)),
                                          torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const int code = *static_cast<const int*>(status.const_data_ptr());
  STD_TORCH_CHECK(code == cuda::kWhole, op, ": payload: expected one of ", count,
                  " weights, got a damaged one, or of others [", cuda::coded_status_name(code), "]");
}

// A payload, checked as far as its size tells, and memory for its plan.
class DevicePayload {
 public:
  DevicePayload(const Tensor& payload, const std::string& codec, WeightShape shape, const CudaPlace& place,
                const char* op)
      : payload_(torch::stable::contiguous(payload)),
        value{place.device,     place.stream, cuda::DeviceCodec::kRaw, payload_.const_data_ptr<uint8_t>(),
              payload_.numel(), shape} {
    openable_codec(codec, op);
    STD_TORCH_CHECK(cuda::find_device_codec(codec, value.codec), op,
                    ": on CUDA codec must be raw, packed, interleaved-huffman or interleaved-sparse-huffman, "
                    "got '",
                    codec, "'");
    const char* broken = cuda::check_payload_size(value);
    STD_TORCH_CHECK(broken == nullptr, op, ": payload: expected one of ", shape.count, " weights in ",
                    shape.rows, " rows, got ", value.size, " bytes [", broken, "]");
    if (shape.count == 0) value.codec = cuda::DeviceCodec::kRaw, value.size = 0;  // nothing to decode
    plan_ = torch::stable::new_empty(payload_, {cuda::coded_plan_bytes(value)}, ScalarType::Byte);
  }

  cuda::CodedPlan* plan() const { return reinterpret_cast<cuda::CodedPlan*>(plan_.mutable_data_ptr()); }
  const Tensor& plan_bytes() const { return plan_; }

 private:
  Tensor payload_, plan_;

 public:
  cuda::CodedPayload value;
};

}  // namespace pqk::torch_ops
