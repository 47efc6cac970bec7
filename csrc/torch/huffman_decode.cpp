#include "torch/coded_weight.h"

namespace pqk::torch_ops {
namespace {

Tensor huffman_decode_cpu(const Tensor& payload, int64_t count) {
  constexpr const char* kOp = "pqk::huffman_decode";
  check_payload(payload, kOp);
  check_huffman_count(count, kOp);
  const Tensor contiguous = torch::stable::contiguous(payload);
  const ByteSpan bytes{contiguous.const_data_ptr<uint8_t>(), contiguous.numel()};
  try {
    const WeightShape weights{count, 1};
    kHuffmanCodec.check(bytes, weights, "payload");  // before the output is allocated
    const std::vector<int64_t> shape{count};
    Tensor output = torch::stable::new_empty(contiguous, shape, ScalarType::Char);
    kHuffmanCodec.decode(bytes, weights, output.mutable_data_ptr<int8_t>(), "payload", Serial());
    return output;
  } catch (const FormatError& error) {
    STD_TORCH_CHECK(false, kOp, ": ", error.what());
  }
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) { m.def("huffman_decode(Tensor payload, int count) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("huffman_decode", TORCH_BOX(&pqk::torch_ops::huffman_decode_cpu));
}
