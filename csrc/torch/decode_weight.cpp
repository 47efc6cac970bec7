#include "torch/decode_weight.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::decode_weight";

Tensor decode_weight_cpu(const Tensor& payload, const std::string& codec, int64_t rows, int64_t row_size) {
  check_payload(payload, kOp);
  const WeightShape shape = check_decode_weight(payload, rows, row_size, kOp);
  const WeightCodec& found = openable_codec(codec, kOp);
  const Tensor contiguous = torch::stable::contiguous(payload);
  const ByteSpan bytes{contiguous.const_data_ptr<uint8_t>(), contiguous.numel()};
  try {
    found.check(bytes, shape, "payload");  // before the output is allocated
    Tensor output = torch::stable::new_empty(contiguous, {rows, row_size}, ScalarType::Char);
    found.decode(bytes, shape, output.mutable_data_ptr<int8_t>(), "payload", TorchParallel());
    return output;
  } catch (const FormatError& error) {
    STD_TORCH_CHECK(false, kOp, ": ", error.what());
  }
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def("decode_weight(Tensor payload, str codec, int rows, int row_size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("decode_weight", TORCH_BOX(&pqk::torch_ops::decode_weight_cpu));
}
