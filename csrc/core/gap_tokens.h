// Sparse weights as gaps and non-zeros, for the codecs that code both (FORMAT.md, "sparse-huffman"). A token
// below the escape is the number of zeros before the next value; the escape stands for that many zeros and no
// value. Zeros after the last value are not stored.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/huffman.h"

namespace pqk {

inline constexpr std::array<int, 7> kGapEscapes{7, 15, 31, 63, 127, 191, 255};  // what encoders try

struct SparseSymbols {
  std::vector<uint32_t> gaps;  // zeros before each value
  std::vector<uint8_t> nonzeros;
};

SparseSymbols sparse_symbols(const int8_t* values, int64_t count);
HuffmanCounts gap_token_counts(const std::vector<uint32_t>& gaps, int escape);
std::vector<uint8_t> gap_tokens(const std::vector<uint32_t>& gaps, int escape);

// Writes `count` weights: the values at their positions, zeros elsewhere. Throws E_CSR_NNZ unless exactly nnz
// tokens are below the escape, the last one among them; E_CSR_INDEX for a position that is not below count.
void place_values(const uint8_t* tokens, int64_t token_count, int escape, const uint8_t* values, int64_t nnz,
                  int64_t count, int8_t* output, const std::string& field);

}  // namespace pqk
