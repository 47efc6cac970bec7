// `sparse-ans`: varint nnz | and, unless nnz is 0: varint tokens | u8 escape | u8 log2 of the number of states
// | table of gaps | table of values | states and words of `tokens` gaps, then of nnz values. Gaps are those of
// `sparse-huffman`: a token below `escape` is the number of zeros before the next value, `escape` stands for
// that many zeros and no value; zeros after the last value are not stored.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "core/ans.h"
#include "core/codec.h"
#include "core/gap_tokens.h"

namespace pqk {
namespace {

constexpr uint8_t kFlip = 0x80;

struct GapTable {
  double bits = INFINITY;
  int escape = 0;
  HuffmanCounts counts{};
  AnsTable table{};
};

GapTable smallest_gap_table(const std::vector<uint32_t>& gaps) {
  GapTable best;
  for (const int escape : kGapEscapes) {
    GapTable each{.escape = escape, .counts = gap_token_counts(gaps, escape)};
    each.table = ans_table(each.counts, -1, false);  // a mirror image would lie above the escape
    each.bits = ans_bits(each.counts, each.table.shares) + static_cast<double>(ans_table_bits(each.table));
    if (each.bits < best.bits) best = each;
  }
  return best;
}

struct Header {
  int64_t size = 0;  // in bytes, without tables and states
  int64_t tables = 0;
  int64_t nnz = 0, tokens = 0;
  int escape = 0, states_log2 = 0;
  AnsTable gaps, values;
};

void check_alphabets(const Header& header, const std::string& field) {
  const auto& used = header.gaps.shares;
  const auto above =
      std::find_if(used.begin() + header.escape + 1, used.end(), [](uint16_t share) { return share; });
  if (above != used.end()) {
    throw FormatError("E_VALUE_RANGE", field + ".gaps", -1,
                      "tokens up to the escape, " + std::to_string(header.escape),
                      std::to_string(above - used.begin()));
  }
  if (header.values.shares[kFlip]) {
    throw FormatError("E_VALUE_RANGE", field + ".values", -1, "shares of non-zero values only", "a share of 0");
  }
}

// Leaves the reader at the states; at the end if nnz is 0.
Header read_header(ByteReader& reader, int64_t count, const std::string& field) {
  Header header;
  header.nnz = reader.varint("nnz");
  if (header.nnz > count) {
    throw FormatError("E_CSR_NNZ", field + ".nnz", 0, "at most " + std::to_string(count) + " values",
                      std::to_string(header.nnz));
  }
  if (header.nnz > 0) {
    header.tokens = reader.varint("tokens");
    header.escape = reader.u8("escape");
    // Each token but those of values stands for `escape` zeros.
    if (header.escape == 0 || header.tokens < header.nnz ||
        (header.tokens - header.nnz) * header.escape > count - header.nnz) {
      throw FormatError("E_VALUE_RANGE", field + ".tokens", -1,
                        "an escape above 0, a token for each value, and no more than there are weights for",
                        "escape " + std::to_string(header.escape) + ", " + std::to_string(header.tokens) +
                            " tokens for " + std::to_string(header.nnz) + " values");
    }
    header.states_log2 = read_ans_states_log2(reader);
    header.size = reader.offset();
    header.gaps = read_ans_table(reader);
    header.values = read_ans_table(reader);
    header.tables = reader.offset() - header.size;
    check_alphabets(header, field);
  } else {
    header.size = reader.offset();
    check_end(reader);
  }
  return header;
}

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const SparseSymbols symbols = sparse_symbols(values, shape.count);
  std::vector<uint8_t> out;
  put_varint(static_cast<uint32_t>(symbols.nonzeros.size()), out);
  if (symbols.nonzeros.empty()) return out;
  const GapTable gaps = smallest_gap_table(symbols.gaps);
  const std::vector<uint8_t> tokens = gap_tokens(symbols.gaps, gaps.escape);
  if (shape.count > UINT32_MAX || tokens.size() > UINT32_MAX) {
    throw FormatError("E_LIMIT", "weight", -1, "fewer than 2^32 weights", std::to_string(shape.count));
  }
  const HuffmanCounts counts = huffman_counts(symbols.nonzeros.data(), std::ssize(symbols.nonzeros), kFlip);
  const AnsTable table = ans_table(counts, kFlip);
  const int states_log2 = ans_states_log2(gaps.bits + ans_bits(counts, table.shares));
  put_varint(static_cast<uint32_t>(tokens.size()), out);
  out.push_back(static_cast<uint8_t>(gaps.escape));
  out.push_back(static_cast<uint8_t>(states_log2));
  write_ans_table(gaps.table, out);
  write_ans_table(table, out);
  ans_encode({{gaps.table.shares, tokens.data(), std::ssize(tokens), 0},
              {table.shares, symbols.nonzeros.data(), std::ssize(symbols.nonzeros), kFlip}},
             states_log2, out);
  return out;
}

using Bytes = std::unique_ptr<uint8_t[]>;

// Decodes both runs, tokens first.
struct Streams {
  Bytes tokens, values;
  int64_t token_bytes;  // words that the tokens took
};

Streams decode_streams(const Header& header, ByteReader& reader) {
  AnsDecoder decoder(reader, header.states_log2);
  decoder.check_count(header.gaps.shares, header.tokens);
  decoder.check_count(header.values.shares, header.nnz);
  const int64_t bytes = decoder.remaining();
  Streams streams{Bytes(new uint8_t[header.tokens]), Bytes(new uint8_t[header.nnz]), 0};
  decoder.decode(header.gaps.shares, 0, streams.tokens.get(), header.tokens);
  streams.token_bytes = bytes - decoder.remaining();
  decoder.decode(header.values.shares, kFlip, streams.values.get(), header.nnz);
  decoder.finish();
  return streams;
}

int64_t size(const SizeQuery& query) {
  if (query.gap_bound > query.limit || query.shape.count > UINT32_MAX) return INT64_MAX;
  return std::ssize(encode(query.values, query.shape));
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader reader(payload, field);
  read_header(reader, shape.count, field);
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  ByteReader reader(payload, field);
  const Header header = read_header(reader, shape.count, field);
  if (header.nnz == 0) {
    std::fill(output, output + shape.count, int8_t{0});
    return;
  }
  const Streams streams = decode_streams(header, reader);
  place_values(streams.tokens.get(), header.tokens, header.escape, streams.values.get(), header.nnz,
               shape.count, output, field);
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader reader(payload, field);
  const Header header = read_header(reader, shape.count, field);
  if (header.nnz == 0) return {.header = payload.size};
  const int64_t words = reader.remaining() - (int64_t{4} << header.states_log2);
  const int64_t indices = decode_streams(header, reader).token_bytes;
  return {.values = words - indices + (int64_t{4} << header.states_log2),
          .indices = indices,
          .tables = header.tables,
          .header = header.size};
}

}  // namespace

const WeightCodec kSparseAnsCodec{"sparse-ans", "ans", encode, size, {0.2, 4}, check, decode, parts};

}  // namespace pqk
