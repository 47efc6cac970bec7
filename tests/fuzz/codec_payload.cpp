// Any bytes as the payload of any codec: an error with a name, or exactly `count` values, the same on every
// instruction set, that the codec can encode again.
#include "core/codec.h"
#include "fuzz.h"

namespace pqk::fuzz {
namespace {

// What the payload is said to hold: small, or beyond everything.
WeightShape read_shape(Bytes& bytes) {
  if (bytes.range(0, 15) == 15) {
    const int64_t count = bytes.i64();
    return {count, bytes.i64()};
  }
  const int64_t rows = bytes.range(0, 40);
  return {rows * bytes.range(0, rows > 8 ? 40 : 600), rows};
}

constexpr int64_t kMostValues = 1 << 16;

// True with the values in `output`.
bool decodes(const WeightCodec& codec, const Exact<uint8_t>& payload, WeightShape shape,
             Exact<int8_t>& output) {
  try {
    codec.decode(payload.span(), shape, output.data(), "weight", Backwards());
    return true;
  } catch (const FormatError& error) {
    require_named(error);
    return false;
  }
}

// Row by row, as products with coded weights read them: the values of decode, or an error with a name.
void try_rows(const WeightCodec& codec, const Exact<uint8_t>& payload, WeightShape shape,
              const Exact<int8_t>& values, bool accepted, int64_t at_once) {
  if (codec.open == nullptr) return;
  try {
    const std::unique_ptr<CodedWeight> coded = codec.open(payload.span(), shape, "weight");
    if (coded == nullptr) return require(shape.count == 0, "rows that can be opened of", codec.name);
    const int64_t rows_per_chunk = coded->rows_per_chunk();
    for (int64_t first = 0, chunk = 0; first < shape.rows; first += rows_per_chunk, ++chunk) {
      const std::unique_ptr<RowCursor> cursor = coded->open(chunk);
      const int64_t end = std::min(first + rows_per_chunk, shape.rows);
      for (int64_t row = first; row < end; row += at_once) {
        const int64_t rows = std::min(at_once, end - row);
        Exact<int8_t> output(rows * shape.row_size());
        cursor->next(rows, output.data());
        require(!accepted || std::equal(output.data(), output.data() + output.size(),
                                        values.data() + row * shape.row_size()),
                "the rows of", codec.name);
      }
    }
  } catch (const FormatError& error) {
    require_named(error);
    require(!accepted, "rows of a payload that decodes", error.what());
  }
}

void try_parts(const WeightCodec& codec, const Exact<uint8_t>& payload, WeightShape shape) {
  const PayloadParts parts = codec.parts(payload.span(), shape, "weight");
  require(parts.values + parts.indices + parts.tables + parts.chunks + parts.header == payload.size(),
          "parts that are the whole payload of", codec.name);
}

}  // namespace
}  // namespace pqk::fuzz

PQK_FUZZ_TARGET(codec_payload) {
  const WeightCodec& codec = bytes.pick(weight_codecs());
  const int64_t at_once = bytes.range(1, 5);
  const WeightShape shape = read_shape(bytes);
  const Exact<uint8_t> payload = bytes.rest();
  try {
    check_weight_shape(shape, "weight");
    codec.check(payload.span(), shape, "weight");
  } catch (const FormatError& error) {
    require_named(error);
    return;
  }
  if (shape.count > kMostValues || shape.rows > kMostValues) return;
  Exact<int8_t> first(shape.count);
  bool accepted = false;
  for (const Isa isa : isas()) {
    const WithIsa with(isa);
    Exact<int8_t> output(shape.count);
    const bool decoded = decodes(codec, payload, shape, output);
    if (isa == Isa::kBaseline) {
      accepted = decoded;
      first = std::move(output);
    } else {
      require(decoded == accepted && (!decoded || output == first), "the same values on", isa_name(isa));
    }
    try_rows(codec, payload, shape, first, accepted, at_once);
  }
  if (!accepted) return;
  try_parts(codec, payload, shape);
  if (at_once > 1) return;  // encoders take their time
  const std::vector<uint8_t> again = codec.encode(first.data(), shape);
  Exact<int8_t> output(shape.count);
  require(decodes(codec, Exact<uint8_t>(again.data(), static_cast<int64_t>(again.size())), shape, output) &&
              output == first,
          "the values after encoding them again");
}
