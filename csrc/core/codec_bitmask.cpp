// `bitmask`: bit i % 8 of byte i / 8 tells whether value i is non-zero; then those values.
#include <algorithm>
#include <bit>

#include "core/codec.h"

namespace pqk {
namespace {

int64_t mask_size(int64_t count) { return count / 8 + (count % 8 != 0); }

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const int64_t count = shape.count;
  std::vector<uint8_t> out(mask_size(count));
  for (int64_t i = 0; i < count; ++i) out[i / 8] |= (values[i] != 0) << (i % 8);
  std::copy_if(values, values + count, std::back_inserter(out), [](int8_t value) { return value != 0; });
  return out;
}

int64_t size(const SizeQuery& query) { return mask_size(query.shape.count) + query.nonzeros(); }

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader(payload, field).take(mask_size(shape.count), "mask");
}

struct Parsed {
  ByteSpan mask, values;
};

Parsed parse(ByteSpan payload, WeightShape shape, const std::string& field) {
  const int64_t count = shape.count;
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
  return {mask, values};
}

// Weights [begin, end); `values` are those from `begin` on. Returns the values that follow.
const uint8_t* expand(const uint8_t* mask, const uint8_t* values, int64_t begin, int64_t end, int8_t* output) {
  // No branch, which could not be predicted; the byte before the first value is the mask's.
  const auto put = [&](unsigned bits, int place) {
    const int set = bits >> place & 1;
    *output++ = static_cast<int8_t>(values[set - 1] & -set);
    values += set;
  };
  int64_t i = begin;
  for (; i < end && i % 8 != 0; ++i) put(mask[i / 8], static_cast<int>(i % 8));
  for (; i + 8 <= end; i += 8) {
    const unsigned bits = mask[i / 8];
    for (int place = 0; place < 8; ++place) put(bits, place);
  }
  for (; i < end; ++i) put(mask[i / 8], static_cast<int>(i % 8));
  return values;
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  const Parsed parsed = parse(payload, shape, field);
  expand(parsed.mask.data, parsed.values.data, 0, shape.count, output);
}

class BitmaskWeight final : public CodedWeight {
 public:
  BitmaskWeight(const Parsed& parsed, WeightShape shape) : parsed_(parsed), shape_(shape) {
    const int64_t chunk = rows_per_chunk() * shape.row_size();
    int64_t nnz = 0;
    for (int64_t i = 0; i < shape.count; ++i) {
      if (i % chunk == 0) before_.push_back(nnz);
      nnz += parsed.mask.data[i / 8] >> (i % 8) & 1;
    }
  }
  int64_t rows_per_chunk() const override { return chunk_rows(shape_); }
  std::unique_ptr<RowCursor> open(int64_t chunk) const override {
    return std::make_unique<Cursor>(*this, chunk);
  }

 private:
  class Cursor final : public RowCursor {
   public:
    Cursor(const BitmaskWeight& weight, int64_t chunk)
        : mask_(weight.parsed_.mask.data),
          values_(weight.parsed_.values.data + weight.nonzeros_before(chunk)),
          row_size_(weight.shape_.row_size()),
          begin_(chunk * weight.rows_per_chunk() * row_size_) {}
    void next(int64_t rows, int8_t* output) override {
      values_ = expand(mask_, values_, begin_, begin_ + rows * row_size_, output);
      begin_ += rows * row_size_;
    }

   private:
    const uint8_t *mask_, *values_;
    int64_t row_size_, begin_;
  };

  int64_t nonzeros_before(int64_t chunk) const {
    return before_.empty() ? 0 : before_[static_cast<size_t>(chunk)];  // rows may hold nothing
  }

  Parsed parsed_;
  WeightShape shape_;
  std::vector<int64_t> before_;  // non-zero weights before each chunk
};

std::unique_ptr<CodedWeight> open(ByteSpan payload, WeightShape shape, const std::string& field) {
  return std::make_unique<BitmaskWeight>(parse(payload, shape, field), shape);
}

PayloadParts parts(ByteSpan payload, WeightShape shape, const std::string&) {
  const int64_t mask = mask_size(shape.count);
  return {.values = payload.size - mask, .indices = mask};
}

}  // namespace

const WeightCodec kBitmaskCodec{"bitmask", nullptr, encode, size, {1.1, 1}, check, decode, parts, open};

}  // namespace pqk
