#include "torch/decode_weight.h"

#include "core/cuda/decode_weight.h"
#include "torch/coded_payload_cuda.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::decode_weight";

Tensor decode_weight_cuda(const Tensor& payload, const std::string& codec, int64_t rows, int64_t row_size) {
  const WeightShape shape = check_decode_weight(payload, rows, row_size, kOp);
  check_same_device(payload, payload, kOp, "payload");
  const CudaPlace place(payload);
  const DevicePayload weight(payload, codec, shape, place, kOp);
  Tensor output = torch::stable::new_empty(payload, {rows, row_size}, ScalarType::Char);
  if (shape.count == 0) return output;
  check_launch(cuda::decode_weight(weight.value, weight.plan(), output.mutable_data_ptr<int8_t>()), kOp);
  check_payload_status(weight.plan_bytes(), place.stream, shape.count, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("decode_weight", TORCH_BOX(&pqk::torch_ops::decode_weight_cuda)); }
