// `packed`: u8 bits (1..8) | the values as two's complement numbers of so many bits, the first in the least
// significant bits of the first byte.
#include <algorithm>
#include <cstring>

#include "core/codec.h"
#include "core/packed.h"

namespace pqk {
namespace {

constexpr int kGroup = 8;  // values that take a whole number of bytes
constexpr int64_t kWindow = 8;

int64_t packed_size(int64_t count, int bits) { return count / 8 * bits + (count % 8 * bits + 7) / 8; }

// Bits that hold a value and those of smaller magnitude.
int bits_of(const int8_t* values, int64_t count) {
  int used = 0;  // the value, or ~value of a negative one: what there is besides the sign
  for (int64_t i = 0; i < count; ++i) used |= values[i] ^ (values[i] >> 7);
  int bits = 1;
  while (used >> (bits - 1)) ++bits;
  return bits;
}

// Values that begin at a whole byte. All bytes of `packed` may be read.
void unpack(ByteSpan packed, int bits, int8_t* output, int64_t count) {
  if (bits == 8) {
    std::memcpy(output, packed.data, static_cast<size_t>(count));
    return;
  }
  const int64_t readable = packed.size < kWindow ? 0 : (packed.size - kWindow) / bits + 1;
  const int64_t groups = std::min(count / kGroup, readable);
  active_unpack_kernel()(packed.data, bits, groups, output);
  for (int64_t i = groups * kGroup; i < count; ++i) {
    const int64_t bit = i * bits, byte = bit / 8;
    const uint32_t next = byte + 1 < packed.size ? packed.data[byte + 1] : 0u;
    const uint32_t window = (packed.data[byte] | next << 8) >> (bit % 8);
    output[i] = static_cast<int8_t>(static_cast<int8_t>(window << (8 - bits)) >> (8 - bits));
  }
}

struct Header {
  int bits;
  ByteSpan values;
};

Header read_header(ByteSpan payload, WeightShape shape, const std::string& field) {
  ByteReader reader(payload, field);
  const int bits = reader.u8("bits");
  if (bits < 1 || bits > 8) {
    throw FormatError("E_SIZE_MISMATCH", field + ".bits", 0, "1 to 8 bits", std::to_string(bits));
  }
  const Header header{bits, reader.take(packed_size(shape.count, bits), "values")};
  check_end(reader);
  const int used = static_cast<int>(shape.count % 8 * bits % 8);
  if (used && header.values.data[header.values.size - 1] >> used) {
    throw FormatError("E_PADDING", field + ".values", header.values.size - 1, "spare bits of 0", "a 1");
  }
  return header;
}

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const int bits = bits_of(values, shape.count);
  std::vector<uint8_t> out{static_cast<uint8_t>(bits)};
  out.reserve(static_cast<size_t>(1 + packed_size(shape.count, bits)));
  const uint32_t field = (1u << bits) - 1;
  uint32_t held = 0;
  int held_bits = 0;
  for (int64_t i = 0; i < shape.count; ++i) {
    held |= (static_cast<uint32_t>(values[i]) & field) << held_bits;
    held_bits += bits;
    if (held_bits < 8) continue;
    out.push_back(static_cast<uint8_t>(held));
    held >>= 8;
    held_bits -= 8;
  }
  if (held_bits) out.push_back(static_cast<uint8_t>(held));
  return out;
}

int64_t size(const SizeQuery& query) {
  return 1 + packed_size(query.shape.count, bits_of(query.values, query.shape.count));
}

void check(ByteSpan payload, WeightShape shape, const std::string& field) {
  read_header(payload, shape, field);
}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field,
            const Parallel& parallel) {
  const Header header = read_header(payload, shape, field);
  constexpr int64_t kGrain = int64_t{1} << 15;
  parallel((shape.count + kGroup - 1) / kGroup, kGrain / kGroup, [&](int64_t begin, int64_t end) {
    const ByteSpan rest{header.values.data + begin * header.bits, header.values.size - begin * header.bits};
    unpack(rest, header.bits, output + begin * kGroup, std::min(end * kGroup, shape.count) - begin * kGroup);
  });
}

PayloadParts parts(ByteSpan payload, WeightShape, const std::string&) {
  return {.values = payload.size - 1, .header = 1};
}

class PackedWeight final : public CodedWeight {
 public:
  PackedWeight(Header header, WeightShape shape) : header_(header), shape_(shape) {}
  // A chunk begins at a whole byte.
  int64_t rows_per_chunk() const override { return (chunk_rows(shape_) + kGroup - 1) / kGroup * kGroup; }
  std::unique_ptr<RowCursor> open(int64_t chunk) const override {
    const int64_t groups = chunk * rows_per_chunk() * shape_.row_size() / kGroup;
    return std::make_unique<Cursor>(header_, groups, shape_.row_size());
  }

 private:
  class Cursor final : public RowCursor {
   public:
    Cursor(Header header, int64_t groups, int64_t row_size)
        : header_(header), next_(groups * kGroup), row_size_(row_size) {}
    void next(int64_t rows, int8_t* output) override {
      const int64_t skip = next_ % kGroup, begin = next_ / kGroup * header_.bits;
      next_ += rows * row_size_;
      const ByteSpan rest{header_.values.data + begin, header_.values.size - begin};
      if (skip == 0) return unpack(rest, header_.bits, output, rows * row_size_);
      decode_from(rest, skip, output, rows * row_size_);
    }

   private:
    // Rows that begin within a group: that group by itself.
    void decode_from(ByteSpan rest, int64_t skip, int8_t* output, int64_t count) const {
      int8_t group[kGroup];
      const int64_t given = std::min(kGroup - skip, count);
      unpack(rest, header_.bits, group, skip + given);
      std::copy_n(group + skip, given, output);
      if (given == count) return;
      unpack({rest.data + header_.bits, rest.size - header_.bits}, header_.bits, output + given, count - given);
    }

    const Header header_;
    int64_t next_;  // value
    const int64_t row_size_;
  };

  const Header header_;
  const WeightShape shape_;
};

std::unique_ptr<CodedWeight> open(ByteSpan payload, WeightShape shape, const std::string& field) {
  return std::make_unique<PackedWeight>(read_header(payload, shape, field), shape);
}

}  // namespace

const WeightCodec kPackedCodec{"packed", "packed", encode, size, {0.1, 0}, check, decode, parts, open};

}  // namespace pqk
