// The encoder's side of interleaved-sparse-huffman: an array as gaps and values.
#pragma once

#include <vector>

#include "core/codec.h"
#include "core/interleaved_huffman.h"

namespace pqk {

// A token is a gap, a number of zeros, and the value behind it, which is 0 only behind the longest gap.
struct SparseTokens {
  int64_t rows_per_chunk = 0;
  int longest_gap = 0;
  InterleavedCode gap_code, value_code;
  HuffmanCounts gap_counts{}, value_counts{};
  std::vector<uint8_t> gaps, values;  // of all chunks; values as they are
  std::vector<int64_t> chunk_ends;    // in tokens
};

// Estimate of the payload's length, INT64_MAX where it must be longer than query.limit.
int64_t sparse_size(const SizeQuery& query);
// Of the possible longest gaps takes the one of fewest bits. Throws E_LIMIT from 2^32 weights on.
SparseTokens sparse_tokens(const int8_t* values, WeightShape shape);

}  // namespace pqk
