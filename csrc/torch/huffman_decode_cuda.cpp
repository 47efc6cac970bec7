#include "core/cuda/huffman_decode.h"

#include "torch/coded_payload_cuda.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::huffman_decode";

Tensor huffman_decode_cuda(const Tensor& payload, int64_t count) {
  check_same_device(payload, payload, kOp, "payload");
  check_payload_shape(payload, kOp);
  check_huffman_count(count, kOp);
  const Tensor payloads = torch::stable::contiguous(payload);
  const int64_t size = payloads.numel();
  STD_TORCH_CHECK(count > 0 || size == 0, kOp, ": payload: expected no bytes, got ", size,
                  " [E_SIZE_MISMATCH]");
  STD_TORCH_CHECK(count / 8 <= size, kOp, ": payload: expected at most ", size, " bytes of weights, got ",
                  count, " weights [E_BOMB]");
  Tensor output = torch::stable::new_empty(payloads, {count}, ScalarType::Char);
  if (count == 0) return output;
  const CudaPlace place(payload);
  const cuda::HuffmanDecode job{place.device, place.stream, payloads.const_data_ptr<uint8_t>(),
                                size,         count,        output.mutable_data_ptr<int8_t>()};
  const Tensor scratch =
      torch::stable::new_empty(payloads, {cuda::huffman_decode_scratch(job)}, ScalarType::Byte);
  check_launch(cuda::huffman_decode(job, scratch.mutable_data_ptr()), kOp);
  check_payload_status(scratch, place.stream, count, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("huffman_decode", TORCH_BOX(&pqk::torch_ops::huffman_decode_cuda)); }
