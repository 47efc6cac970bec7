// `interleaved-sparse-huffman`: where values are and which they are, each in streams that are decoded side by
// side.
//   varint tokens | and, unless there are none: varint rows_per_chunk | u8 tail_blocks | u8 longest gap | code
//   table of gaps | code table of values | for each chunk: varint tokens, varint size of the gaps, varint size
//   of the values | for each chunk: gaps, values
// A token is a gap, which is a number of zeros, and the value behind it. The value is only 0 behind a longest
// gap, so that longer runs take several tokens. Zeros after the last value of a chunk are not stored.
#include <algorithm>
#include <cstring>

#include "core/codec.h"
#include "core/coded_tokens.h"
#include "core/interleaved_chunks.h"
#include "core/interleaved_huffman.h"
#include "core/interleaved_sparse.h"

namespace pqk {
namespace {

// Tokens decoded at once; with their values they stay in the first-level cache, as do as many weights.
constexpr int64_t kTileTokens = 8 * kInterleavedBlock;
constexpr int64_t kTileWeights = int64_t{1} << 14;

struct Chunk {
  int64_t tokens;
  ByteSpan gaps, values;
};

struct Header {
  ChunkRange range;
  int tail_blocks = 0, longest_gap = 0;
  InterleavedCode gap_code, value_code;
  std::vector<Chunk> chunks;  // none where there are no tokens
  PayloadParts parts;
};

void check_longest_gap(const Header& header, const std::string& field) {
  const InterleavedToken& last = header.gap_code.back();
  const int largest = last.base + (1 << last.extra) - 1;
  if (largest <= header.longest_gap) return;
  throw FormatError("E_VALUE_RANGE", field + ".gaps", -1, "gaps up to " + std::to_string(header.longest_gap),
                    std::to_string(largest));
}

void read_chunks(ByteReader& reader, int64_t tokens, Header& header) {
  constexpr int64_t kLeastEntry = 3;
  const int64_t chunks = header.range.chunks();
  const int64_t least = checked_mul(kLeastEntry, chunks, reader.field());
  if (least > reader.remaining()) reader.take(least, "chunks");
  struct Entry {
    int64_t tokens, gap_bytes, value_bytes;
  };
  std::vector<Entry> entries(chunks);
  const int64_t begin = reader.offset();
  int64_t total = 0;
  for (Entry& entry : entries) {
    entry = {reader.varint("chunks"), reader.varint("chunks"), reader.varint("chunks")};
    total += entry.tokens;
  }
  header.parts.chunks = reader.offset() - begin;
  if (total != tokens) {
    throw FormatError("E_CSR_NNZ", reader.field() + ".chunks", begin, std::to_string(tokens) + " tokens",
                      std::to_string(total));
  }
  for (int64_t c = 0; c < chunks; ++c) {
    const auto [count, gap_bytes, value_bytes] = entries[c];
    if (count > header.range.count(c)) {
      throw FormatError("E_CSR_NNZ", reader.field() + ".chunks", begin,
                        "at most " + std::to_string(header.range.count(c)) + " tokens in a chunk",
                        std::to_string(count));
    }
    const ByteSpan gaps = reader.take(gap_bytes, "gaps"), values = reader.take(value_bytes, "values");
    if (count == 0 && gap_bytes + value_bytes > 0) {
      throw FormatError("E_SIZE_MISMATCH", reader.field() + ".chunks", begin, "no bytes for no tokens",
                        std::to_string(gap_bytes + value_bytes));
    }
    check_interleaved_count(gaps, count, reader.field() + ".gaps");
    check_interleaved_count(values, count, reader.field() + ".values");
    header.chunks.push_back({count, gaps, values});
    header.parts.indices += gap_bytes;
    header.parts.values += value_bytes;
  }
}

Header read_header(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader reader(payload, field);
  Header header{{0, shape}, 0, 0, {}, {}, {}, {}};
  const int64_t tokens = reader.varint("tokens");
  header.parts.header = reader.offset();
  if (tokens > shape.count) {
    throw FormatError("E_CSR_NNZ", field + ".tokens", 0, "at most " + std::to_string(shape.count) + " tokens",
                      std::to_string(tokens));
  }
  if (tokens == 0) {
    check_end(reader);
    return header;
  }
  header.range.rows_per_chunk = read_rows_per_chunk(reader, shape);
  header.tail_blocks = read_tail_blocks(reader);
  header.longest_gap = reader.u8("longest_gap");
  header.parts.header = reader.offset();
  header.gap_code = read_interleaved_code(reader, "gaps");
  header.value_code = read_interleaved_code(reader, "values");
  header.parts.tables = reader.offset() - header.parts.header;
  check_longest_gap(header, field);
  read_chunks(reader, tokens, header);
  check_end(reader);
  return header;
}

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const SparseTokens tokens = sparse_tokens(values, shape);
  std::vector<uint8_t> out;
  put_chunk_size(tokens.gaps.size(), out);
  if (tokens.gaps.empty()) return out;
  if (shape.rows > UINT32_MAX) {
    throw FormatError("E_LIMIT", "weight", -1, "fewer than 2^32 rows", std::to_string(shape.rows));
  }
  const int64_t total = static_cast<int64_t>(tokens.gaps.size());
  const int tail_blocks = total < kLargeTensor
                              ? std::max(interleaved_tail_blocks(tokens.gap_code, tokens.gap_counts),
                                         interleaved_tail_blocks(tokens.value_code, tokens.value_counts))
                              : 0;
  put_varint(static_cast<uint32_t>(tokens.rows_per_chunk), out);
  out.push_back(static_cast<uint8_t>(tail_blocks));
  out.push_back(static_cast<uint8_t>(tokens.longest_gap));
  write_interleaved_code(tokens.gap_code, out);
  write_interleaved_code(tokens.value_code, out);
  std::vector<uint8_t> streams;
  int64_t begin = 0;
  for (const int64_t end : tokens.chunk_ends) {
    const size_t gaps_at = streams.size();
    interleaved_encode(tokens.gap_code, tokens.gaps.data() + begin, end - begin, 0, tail_blocks, streams);
    const size_t values_at = streams.size();
    interleaved_encode(tokens.value_code, tokens.values.data() + begin, end - begin, kInterleavedFlip,
                       tail_blocks, streams);
    put_chunk_size(static_cast<size_t>(end - begin), out);
    put_chunk_size(values_at - gaps_at, out);
    put_chunk_size(streams.size() - values_at, out);
    begin = end;
  }
  out.insert(out.end(), streams.begin(), streams.end());
  return out;
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  read_header(payload, shape, field);
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string& field) {
  return read_header(payload, shape, field).parts;
}

// One chunk's weights, in order.
class ChunkDecoder {
 public:
  ChunkDecoder(const Header& header, const InterleavedTable& gaps, const InterleavedTable& values,
               int64_t chunk, const std::string& field)
      : weights_left_(header.range.count(chunk)),
        tokens_left_(header.chunks[chunk].tokens),
        longest_gap_(static_cast<uint8_t>(header.longest_gap)),
        field_(field),
        gaps_(gaps, header.chunks[chunk].gaps, tokens_left_, header.tail_blocks, field + ".gaps"),
        values_(values, header.chunks[chunk].values, tokens_left_, header.tail_blocks, field + ".values") {}

