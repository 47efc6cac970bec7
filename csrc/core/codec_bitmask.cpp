// `bitmask`: bit i % 8 of byte i / 8 tells whether value i is non-zero; then those values.
#include <algorithm>
#include <bit>

#include "core/codec.h"

namespace pqk {
namespace {

int64_t mask_size(int64_t count) { return count / 8 + (count % 8 != 0); }

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const int64_t count = shape.count;
  std::vector<uint8_t> out(mask_size(count));
  for (int64_t i = 0; i < count; ++i) out[i / 8] |= (values[i] != 0) << (i % 8);
  std::copy_if(values, values + count, std::back_inserter(out), [](int8_t value) { return value != 0; });
  return out;
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader(payload, field).take(mask_size(shape.count), "mask");
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  const int64_t count = shape.count;
  ByteReader reader(payload, field);
  const ByteSpan mask = reader.take(mask_size(count), "mask");
  if (count % 8 && mask.data[mask.size - 1] >> (count % 8)) {
    throw FormatError("E_PADDING", field + ".mask", mask.size - 1, "spare bits of 0", "a 1");
  }
  int64_t nnz = 0;
  for (int64_t i = 0; i < mask.size; ++i) nnz += std::popcount(mask.data[i]);
  const ByteSpan values = reader.take(nnz, "values");
  check_end(reader);
  check_nonzero(values, field);
  const uint8_t* next = values.data;
  for (int64_t i = 0; i < count; ++i) {
    const bool set = mask.data[i / 8] >> (i % 8) & 1;
    output[i] = set ? static_cast<int8_t>(*next++) : int8_t{0};
  }
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string&) {
  const int64_t mask = mask_size(shape.count);
  return {.values = payload.size - mask, .indices = mask};
}

}  // namespace

const WeightCodec kBitmaskCodec{"bitmask", nullptr, encode, check, decode, parts};

}  // namespace pqk
