// `ans`: u8 log2 of the number of states | table of shares | states and words of all values, zeros included.
// Symbol s is the value s - 128. Nothing if there is no value.
#include "core/ans.h"
#include "core/codec.h"

namespace pqk {
namespace {

constexpr uint8_t kFlip = 0x80;  // value byte ^ 0x80 == value + 128

struct Opened {
  AnsTable table;
  AnsDecoder decoder;
  int64_t table_size;
  int64_t states_size;
};

Opened open(ByteSpan payload, int64_t count, const std::string& field) {
  ByteReader reader(payload, field);
  const int states_log2 = read_ans_states_log2(reader);
  AnsTable table = read_ans_table(reader);
  const int64_t table_size = reader.offset() - 1;
  AnsDecoder decoder(reader, states_log2);
  decoder.check_count(table.shares, count);
  return {std::move(table), std::move(decoder), table_size, int64_t{4} << states_log2};
}

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  if (shape.count == 0) return {};
  const uint8_t* symbols = reinterpret_cast<const uint8_t*>(values);
  const HuffmanCounts counts = huffman_counts(symbols, shape.count, kFlip);
  const AnsTable table = ans_table(counts);
  const int states_log2 = ans_states_log2(ans_bits(counts, table.shares));
  std::vector<uint8_t> out{static_cast<uint8_t>(states_log2)};
  write_ans_table(table, out);
  ans_encode({{table.shares, symbols, shape.count, kFlip}}, states_log2, out);
  return out;
}

int64_t size(const SizeQuery& query) {
  if (query.shape.count == 0) return 0;
  const AnsTable table = ans_table(query.counts);
  const double bits = static_cast<double>(ans_bits(query.counts, table.shares));
  std::vector<uint8_t> header{0};
  write_ans_table(table, header);
  return std::ssize(header) + (int64_t{4} << ans_states_log2(ans_bits(query.counts, table.shares))) +
         static_cast<int64_t>(bits / 8);
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count == 0) return check_end(ByteReader(payload, field));
  open(payload, shape.count, field);
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  if (shape.count == 0) return check_end(ByteReader(payload, field));
  Opened opened = open(payload, shape.count, field);
  opened.decoder.decode(opened.table.shares, kFlip, reinterpret_cast<uint8_t*>(output), shape.count);
  opened.decoder.finish();
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count == 0) return {};
  const Opened opened = open(payload, shape.count, field);
  return {.values = opened.decoder.remaining() + opened.states_size, .tables = opened.table_size, .header = 1};
}

}  // namespace

const WeightCodec kAnsCodec{"ans", "ans", encode, size, {1, 0}, check, decode, parts};

}  // namespace pqk
