// What the ops on coded weights share.
#pragma once

#include <exception>
#include <memory>
#include <mutex>

#include "core/codec.h"
#include "torch/check.h"

namespace pqk::torch_ops {

// Not where it lies.
inline void check_payload_shape(const Tensor& payload, const char* op) {
  check_dtype(payload, ScalarType::Byte, op, "payload");
  STD_TORCH_CHECK(payload.dim() == 1, op, ": payload must have 1 dimension, got shape ", shape_string(payload));
}

inline void check_payload(const Tensor& payload, const char* op) {
  check_cpu(payload, op, "payload");
  check_payload_shape(payload, op);
}

inline void check_huffman_count(int64_t count, const char* op) {
  STD_TORCH_CHECK(count >= 0, op, ": count must not be negative, got ", count);
}

// A codec whose rows can be decoded by themselves.
inline const WeightCodec& openable_codec(const std::string& codec, const char* op) {
  try {
    const WeightCodec& found = weight_codec(codec, "codec");
    STD_TORCH_CHECK(found.open != nullptr, op,
                    ": codec must be one whose rows can be decoded by themselves, got '", codec, "'");
    return found;
  } catch (const FormatError& error) {
    STD_TORCH_CHECK(false, op, ": ", error.what());
  }
}

// `payload` must be contiguous and outlive the result.
inline std::shared_ptr<const CodedWeight> open_weight(const Tensor& payload, const std::string& codec,
                                                      WeightShape shape, const char* op) {
  const WeightCodec& found = openable_codec(codec, op);
  try {
    const ByteSpan bytes{payload.const_data_ptr<uint8_t>(), payload.numel()};
    found.check(bytes, shape, "payload");
    if (shape.count == 0) return kRawCodec.open({bytes.data, 0}, shape, "payload");  // nothing to decode
    return found.open(bytes, shape, "payload");
  } catch (const FormatError& error) {
    STD_TORCH_CHECK(false, op, ": ", error.what());
  }
}

// Calls body(begin, end) on torch's threads. Of what it throws where a payload is not whole, one is reported.
template <class Body>
void decode_parallel(int64_t count, int64_t grain, const char* op, const Body& body) {
  std::mutex mutex;
  std::string wrong;
  TorchParallel()(count, grain, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end);
    } catch (const FormatError& error) {
      const std::lock_guard<std::mutex> lock(mutex);
      wrong = error.what();
    }
  });
  STD_TORCH_CHECK(wrong.empty(), op, ": ", wrong);
}

}  // namespace pqk::torch_ops
