// `raw`: the values.
#include <algorithm>

#include "core/codec.h"

namespace pqk {
namespace {

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(values);
  return {bytes, bytes + shape.count};
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (payload.size == shape.count) return;
  throw FormatError("E_SIZE_MISMATCH", field, -1, std::to_string(shape.count) + " bytes",
                    std::to_string(payload.size));
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  check(payload, shape, field);
  std::copy(payload.data, payload.data + payload.size, reinterpret_cast<uint8_t*>(output));
}

PayloadParts parts(ByteSpan payload, WeightShape, const std::string&) { return {.values = payload.size}; }

}  // namespace

const WeightCodec kRawCodec{"raw", nullptr, encode, check, decode, parts};

}  // namespace pqk
