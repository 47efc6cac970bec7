// How a weight is cut into chunks of whole rows, which are decoded independently of each other.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>

#include "core/codec.h"

namespace pqk {

// From here on a tensor's chunks are large, and their streams need not be filled to the last bit.
inline constexpr int64_t kLargeTensor = int64_t{1} << 20;

// Rows of which about 2^17 symbols are one chunk (2^18 of a large tensor), `symbols` being those of all rows.
int64_t choose_rows_per_chunk(WeightShape shape, int64_t symbols);
// Varint number of rows in a chunk, 1..rows.
int64_t read_rows_per_chunk(ByteReader& reader, WeightShape shape);

// u8, 0..7.
int read_tail_blocks(ByteReader& reader);
// As a varint. Throws E_LIMIT from 2^32 on.
void put_chunk_size(size_t size, std::vector<uint8_t>& out);

// Estimate of what `chunks` streams of `bytes` together take, with their sizes.
int64_t chunks_size(int64_t chunks, int64_t bytes, int64_t symbols);

struct ChunkRange {
  int64_t rows_per_chunk;
  WeightShape shape;

  int64_t chunks() const { return shape.rows ? (shape.rows - 1) / rows_per_chunk + 1 : 0; }
  int64_t rows(int64_t chunk) const { return std::min(rows_per_chunk, shape.rows - chunk * rows_per_chunk); }
  int64_t begin(int64_t chunk) const { return chunk * rows_per_chunk * shape.row_size(); }
  int64_t count(int64_t chunk) const { return rows(chunk) * shape.row_size(); }
};

// Calls body(chunk) for all chunks, in any order and on any thread. Of what they throw, what the first chunk
// threw is thrown.
template <class Body>
void for_each_chunk(int64_t chunks, const Parallel& parallel, const Body& body) {
  std::mutex mutex;
  std::exception_ptr error;
  int64_t failed = chunks;
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      try {
        body(chunk);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (chunk < failed) error = std::current_exception();
        failed = std::min(failed, chunk);
        break;
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace pqk
