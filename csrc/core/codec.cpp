#include "core/codec.h"

#include <algorithm>
#include <bit>

namespace pqk {
namespace {

std::vector<uint8_t> encode_raw(const int8_t* values, int64_t count) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(values);
  return {bytes, bytes + count};
}

void check_raw(ByteSpan payload, int64_t count, const std::string& field) {
  if (payload.size == count) return;
  throw FormatError("E_SIZE_MISMATCH", field, -1, std::to_string(count) + " bytes",
                    std::to_string(payload.size));
}

// Bitmask: bit i % 8 of byte i / 8 tells whether value i is non-zero; then those values.
int64_t mask_size(int64_t count) { return count / 8 + (count % 8 != 0); }

std::vector<uint8_t> encode_bitmask(const int8_t* values, int64_t count) {
  std::vector<uint8_t> out(mask_size(count));
  for (int64_t i = 0; i < count; ++i) out[i / 8] |= (values[i] != 0) << (i % 8);
  std::copy_if(values, values + count, std::back_inserter(out), [](int8_t value) { return value != 0; });
  return out;
}

void decode_bitmask(ByteSpan payload, int64_t count, int8_t* output, const std::string& field) {
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

}  // namespace

const std::vector<std::string>& codec_names() {
  static const std::vector<std::string> names{"raw", "bitmask", "csr", "huffman", "sparse-huffman"};
  return names;
}

Codec codec_by_name(const std::string& name, const std::string& field) {
  const auto& names = codec_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<Codec>(found - names.begin());
  std::string known;
  for (const std::string& each : names) known += (known.empty() ? "one of " : ", ") + each;
  throw FormatError("E_ENUM", field, -1, known, name);
}

std::vector<uint8_t> encode_weight(Codec codec, const int8_t* values, WeightShape shape) {
  switch (codec) {
    case Codec::kRaw:
      return encode_raw(values, shape.count);
    case Codec::kBitmask:
      return encode_bitmask(values, shape.count);
    case Codec::kCsr:
      return encode_csr(values, shape);
    case Codec::kHuffman:
      return encode_huffman(values, shape.count);
    case Codec::kSparseHuffman:
      break;
  }
  return encode_sparse_huffman(values, shape.count);
}

void check_weight_payload(Codec codec, ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count < 0 || shape.rows < 0 || (shape.rows == 0 ? shape.count : shape.count % shape.rows) != 0) {
    throw FormatError("E_SHAPE", field, -1, "a number of weights that rows divides",
                      std::to_string(shape.count) + " weights, " + std::to_string(shape.rows) + " rows");
  }
  if (codec == Codec::kRaw) check_raw(payload, shape.count, field);
  if (codec == Codec::kBitmask) ByteReader(payload, field).take(mask_size(shape.count), "mask");
  if (codec == Codec::kHuffman) check_huffman(payload, shape.count, field);
}

void decode_weight(Codec codec, ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field) {
  switch (codec) {
    case Codec::kRaw:
      check_raw(payload, shape.count, field);
      std::copy(payload.data, payload.data + payload.size, reinterpret_cast<uint8_t*>(output));
      return;
    case Codec::kBitmask:
      return decode_bitmask(payload, shape.count, output, field);
    case Codec::kCsr:
      return decode_csr(payload, shape, output, field);
    case Codec::kHuffman:
      return decode_huffman(payload, shape.count, output, field);
    case Codec::kSparseHuffman:
      return decode_sparse_huffman(payload, shape.count, output, field);
  }
}

PayloadParts payload_parts(Codec codec, ByteSpan payload, WeightShape shape, const std::string& field) {
  check_weight_payload(codec, payload, shape, field);
  switch (codec) {
    case Codec::kRaw:
      return {.values = payload.size};
    case Codec::kBitmask: {
      const int64_t mask = mask_size(shape.count);
      return {.values = payload.size - mask, .indices = mask};
    }
    case Codec::kCsr:
      return csr_parts(payload, shape, field);
    case Codec::kHuffman:
      return huffman_parts(payload, shape.count, field);
    case Codec::kSparseHuffman:
      break;
  }
  return sparse_huffman_parts(payload, shape.count, field);
}

void put_le(uint32_t value, int width, std::vector<uint8_t>& out) {
  for (int i = 0; i < width; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

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