  // The tokens themselves instead.
  WeightTokens tokens() {
    if (begin_ == end_ && tokens_left_ > 0) refill();
    const WeightTokens found{tile_gaps_.data() + begin_, tile_values_.data() + begin_, end_ - begin_};
    begin_ = end_;
    return found;
  }

  // The next `count` weights. Throws where tokens are left behind the chunk's last.
  void decode(int8_t* output, int64_t count) {
    while (count > 0) {
      const int64_t tile = std::min(count, kTileWeights);
      std::memset(output, 0, static_cast<size_t>(tile));
      scatter(output, tile);
      output += tile;
      count -= tile;
      weights_left_ -= tile;
    }
    if (weights_left_ > 0 || (begin_ == end_ && tokens_left_ == 0)) return;
    throw FormatError("E_CSR_INDEX", field_ + ".gaps", -1, "values at positions inside of the chunk",
                      std::to_string(end_ - begin_ + tokens_left_) + " more tokens");
  }

 private:
  void refill() {
    begin_ = 0;
    end_ = std::min(kTileTokens, tokens_left_);
    gaps_.decode(tile_gaps_.data(), end_);
    values_.decode(tile_values_.data(), end_);
    tokens_left_ -= end_;
    unsigned wrong = 0;
    for (int64_t t = 0; t < end_; ++t) wrong |= (tile_values_[t] == 0) & (tile_gaps_[t] != longest_gap_);
    if (wrong) {
      throw FormatError("E_VALUE_RANGE", field_ + ".values", -1, "a 0 only behind a longest gap", "another 0");
    }
    if (tokens_left_ > 0) return;
    if (tile_values_[end_ - 1] == 0) {
      throw FormatError("E_CSR_NNZ", field_ + ".values", -1, "a non-zero value at the end of a chunk", "a 0");
    }
    gaps_.check_end();
    values_.check_end();
  }

  // Into `count` zeros.
  void scatter(int8_t* output, int64_t count) {
    int64_t position = 0;
    while (begin_ < end_ || tokens_left_ > 0) {
      if (begin_ == end_) refill();
      position = scatter_groups(output, position, count);
      for (; begin_ < end_; ++begin_) {
        const int64_t gap = tile_gaps_[begin_];
        if (position + gap >= count) {
          // The rest of this gap is for the weights to come.
          tile_gaps_[begin_] = static_cast<uint8_t>(position + gap - count);
          return;
        }
        position += gap;
        output[position++] = static_cast<int8_t>(tile_values_[begin_]);
      }
    }
  }

