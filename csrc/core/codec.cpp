#include "core/codec.h"

#include <algorithm>

namespace pqk {

const std::vector<WeightCodec>& weight_codecs() {
  static const std::vector<WeightCodec> codecs{kRawCodec,
                                               kBitmaskCodec,
                                               kCsrCodec,
                                               kHuffmanCodec,
                                               kSparseHuffmanCodec,
                                               kPackedCodec,
                                               kInterleavedHuffmanCodec,
                                               kInterleavedSparseHuffmanCodec,
                                               kAnsCodec,
                                               kSparseAnsCodec};
  return codecs;
}

const WeightCodec& weight_codec(const std::string& name, const std::string& field) {
  std::string known;
  for (const WeightCodec& codec : weight_codecs()) {
    if (name == codec.name) return codec;
    known.append(known.empty() ? "one of " : ", ").append(codec.name);
  }
  throw FormatError("E_ENUM", field, -1, known, name);
}

void check_weight_shape(WeightShape shape, const std::string& field) {
  if (shape.count >= 0 && shape.rows >= 0 && (shape.rows == 0 ? shape.count : shape.count % shape.rows) == 0) {
    return;
  }
  throw FormatError("E_SHAPE", field, -1, "a number of weights that rows divides",
                    std::to_string(shape.count) + " weights, " + std::to_string(shape.rows) + " rows");
}

void put_le(uint32_t value, int width, std::vector<uint8_t>& out) {
  for (int i = 0; i < width; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

int64_t varint_size(uint32_t value) { return value < 0x80 ? 1 : 1 + varint_size(value >> 7); }

void put_varint(uint32_t value, std::vector<uint8_t>& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<uint8_t>(value | 0x80));
  out.push_back(static_cast<uint8_t>(value));
}

void check_end(const ByteReader& reader) {
  if (reader.remaining() == 0) return;
  throw FormatError("E_SIZE_MISMATCH", reader.field(), reader.offset(),
                    std::to_string(reader.offset()) + " bytes",
                    std::to_string(reader.offset() + reader.remaining()));
}

void check_nonzero(ByteSpan values, const std::string& field) {
  const uint8_t* end = values.data + values.size;
  const uint8_t* zero = std::find(values.data, end, uint8_t{0});
  if (zero == end) return;
  throw FormatError("E_VALUE_RANGE", field + ".values", zero - values.data, "only non-zero values", "a 0");
}

}  // namespace pqk
