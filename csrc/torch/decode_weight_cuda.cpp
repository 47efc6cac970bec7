#include "torch/decode_weight.h"

#include "core/cuda/decode_bitmask.h"
#include "core/cuda/decode_weight.h"
#include "torch/coded_payload_cuda.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::decode_weight";

Tensor decode_bitmask_cuda(const Tensor& payload, WeightShape shape, int64_t rows, int64_t row_size) {
  const CudaPlace place(payload);
  const Tensor bytes = torch::stable::contiguous(payload);
  const cuda::BitmaskPayload weight{place.device, place.stream, bytes.const_data_ptr<uint8_t>(), bytes.numel(),
                                    shape.count};
  const char* broken = weight.size < weight.mask_bytes()                 ? "E_TRUNCATED"
                       : weight.size > weight.mask_bytes() + shape.count ? "E_SIZE_MISMATCH"
                                                                         : nullptr;
  STD_TORCH_CHECK(broken == nullptr, kOp, ": payload: expected one of ", shape.count, " weights, got ",
                  weight.size, " bytes [", broken, "]");
  Tensor output = torch::stable::new_empty(bytes, {rows, row_size}, ScalarType::Char);
  if (shape.count == 0) return output;
  const Tensor workspace = torch::stable::new_empty(bytes, {cuda::bitmask_workspace(weight)}, ScalarType::Byte);
  check_launch(cuda::decode_bitmask(weight, workspace.mutable_data_ptr(), output.mutable_data_ptr<int8_t>()),
               kOp);
  check_payload_status(workspace, place.stream, shape.count, kOp);
  return output;
}

Tensor decode_weight_cuda(const Tensor& payload, const std::string& codec, int64_t rows, int64_t row_size) {
  const WeightShape shape = check_decode_weight(payload, rows, row_size, kOp);
  check_same_device(payload, payload, kOp, "payload");
  if (codec == kBitmaskCodec.name) return decode_bitmask_cuda(payload, shape, rows, row_size);
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
