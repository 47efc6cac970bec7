// `interleaved-huffman` (HAM of Marino et al. 2020, in streams that are decoded side by side):
//   varint rows_per_chunk | u8 tail_blocks | code table | varint size of each chunk | chunks
// Symbol s of the code is the value s - 128.
#include <algorithm>

#include "core/codec.h"
#include "core/interleaved_chunks.h"
#include "core/interleaved_huffman.h"

namespace pqk {
namespace {

struct Header {
  ChunkRange range;
  int tail_blocks = 0;
  InterleavedCode code;
  std::vector<ByteSpan> chunks;
  PayloadParts parts;
};

// Also checks that each chunk can hold its values.
Header read_header(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader reader(payload, field);
  Header header{{read_rows_per_chunk(reader, shape), shape}, 0, {}, {}, {}};
  header.tail_blocks = read_tail_blocks(reader);
  header.parts.header = reader.offset();
  header.code = read_interleaved_code(reader, "streams");
  header.parts.tables = reader.offset() - header.parts.header;
  const int64_t chunks = header.range.chunks();
  if (chunks > reader.remaining()) reader.take(chunks, "chunks");
  std::vector<int64_t> sizes(chunks);
  for (int64_t& size : sizes) size = reader.varint("chunks");
  header.parts.chunks = reader.offset() - header.parts.header - header.parts.tables;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    header.chunks.push_back(reader.take(sizes[chunk], "streams"));
    check_interleaved_count(header.chunks.back(), header.range.count(chunk), field + ".streams");
    header.parts.values += sizes[chunk];
  }
  check_end(reader);
  return header;
}

void check_empty(ByteSpan payload, const std::string& field) { check_end(ByteReader(payload, field)); }

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  if (shape.count == 0) return {};
  if (shape.rows > UINT32_MAX) {
    throw FormatError("E_LIMIT", "weight", -1, "fewer than 2^32 rows", std::to_string(shape.rows));
  }
  const uint8_t* symbols = reinterpret_cast<const uint8_t*>(values);
  const HuffmanCounts counts = huffman_counts(symbols, shape.count, kInterleavedFlip);
  const InterleavedCode code = interleaved_code(counts);
  const ChunkRange range{choose_rows_per_chunk(shape, shape.count), shape};
  const int tail_blocks = shape.count < kLargeTensor ? interleaved_tail_blocks(code, counts) : 0;
  std::vector<uint8_t> out, streams;
  streams.reserve(interleaved_bits(counts, code) / 8 + 1024 * static_cast<size_t>(range.chunks() + 1));
  put_varint(static_cast<uint32_t>(range.rows_per_chunk), out);
  out.push_back(static_cast<uint8_t>(tail_blocks));
  write_interleaved_code(code, out);
  for (int64_t chunk = 0; chunk < range.chunks(); ++chunk) {
    const size_t begin = streams.size();
    interleaved_encode(code, symbols + range.begin(chunk), range.count(chunk), kInterleavedFlip, tail_blocks,
                       streams);
    put_chunk_size(streams.size() - begin, out);
  }
  out.insert(out.end(), streams.begin(), streams.end());
  return out;
}

int64_t size(const SizeQuery& query) {
  const WeightShape& shape = query.shape;
  if (shape.count == 0) return 0;
  const InterleavedCode code = interleaved_code(query.counts);
  const ChunkRange range{choose_rows_per_chunk(shape, shape.count), shape};
  const int64_t bytes = static_cast<int64_t>((interleaved_bits(query.counts, code) + 7) / 8);
  return varint_size(static_cast<uint32_t>(range.rows_per_chunk)) + 1 + interleaved_table_size(code) +
         chunks_size(range.chunks(), bytes, shape.count);
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count == 0) return check_empty(payload, field);
  read_header(payload, shape, field);
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field,
            const Parallel& parallel) {
  if (shape.count == 0) return check_empty(payload, field);
  const Header header = read_header(payload, shape, field);
  const InterleavedTable table(header.code, kInterleavedFlip);
  for_each_chunk(header.range.chunks(), parallel, [&](int64_t chunk) {
    const int64_t count = header.range.count(chunk);
    InterleavedDecoder decoder(table, header.chunks[chunk], count, header.tail_blocks, field + ".streams");
    decoder.decode(reinterpret_cast<uint8_t*>(output) + header.range.begin(chunk), count);
    decoder.check_end();
  });
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count == 0) return {};
  return read_header(payload, shape, field).parts;
}

class Cursor final : public RowCursor {
 public:
  Cursor(const Header& header, const InterleavedTable& table, int64_t chunk, const std::string& field)
      : row_size_(header.range.shape.row_size()),
        rows_left_(header.range.rows(chunk)),
        decoder_(table, header.chunks[chunk], header.range.count(chunk), header.tail_blocks, field) {}

  void next(int64_t rows, int8_t* output) override {
    decoder_.decode(reinterpret_cast<uint8_t*>(output), rows * row_size_);
    rows_left_ -= rows;
    if (rows_left_ == 0) decoder_.check_end();
  }

 private:
  const int64_t row_size_;
  int64_t rows_left_;
  InterleavedDecoder decoder_;
};

class Coded final : public CodedWeight {
 public:
  Coded(Header header, std::string field)
      : header_(std::move(header)), table_(header_.code, kInterleavedFlip), field_(std::move(field)) {}

  int64_t rows_per_chunk() const override { return header_.range.rows_per_chunk; }
  std::unique_ptr<RowCursor> open(int64_t chunk) const override {
    return std::make_unique<Cursor>(header_, table_, chunk, field_);
  }

 private:
  const Header header_;
  const InterleavedTable table_;
  const std::string field_;
};

std::unique_ptr<CodedWeight> open(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (shape.count > 0) return std::make_unique<Coded>(read_header(payload, shape, field), field + ".streams");
  check_empty(payload, field);
  return nullptr;
}

}  // namespace

const WeightCodec kInterleavedHuffmanCodec{
    "interleaved-huffman", "interleaved-huffman", encode, size, {0.12, 0}, check, decode, parts, open};

}  // namespace pqk
