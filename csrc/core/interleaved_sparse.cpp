#include "core/interleaved_sparse.h"

#include <algorithm>
#include <numeric>

#include "core/interleaved_chunks.h"

namespace pqk {
namespace {

constexpr std::array<int, 6> kLongestGaps{7, 15, 31, 63, 127, 255};
constexpr int kGapBins = 2048;  // longer gaps are few

// The zeros before each non-zero value, from the value or chunk before it.
struct Gaps {
  std::vector<uint32_t> gaps;
  std::vector<uint8_t> values;
  std::vector<int64_t> chunk_ends;
  std::vector<uint32_t> bins = std::vector<uint32_t>(kGapBins);
  std::vector<uint32_t> longer;
};

Gaps find_gaps(const int8_t* values, const ChunkRange& range, int64_t nnz) {
  Gaps found;
  std::vector<uint32_t> positions(nnz + 1);  // and one to write to in vain
  found.gaps.reserve(nnz);
  found.values.reserve(nnz);
  for (int64_t chunk = 0; chunk < range.chunks(); ++chunk) {
    const int8_t* const data = values + range.begin(chunk);
    const uint32_t count = static_cast<uint32_t>(range.count(chunk));
    int64_t number = 0;
    for (uint32_t i = 0; i < count; ++i) {
      positions[number] = i;
      number += data[i] != 0;
    }
    uint32_t begin = 0;
    for (int64_t k = 0; k < number; ++k) {
      const uint32_t gap = positions[k] - begin;
      begin = positions[k] + 1;
      found.gaps.push_back(gap);
      found.values.push_back(static_cast<uint8_t>(data[positions[k]]));
      if (gap < kGapBins) {
        ++found.bins[gap];
      } else {
        found.longer.push_back(gap);
      }
    }
    found.chunk_ends.push_back(static_cast<int64_t>(found.gaps.size()));
  }
  return found;
}

struct Choice {
  uint64_t bits = UINT64_MAX;
  int longest_gap = 0;
  InterleavedCode gap_code, value_code;
  HuffmanCounts gap_counts{}, value_counts{};
};

Choice choice_for(const Gaps& found, const HuffmanCounts& nonzero_counts, int longest_gap) {
  Choice choice{0, longest_gap, {}, {}, {}, nonzero_counts};
  const uint32_t step = static_cast<uint32_t>(longest_gap) + 1;
  uint64_t fillers = 0;
  const auto count = [&](uint32_t gap, uint64_t times) {
    choice.gap_counts[gap % step] += times;
    fillers += gap / step * times;
  };
  for (uint32_t gap = 0; gap < kGapBins; ++gap) count(gap, found.bins[gap]);
  for (const uint32_t gap : found.longer) count(gap, 1);
  choice.gap_counts[longest_gap] += fillers;
  choice.value_counts[kInterleavedFlip] += fillers;
  choice.gap_code = interleaved_code(choice.gap_counts);
  choice.value_code = interleaved_code(choice.value_counts);
  choice.bits = interleaved_bits(choice.gap_counts, choice.gap_code) +
                interleaved_bits(choice.value_counts, choice.value_code);
  return choice;
}

// Gaps that need plain bits take twice the time to decode: fewer long ones are worth this share.
constexpr uint64_t kFastShare = 300;

uint64_t cost(const Choice& choice) {
  const bool wide = std::any_of(choice.gap_code.begin(), choice.gap_code.end(),
                                [](const InterleavedToken& token) { return token.extra > 0; });
  return choice.bits + (wide ? choice.bits / kFastShare : 0);
}

// The first rise of the bits ends the search: they have one minimum, nearly.
Choice best_choice(const Gaps& found, HuffmanCounts nonzero_counts) {
  nonzero_counts[kInterleavedFlip] = 0;
  Choice best;
  uint64_t least = UINT64_MAX, fewest_bits = UINT64_MAX;
  for (const int longest_gap : kLongestGaps) {
    Choice choice = choice_for(found, nonzero_counts, longest_gap);
    if (choice.bits > fewest_bits) break;
    fewest_bits = choice.bits;
    if (cost(choice) > least) continue;
    least = cost(choice);
    best = std::move(choice);
  }
  return best;
}

void append_tokens(const Gaps& found, SparseTokens& tokens) {
  const uint32_t step = static_cast<uint32_t>(tokens.longest_gap) + 1;
  const uint64_t total = std::accumulate(tokens.gap_counts.begin(), tokens.gap_counts.end(), uint64_t{0});
  tokens.gaps.reserve(total);
  tokens.values.reserve(total);
  size_t k = 0;
  for (const int64_t end : found.chunk_ends) {
    for (; k < static_cast<size_t>(end); ++k) {
      uint32_t gap = found.gaps[k];
      for (; gap >= step; gap -= step) {
        tokens.gaps.push_back(static_cast<uint8_t>(tokens.longest_gap));
        tokens.values.push_back(0);
      }
      tokens.gaps.push_back(static_cast<uint8_t>(gap));
      tokens.values.push_back(found.values[k]);
    }
    tokens.chunk_ends.push_back(static_cast<int64_t>(tokens.gaps.size()));
  }
}

}  // namespace

SparseTokens sparse_tokens(const int8_t* values, WeightShape shape) {
  if (shape.count > UINT32_MAX) {
    throw FormatError("E_LIMIT", "weight", -1, "fewer than 2^32 weights", std::to_string(shape.count));
  }
  HuffmanCounts counts =
      huffman_counts(reinterpret_cast<const uint8_t*>(values), shape.count, kInterleavedFlip);
  const int64_t nnz = shape.count - static_cast<int64_t>(counts[kInterleavedFlip]);
  SparseTokens tokens;
  if (nnz == 0) return tokens;
  tokens.rows_per_chunk = choose_rows_per_chunk(shape, nnz);
  const Gaps found = find_gaps(values, {tokens.rows_per_chunk, shape}, nnz);
  Choice best = best_choice(found, counts);
  tokens.longest_gap = best.longest_gap;
  tokens.gap_code = std::move(best.gap_code);
  tokens.value_code = std::move(best.value_code);
  tokens.gap_counts = best.gap_counts;
  tokens.value_counts = best.value_counts;
  append_tokens(found, tokens);
  return tokens;
}

int64_t sparse_size(const SizeQuery& query) {
  const int64_t nnz = query.nonzeros();
  if (nnz == 0) return 1;
  if (query.gap_bound > query.limit || query.shape.count > UINT32_MAX) return INT64_MAX;
  const ChunkRange range{choose_rows_per_chunk(query.shape, nnz), query.shape};
  const Choice best = best_choice(find_gaps(query.values, range, nnz), query.counts);
  const int64_t tokens =
      static_cast<int64_t>(std::accumulate(best.gap_counts.begin(), best.gap_counts.end(), uint64_t{0}));
  const auto streams = [&](const HuffmanCounts& counts, const InterleavedCode& code) {
    const int64_t bytes = static_cast<int64_t>((interleaved_bits(counts, code) + 7) / 8);
    return interleaved_table_size(code) + chunks_size(range.chunks(), bytes, tokens);
  };
  const int64_t counts_size = range.chunks() * varint_size(static_cast<uint32_t>(tokens / range.chunks()));
  return varint_size(static_cast<uint32_t>(tokens)) + varint_size(static_cast<uint32_t>(range.rows_per_chunk)) +
         2 + counts_size + streams(best.gap_counts, best.gap_code) +
         streams(best.value_counts, best.value_code);
}

}  // namespace pqk
