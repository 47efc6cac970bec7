// How int8 weights lie in a file: codecs over a flat array whose element count is known from elsewhere
// (FORMAT.md, "Codecs"). A codec is a line in weight_codecs() and a file of its own. Encoders are
// deterministic. Decoders trust nothing: they throw FormatError for every payload that is not exactly one
// encoding of `count` values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/byte_reader.h"
#include "core/huffman.h"
#include "core/parallel.h"

namespace pqk {

// The array as a matrix: `rows` output channels of count / rows weights.
struct WeightShape {
  int64_t count;
  int64_t rows;

  int64_t row_size() const { return rows ? count / rows : 0; }
};

// Decodes the rows of one chunk, in their order.
class RowCursor {
 public:
  virtual ~RowCursor() = default;
  // Writes the next `rows` rows; no more may be asked for than the chunk has left.
  virtual void next(int64_t rows, int8_t* output) = 0;
};

// A checked payload that stays as it is and is decoded again whenever it is used, a few rows at a time. Chunks
// of `rows_per_chunk` rows (the last one may have fewer) do not depend on each other; several threads may have
// cursors. The payload's bytes must outlive it.
class CodedWeight {
 public:
  virtual ~CodedWeight() = default;
  virtual int64_t rows_per_chunk() const = 0;
  virtual std::unique_ptr<RowCursor> open(int64_t chunk) const = 0;
};

// Chunks of whole rows, of about 16 Ki weights, for codecs that may choose them.
inline int64_t chunk_rows(WeightShape shape) {
  return std::max<int64_t>(1, (int64_t{16} << 10) / std::max<int64_t>(1, shape.row_size()));
}

// What the bytes of a payload are for; together they are all of it.
struct PayloadParts {
  int64_t values = 0;   // weights themselves, or codes for them
  int64_t indices = 0;  // where the non-zero ones are: mask, gaps, rows and columns
  int64_t tables = 0;   // code lengths
  int64_t chunks = 0;   // where parts of the streams begin
  int64_t header = 0;   // counts, widths, spare bits
};

// What the size of a payload can be computed from without encoding. `limit`: where the payload is certainly
// longer, any number above it will do. Codecs that cannot hold the values at all say INT64_MAX.
struct SizeQuery {
  const int8_t* values;
  WeightShape shape;
  const HuffmanCounts& counts;  // of value + 128
  int64_t gap_bound;  // no coding of the gaps between non-zero values, and of those values, is shorter
  int64_t limit;

  int64_t nonzeros() const { return shape.count - static_cast<int64_t>(counts[128]); }
};

// Nanoseconds of one thread, measured with AVX-512 at 3.7 GHz: to rank codecs by, not to predict times.
struct DecodeCost {
  double weight;
  double nonzero;  // more for each value that is not 0
};

struct WeightCodec {
  const char* name;     // in files
  const char* feature;  // what files that use it require (FORMAT.md, "Versions"); null for those of version 1.0
  // Throws FormatError E_LIMIT where the codec cannot hold so many weights.
  std::vector<uint8_t> (*encode)(const int8_t* values, WeightShape shape);
  // Length of that payload; within 0.2 % for interleaved streams, which depend on the order of values.
  int64_t (*size)(const SizeQuery& query);
  DecodeCost cost;
  // What can be told from the payload's size and header: to be called before the output is allocated. Refuses
  // payloads that cannot hold `count` values (E_SIZE_MISMATCH, E_TRUNCATED, E_BOMB).
  void (*check)(ByteSpan payload, WeightShape shape, const std::string& field);
  // Writes exactly shape.count values, or throws.
  void (*decode)(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field,
                 const Parallel& parallel);
  // Of a payload that decode accepts; throws FormatError where the parts cannot be told apart.
  PayloadParts (*parts)(ByteSpan payload, WeightShape shape, const std::string& field);
  // Null where rows cannot be decoded by themselves.
  std::unique_ptr<CodedWeight> (*open)(ByteSpan payload, WeightShape shape, const std::string& field) = nullptr;
};

// All of them.
const std::vector<WeightCodec>& weight_codecs();
// Throws E_ENUM, naming the known ones.
const WeightCodec& weight_codec(const std::string& name, const std::string& field);
// Of the codecs whose payload is at most `speed_tolerance` (0.01: 1 %) longer than the shortest, the fastest to
// decode.
const WeightCodec& choose_weight_codec(const int8_t* values, WeightShape shape, double speed_tolerance);
// Throws E_SHAPE unless rows divides count.
void check_weight_shape(WeightShape shape, const std::string& field);

// Each in its own file.
extern const WeightCodec kRawCodec, kBitmaskCodec, kCsrCodec, kHuffmanCodec, kSparseHuffmanCodec, kPackedCodec,
    kInterleavedHuffmanCodec, kInterleavedSparseHuffmanCodec, kAnsCodec, kSparseAnsCodec;

void put_varint(uint32_t value, std::vector<uint8_t>& out);
int64_t varint_size(uint32_t value);
void put_le(uint32_t value, int width, std::vector<uint8_t>& out);
// Throws E_SIZE_MISMATCH when bytes are left.
void check_end(const ByteReader& reader);
// Throws E_VALUE_RANGE when one of the values that should be non-zero is zero.
void check_nonzero(ByteSpan values, const std::string& field);

}  // namespace pqk