  // As many groups of tokens as cannot reach the end.
  int64_t scatter_groups(int8_t* output, int64_t position, int64_t count) {
    constexpr int64_t kGroup = 16;
    const int64_t safe = count - kGroup * (longest_gap_ + 1);
    const uint8_t* const gaps = tile_gaps_.data();
    const uint8_t* const values = tile_values_.data();
    int64_t t = begin_;
    for (; t + kGroup <= end_ && position <= safe; t += kGroup) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kGroup; ++i) {
        position += gaps[t + i];
        output[position + i] = static_cast<int8_t>(values[t + i]);
      }
      position += kGroup;
    }
    begin_ = t;
    return position;
  }

  int64_t weights_left_;
  int64_t tokens_left_;  // that are not in the tile
  const uint8_t longest_gap_;
  const std::string& field_;
  InterleavedDecoder gaps_, values_;
  int64_t begin_ = 0, end_ = 0;  // of the tokens in the tile that are still to be placed
  std::array<uint8_t, kTileTokens> tile_gaps_, tile_values_;
};

class Coded final : public CodedWeight, public TokenSource {
 public:
  Coded(Header header, std::string field)
      : header_(std::move(header)),
        gaps_(header_.gap_code, 0),
        values_(header_.value_code, kInterleavedFlip),
        field_(std::move(field)) {}

  int64_t rows_per_chunk() const override { return header_.range.rows_per_chunk; }
  std::unique_ptr<RowCursor> open(int64_t chunk) const override {
    return std::make_unique<Cursor>(*this, chunk);
  }
  std::unique_ptr<TokenCursor> open_tokens(int64_t chunk) const override {
    return std::make_unique<Tokens>(*this, chunk);
  }
  int64_t chunks() const { return header_.range.chunks(); }
  void decode(int64_t chunk, int8_t* output) const {
    ChunkDecoder(header_, gaps_, values_, chunk, field_)
        .decode(output + header_.range.begin(chunk), header_.range.count(chunk));
  }

 private:
  class Cursor final : public RowCursor {
   public:
    Cursor(const Coded& coded, int64_t chunk)
        : row_size_(coded.header_.range.shape.row_size()),
          decoder_(coded.header_, coded.gaps_, coded.values_, chunk, coded.field_) {}
    void next(int64_t rows, int8_t* output) override { decoder_.decode(output, rows * row_size_); }

   private:
    const int64_t row_size_;
    ChunkDecoder decoder_;
  };
  class Tokens final : public TokenCursor {
   public:
    Tokens(const Coded& coded, int64_t chunk)
        : decoder_(coded.header_, coded.gaps_, coded.values_, chunk, coded.field_) {}
    WeightTokens next() override { return decoder_.tokens(); }

   private:
    ChunkDecoder decoder_;
  };

  const Header header_;
  const InterleavedTable gaps_, values_;
  const std::string field_;
};

// Of a weight without a non-zero value.
class Zeros final : public CodedWeight {
 public:
  explicit Zeros(WeightShape shape) : shape_(shape) {}
  int64_t rows_per_chunk() const override { return chunk_rows(shape_); }
  std::unique_ptr<RowCursor> open(int64_t) const override {
    return std::make_unique<Cursor>(shape_.row_size());
  }

 private:
  class Cursor final : public RowCursor {
   public:
    explicit Cursor(int64_t row_size) : row_size_(row_size) {}
    void next(int64_t rows, int8_t* output) override { std::fill_n(output, rows * row_size_, int8_t{0}); }

   private:
    const int64_t row_size_;
  };

  const WeightShape shape_;
};

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field,
            const Parallel& parallel) {
  Header header = read_header(payload, shape, field);
  if (header.chunks.empty()) {
    std::fill_n(output, shape.count, int8_t{0});
    return;
  }
  const Coded coded(std::move(header), field);
  for_each_chunk(coded.chunks(), parallel, [&](int64_t chunk) { coded.decode(chunk, output); });
}

std::unique_ptr<CodedWeight> open(ByteSpan payload, WeightShape shape, const std::string& field) {
  Header header = read_header(payload, shape, field);
  if (header.chunks.empty()) return std::make_unique<Zeros>(shape);
  return std::make_unique<Coded>(std::move(header), field);
}

}  // namespace

const WeightCodec kInterleavedSparseHuffmanCodec{"interleaved-sparse-huffman",
                                                 "interleaved-sparse-huffman",
                                                 encode,
                                                 sparse_size,
                                                 {0.03, 1.0},
                                                 check,
                                                 decode,
                                                 parts,
                                                 open};

}  // namespace pqk
