// Any int8 array through every codec and back, on every instruction set; and the payload with one bit wrong.
#include "core/codec.h"
#include "fuzz.h"

namespace pqk::fuzz {
namespace {

Exact<int8_t> read_values(Bytes& bytes) {
  if (bytes.flag()) {
    const Exact<uint8_t> rest = bytes.rest();
    return {reinterpret_cast<const int8_t*>(rest.data()), rest.size()};
  }
  const int64_t count = bytes.range(0, bytes.range(0, 15) == 0 ? 40'000 : 600);
  const int64_t percent = bytes.range(0, 100), spread = bytes.range(0, bytes.range(0, 7) == 0 ? 127 : 7);
  Exact<int8_t> values(count);
  Random(bytes.number(2)).codes(values.data(), count, percent, spread);
  return values;
}

void expect_values(const WeightCodec& codec, const Exact<uint8_t>& payload, WeightShape shape,
                   const Exact<int8_t>& values) {
  for (const Isa isa : isas()) {
    const WithIsa with(isa);
    codec.check(payload.span(), shape, "weight");
    Exact<int8_t> output(shape.count);
    codec.decode(payload.span(), shape, output.data(), "weight", Backwards());
    require(output == values, "the values that were encoded, on", isa_name(isa));
  }
}

void try_damaged(const WeightCodec& codec, const Exact<uint8_t>& right, WeightShape shape, uint64_t bit) {
  if (right.size() == 0) return;
  Exact<uint8_t> payload(right.data(), right.size());
  bit %= static_cast<uint64_t>(payload.size()) * 8;
  payload[static_cast<int64_t>(bit / 8)] ^= static_cast<uint8_t>(1 << bit % 8);
  try {
    codec.check(payload.span(), shape, "weight");
    Exact<int8_t> output(shape.count);
    codec.decode(payload.span(), shape, output.data(), "weight", Backwards());
  } catch (const FormatError& error) {
    require_named(error);
  }
}

// The codec that the writer would take: of all, or of those that are not much longer than the shortest.
void expect_chosen(const Exact<int8_t>& values, WeightShape shape) {
  for (const double tolerance : {0.0, 0.02}) {
    const WeightCodec& codec = choose_weight_codec(values.data(), shape, tolerance);
    const std::vector<uint8_t> encoded = codec.encode(values.data(), shape);
    expect_values(codec, {encoded.data(), static_cast<int64_t>(encoded.size())}, shape, values);
  }
}

}  // namespace
}  // namespace pqk::fuzz

PQK_FUZZ_TARGET(round_trip) {
  const int64_t wanted_rows = bytes.range(1, 64);
  const uint64_t bit = bytes.number(2);
  const size_t first = bytes.u8(), codecs = bytes.range(0, 15) ? 1 : weight_codecs().size();
  const Exact<int8_t> values = read_values(bytes);
  const int64_t count = values.size();
  const WeightShape shape{count, count % wanted_rows == 0 ? wanted_rows : 1};
  if (codecs > 1) expect_chosen(values, shape);
  for (size_t i = 0; i < codecs; ++i) {
    const WeightCodec& codec = weight_codecs()[(first + i) % weight_codecs().size()];
    const std::vector<uint8_t> encoded = codec.encode(values.data(), shape);
    const Exact<uint8_t> payload(encoded.data(), static_cast<int64_t>(encoded.size()));
    expect_values(codec, payload, shape, values);
    try_damaged(codec, payload, shape, bit);
  }
}
