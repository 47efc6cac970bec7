// `sparse-huffman` (sHAM of Marino et al. 2020, with gaps for its row indices):
//   varint nnz | and, unless nnz is 0: varint tokens | varint bytes of the gap stream | u8 escape |
//   u8 spare bits (gap stream + 8 * value stream) | length table of gaps | length table of values | gap stream
//   | value stream
// A token below `escape` is the number of zeros before the next value; the token `escape` stands for that many
// zeros and no value. Zeros after the last value are not stored.
#include <algorithm>
#include <memory>
#include <numeric>

#include "core/codec.h"
#include "core/gap_tokens.h"
#include "core/huffman.h"

namespace pqk {
namespace {

constexpr uint8_t kFlip = 0x80;

struct GapCode {
  uint64_t bits = UINT64_MAX;  // of the stream and the table
  uint64_t tokens = 0;
  int escape = 0;
  HuffmanLengths lengths{};
};

GapCode gap_code(const std::vector<uint32_t>& gaps, int escape) {
  const HuffmanCounts counts = gap_token_counts(gaps, escape);
  GapCode code;
  code.escape = escape;
  code.lengths = huffman_lengths(counts);
  code.tokens = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  code.bits = huffman_bits(counts, code.lengths) + 8 * huffman_lengths_size(code.lengths);
  return code;
}

GapCode smallest_gap_code(const std::vector<uint32_t>& gaps) {
  GapCode best;
  for (const int escape : kGapEscapes) {
    GapCode code = gap_code(gaps, escape);
    if (code.bits < best.bits) best = code;
  }
  return best;
}

struct Header {
  int64_t size = 0;  // in bytes, up to the length tables
  int64_t nnz = 0, tokens = 0;
  int escape = 0;
  int gap_spare = 0, value_spare = 0;
  HuffmanLengths gap_lengths{}, value_lengths{};
  ByteSpan gaps{}, values{};
};

void check_alphabets(const Header& header, const std::string& field) {
  for (int s = header.escape + 1; s < kHuffmanSymbols; ++s) {
    if (header.gap_lengths[s] == 0) continue;
    throw FormatError("E_VALUE_RANGE", field + ".gaps", -1,
                      "tokens up to the escape, " + std::to_string(header.escape), std::to_string(s));
  }
  if (header.value_lengths[kFlip]) {
    throw FormatError("E_VALUE_RANGE", field + ".values", -1, "a code of non-zero values only", "a code for 0");
  }
}

Header read_header(ByteSpan payload, int64_t count, const std::string& field) {
  ByteReader reader(payload, field);
  Header header;
  header.nnz = reader.varint("nnz");
  if (header.nnz > count) {
    throw FormatError("E_CSR_NNZ", field + ".nnz", 0, "at most " + std::to_string(count) + " values",
                      std::to_string(header.nnz));
  }
  header.size = reader.offset();
  if (header.nnz == 0) {
    check_end(reader);
    return header;
  }
  header.tokens = reader.varint("tokens");
  const int64_t gap_bytes = reader.varint("gap_bytes");
  header.escape = reader.u8("escape");
  const int spare = reader.u8("spare_bits");
  header.gap_spare = spare % 8;
  header.value_spare = spare / 8;  // more than 7 is refused with the stream
  if (header.escape == 0 || header.tokens < header.nnz) {
    throw FormatError("E_VALUE_RANGE", field + ".tokens", -1,
                      "an escape above 0 and at least one token a value",
                      "escape " + std::to_string(header.escape) + ", " + std::to_string(header.tokens) +
                          " tokens for " + std::to_string(header.nnz) + " values");
  }
  header.size = reader.offset();
  ByteReader gap_table(payload, field + ".gaps");
  gap_table.take(reader.offset(), "lengths");
  header.gap_lengths = read_huffman_lengths(gap_table);
  ByteReader value_table(payload, field + ".values");
  value_table.take(gap_table.offset(), "lengths");
  header.value_lengths = read_huffman_lengths(value_table);
  reader.take(value_table.offset() - reader.offset(), "lengths");
  check_alphabets(header, field);
  header.gaps = reader.take(gap_bytes, "gaps.stream");
  header.values = reader.take(reader.remaining(), "values.stream");
  check_huffman_stream(header.gaps, header.gap_spare, header.tokens, field + ".gaps.stream");
  check_huffman_stream(header.values, header.value_spare, header.nnz, field + ".values.stream");
  return header;
}

using Bytes = std::unique_ptr<uint8_t[]>;

Bytes decode_stream(const HuffmanLengths& lengths, uint8_t flip, ByteSpan stream, int spare, int64_t count,
                    const std::string& field) {
  Bytes symbols(new uint8_t[count]);
  HuffmanDecoder(lengths, flip).decode(stream, spare, symbols.get(), count, field);
  return symbols;
}

// What encoding and the size of a payload need.
struct Plan {
  SparseSymbols symbols;
  GapCode gap_code;
  HuffmanCounts value_counts{};
  HuffmanLengths value_lengths{};
};

Plan make_plan(const int8_t* values, int64_t count) {
  Plan plan{sparse_symbols(values, count), {}, {}, {}};
  const auto& [gaps, nonzeros] = plan.symbols;
  plan.value_counts = huffman_counts(nonzeros.data(), std::ssize(nonzeros), kFlip);
  if (gaps.empty()) return plan;
  plan.gap_code = smallest_gap_code(gaps);
  plan.value_lengths = huffman_lengths(plan.value_counts, kFlip);
  return plan;
}

int64_t size(const SizeQuery& query) {
  if (query.nonzeros() == 0) return 1;
  if (query.gap_bound > query.limit || query.shape.count > UINT32_MAX) return INT64_MAX;
  const Plan plan = make_plan(query.values, query.shape.count);
  const uint64_t table_bits = 8 * static_cast<uint64_t>(huffman_lengths_size(plan.gap_code.lengths));
  const int64_t gap_bytes = static_cast<int64_t>((plan.gap_code.bits - table_bits + 7) / 8);
  const uint64_t value_bits = huffman_bits(plan.value_counts, plan.value_lengths);
  return varint_size(static_cast<uint32_t>(plan.symbols.gaps.size())) +
         varint_size(static_cast<uint32_t>(plan.gap_code.tokens)) +
         varint_size(static_cast<uint32_t>(gap_bytes)) + 2 + huffman_lengths_size(plan.gap_code.lengths) +
         huffman_lengths_size(plan.value_lengths) + gap_bytes + static_cast<int64_t>((value_bits + 7) / 8);
}

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const int64_t count = shape.count;
  const Plan plan = make_plan(values, count);
  const GapCode& code = plan.gap_code;
  if (count > UINT32_MAX || code.tokens > UINT32_MAX) {
    throw FormatError("E_LIMIT", "weight", -1, "fewer than 2^32 weights", std::to_string(count));
  }
  std::vector<uint8_t> out;
  const std::vector<uint8_t>& nonzeros = plan.symbols.nonzeros;
  put_varint(static_cast<uint32_t>(nonzeros.size()), out);
  if (nonzeros.empty()) return out;
  const std::vector<uint8_t> tokens = gap_tokens(plan.symbols.gaps, code.escape);
  std::vector<uint8_t> gap_stream, value_stream;
  const int gap_spare = huffman_encode(code.lengths, tokens.data(), tokens.size(), 0, gap_stream);
  const int value_spare =
      huffman_encode(plan.value_lengths, nonzeros.data(), nonzeros.size(), kFlip, value_stream);
  put_varint(static_cast<uint32_t>(tokens.size()), out);
  put_varint(static_cast<uint32_t>(gap_stream.size()), out);
  out.push_back(static_cast<uint8_t>(code.escape));
  out.push_back(static_cast<uint8_t>(gap_spare + 8 * value_spare));
  write_huffman_lengths(code.lengths, out);
  write_huffman_lengths(plan.value_lengths, out);
  out.insert(out.end(), gap_stream.begin(), gap_stream.end());
  out.insert(out.end(), value_stream.begin(), value_stream.end());
  return out;
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  read_header(payload, shape.count, field);
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  const int64_t count = shape.count;
  const Header header = read_header(payload, count, field);
  if (header.nnz == 0) {
    std::fill(output, output + count, int8_t{0});
    return;
  }
  const Bytes tokens = decode_stream(header.gap_lengths, 0, header.gaps, header.gap_spare, header.tokens,
                                     field + ".gaps.stream");
  const Bytes values = decode_stream(header.value_lengths, kFlip, header.values, header.value_spare, header.nnz,
                                     field + ".values.stream");
  place_values(tokens.get(), header.tokens, header.escape, values.get(), header.nnz, count, output, field);
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string& field) {
  const Header header = read_header(payload, shape.count, field);
  return {.values = header.values.size,
          .indices = header.gaps.size,
          .tables = payload.size - header.size - header.gaps.size - header.values.size,
          .header = header.size};
}

}  // namespace

const WeightCodec kSparseHuffmanCodec{"sparse-huffman", nullptr, encode, size,
                                      {0.2, 2.5},       check,   decode, parts};

}  // namespace pqk
