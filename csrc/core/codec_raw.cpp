// `raw`: the values.
#include <algorithm>
#include <cstring>

#include "core/codec.h"

namespace pqk {
namespace {

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(values);
  return {bytes, bytes + shape.count};
}

int64_t size(const SizeQuery& query) { return query.shape.count; }

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  if (payload.size == shape.count) return;
  throw FormatError("E_SIZE_MISMATCH", field, -1, std::to_string(shape.count) + " bytes",
                    std::to_string(payload.size));
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  check(payload, shape, field);
  std::copy(payload.data, payload.data + payload.size, reinterpret_cast<uint8_t*>(output));
}

PayloadParts parts(ByteSpan payload, WeightShape, const std::string&) { return {.values = payload.size}; }

class RawWeight final : public CodedWeight {
 public:
  RawWeight(ByteSpan payload, WeightShape shape) : payload_(payload), shape_(shape) {}
  int64_t rows_per_chunk() const override { return chunk_rows(shape_); }
  std::unique_ptr<RowCursor> open(int64_t chunk) const override {
    return std::make_unique<Cursor>(payload_.data + chunk * rows_per_chunk() * shape_.row_size(),
                                    shape_.row_size());
  }

 private:
  class Cursor final : public RowCursor {
   public:
    Cursor(const uint8_t* next, int64_t row_size) : next_(next), row_size_(row_size) {}
    void next(int64_t rows, int8_t* output) override {
      std::memcpy(output, next_, static_cast<size_t>(rows * row_size_));
      next_ += rows * row_size_;
    }

   private:
    const uint8_t* next_;
    int64_t row_size_;
  };

  ByteSpan payload_;
  WeightShape shape_;
};

std::unique_ptr<CodedWeight> open(ByteSpan payload, WeightShape shape, const std::string& field) {
  check(payload, shape, field);
  return std::make_unique<RawWeight>(payload, shape);
}

}  // namespace

const WeightCodec kRawCodec{"raw", nullptr, encode, size, {0.02, 0}, check, decode, parts, open};

}  // namespace pqk
