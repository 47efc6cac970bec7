#include "core/interleaved_chunks.h"

#include <algorithm>

#include "core/interleaved_huffman.h"

namespace pqk {

int64_t choose_rows_per_chunk(WeightShape shape, int64_t symbols) {
  const int64_t target = kLargeTensor / (symbols < kLargeTensor ? 8 : 4);
  const int64_t row_symbols = std::max<int64_t>(1, symbols / shape.rows);
  return std::clamp<int64_t>(target / row_symbols, 1, shape.rows);
}

int64_t read_rows_per_chunk(ByteReader& reader, WeightShape shape) {
  const int64_t offset = reader.offset();
  const int64_t rows = reader.varint("rows_per_chunk");
  if (rows >= 1 && rows <= shape.rows) return rows;
  throw FormatError("E_SIZE_MISMATCH", reader.field() + ".rows_per_chunk", offset,
                    "1 to " + std::to_string(shape.rows) + " rows", std::to_string(rows));
}

int64_t chunks_size(int64_t chunks, int64_t bytes, int64_t symbols) {
  const int64_t waste = symbols < kLargeTensor ? kInterleavedFilledWaste : kInterleavedWaste;
  // One chunk's last byte is in `bytes`.
  const int64_t total = bytes + (chunks > 1 || symbols >= kLargeTensor ? chunks * waste : 0);
  return total + chunks * varint_size(static_cast<uint32_t>(total / chunks));
}

int read_tail_blocks(ByteReader& reader) {
  const int64_t offset = reader.offset();
  const int blocks = reader.u8("tail_blocks");
  if (blocks <= kInterleavedMaxTailBlocks) return blocks;
  throw FormatError("E_SIZE_MISMATCH", reader.field() + ".tail_blocks", offset,
                    "at most " + std::to_string(kInterleavedMaxTailBlocks), std::to_string(blocks));
}

void put_chunk_size(size_t size, std::vector<uint8_t>& out) {
  if (size > UINT32_MAX)
    throw FormatError("E_LIMIT", "weight", -1, "chunks below 2^32 bytes", std::to_string(size));
  put_varint(static_cast<uint32_t>(size), out);
}

}  // namespace pqk
