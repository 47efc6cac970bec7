// `huffman` (HAM of Marino et al. 2020): u8 spare bits | length table | codes of all values, zeros included.
// Symbol s of the code is the value s - 128.
#include "core/codec.h"
#include "core/huffman.h"

namespace pqk {
namespace {

constexpr uint8_t kFlip = 0x80;  // value byte ^ 0x80 == value + 128

struct Header {
  HuffmanLengths lengths;
  ByteSpan stream;
  int spare_bits;
};

Header read_header(ByteSpan payload, int64_t count, const std::string& field) {
  ByteReader reader(payload, field);
  Header header;
  header.spare_bits = reader.u8("spare_bits");
  header.lengths = read_huffman_lengths(reader);
  header.stream = reader.take(reader.remaining(), "stream");
  check_huffman_stream(header.stream, header.spare_bits, count, field + ".stream");
  return header;
}

void check_empty(ByteSpan payload, const std::string& field) { check_end(ByteReader(payload, field)); }

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const int64_t count = shape.count;
  if (count == 0) return {};
  const HuffmanCounts counts = huffman_counts(reinterpret_cast<const uint8_t*>(values), count, kFlip);
  const HuffmanLengths lengths = huffman_lengths(counts);
  std::vector<uint8_t> out{0};
  out.reserve(1 + huffman_lengths_size(lengths) + huffman_bits(counts, lengths) / 8 + 8);
  write_huffman_lengths(lengths, out);
  out[0] = static_cast<uint8_t>(
      huffman_encode(lengths, reinterpret_cast<const uint8_t*>(values), count, kFlip, out));
  return out;
}

int64_t size(const SizeQuery& query) {
  if (query.shape.count == 0) return 0;
  const HuffmanLengths lengths = huffman_lengths(query.counts);
  const uint64_t bits = huffman_bits(query.counts, lengths);
  return 1 + huffman_lengths_size(lengths) + static_cast<int64_t>((bits + 7) / 8);
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count == 0) return check_empty(payload, field);
  read_header(payload, shape.count, field);
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  const int64_t count = shape.count;
  if (count == 0) return check_empty(payload, field);
  const Header header = read_header(payload, count, field);
  HuffmanDecoder(header.lengths, kFlip)
      .decode(header.stream, header.spare_bits, reinterpret_cast<uint8_t*>(output), count, field + ".stream");
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count == 0) return {};
  const int64_t stream = read_header(payload, shape.count, field).stream.size;
  return {.values = stream, .tables = payload.size - stream - 1, .header = 1};
}

}  // namespace

const WeightCodec kHuffmanCodec{"huffman", nullptr, encode, size, {0.6, 0}, check, decode, parts};

}  // namespace pqk
