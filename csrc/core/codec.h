// How int8 weights lie in a file: five codecs over a flat array whose element count is known from elsewhere
// (FORMAT.md, "Codecs"). Encoders are deterministic. Decoders trust nothing: they throw FormatError for every
// payload that is not exactly one encoding of `count` values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/byte_reader.h"

namespace pqk {

enum class Codec { kRaw, kBitmask, kCsr, kHuffman, kSparseHuffman };

// In the order of the enumeration; the faster to decode comes first.
const std::vector<std::string>& codec_names();
// Throws E_ENUM, naming the known ones.
Codec codec_by_name(const std::string& name, const std::string& field);

// The array as a matrix: `rows` output channels of count / rows weights. Only `csr` depends on it.
struct WeightShape {
  int64_t count;
  int64_t rows;
};

// Throws FormatError E_LIMIT where the codec cannot hold so many weights.
std::vector<uint8_t> encode_weight(Codec codec, const int8_t* values, WeightShape shape);

// What can be told from the payload's size and header: to be called before the output is allocated. Refuses
// payloads that cannot hold `count` values (E_SIZE_MISMATCH, E_TRUNCATED, E_BOMB).
void check_weight_payload(Codec codec, ByteSpan payload, WeightShape shape, const std::string& field);
// Writes exactly shape.count values, or throws.
void decode_weight(Codec codec, ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field);

// What the bytes of a payload are for; together they are all of it.
struct PayloadParts {
  int64_t values = 0;   // weights themselves, or codes for them
  int64_t indices = 0;  // where the non-zero ones are: mask, gaps, rows and columns
  int64_t tables = 0;   // code lengths
  int64_t chunks = 0;   // where parts of the streams begin
  int64_t header = 0;   // counts, widths, spare bits
};

// Of a payload that decode_weight accepts; throws FormatError where the parts cannot be told apart.
PayloadParts payload_parts(Codec codec, ByteSpan payload, WeightShape shape, const std::string& field);

// One codec's part of the above, each in its own file.
std::vector<uint8_t> encode_csr(const int8_t* values, WeightShape shape);
void decode_csr(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field);
PayloadParts csr_parts(ByteSpan payload, WeightShape shape, const std::string& field);
std::vector<uint8_t> encode_huffman(const int8_t* values, int64_t count);
void check_huffman(ByteSpan payload, int64_t count, const std::string& field);
void decode_huffman(ByteSpan payload, int64_t count, int8_t* output, const std::string& field);
PayloadParts huffman_parts(ByteSpan payload, int64_t count, const std::string& field);
std::vector<uint8_t> encode_sparse_huffman(const int8_t* values, int64_t count);
void decode_sparse_huffman(ByteSpan payload, int64_t count, int8_t* output, const std::string& field);
PayloadParts sparse_huffman_parts(ByteSpan payload, int64_t count, const std::string& field);

void put_varint(uint32_t value, std::vector<uint8_t>& out);
void put_le(uint32_t value, int width, std::vector<uint8_t>& out);
// Throws E_SIZE_MISMATCH when bytes are left.
void check_end(const ByteReader& reader);
// Throws E_VALUE_RANGE when one of the values that should be non-zero is zero.
void check_nonzero(ByteSpan values, const std::string& field);

}  // namespace pqk
