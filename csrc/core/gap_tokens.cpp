#include "core/gap_tokens.h"

#include <algorithm>

namespace pqk {
namespace {

// Tokens for which one check of their sums serves all.
constexpr int64_t kTokensTogether = 256;

// Puts values where the tokens say, and zeros between.
struct Scatter {
  int escape;
  int64_t nnz, count;
  int8_t* output;
  const uint8_t* values;
  int64_t position = 0, done = 0;

  // kTokensTogether tokens without a branch. False, and nothing done, where they might lead beyond the values.
  bool block(const uint8_t* tokens) {
    int64_t zeros = 0, escapes = 0;
    for (int64_t i = 0; i < kTokensTogether; ++i) {
      zeros += tokens[i];
      escapes += tokens[i] == escape;
    }
    const int64_t found = kTokensTogether - escapes, size = zeros + found;
    // An escape writes a zero where the next value comes, and reads that value.
    if (size >= count - position || found >= nnz - done) return false;
    std::fill_n(output + position, size, int8_t{0});
    int8_t* to = output + position;
    const uint8_t* from = values + done;
    for (int64_t i = 0; i < kTokensTogether; ++i) {
      const int is_value = tokens[i] != escape;
      to += tokens[i];
      *to = static_cast<int8_t>(*from & -is_value);  // a branch could not be predicted
      to += is_value;
      from += is_value;
    }
    position += size;
    done += found;
    return true;
  }

  void one(int token, int64_t index, const std::string& field) {
    const bool is_value = token != escape;
    if (is_value && (token >= count - position || done == nnz)) {
      throw FormatError(done == nnz ? "E_CSR_NNZ" : "E_CSR_INDEX", field + ".gaps", index,
                        std::to_string(nnz) + " values at positions below " + std::to_string(count),
                        "value " + std::to_string(done) + " at " + std::to_string(position + token));
    }
    const int64_t zeros = std::min<int64_t>(token, count - position);  // more are refused with the last token
    std::fill_n(output + position, zeros, int8_t{0});
    position += zeros;
    if (is_value) output[position++] = static_cast<int8_t>(values[done++]);
  }
};

}  // namespace

SparseSymbols sparse_symbols(const int8_t* values, int64_t count) {
  SparseSymbols symbols;
  int64_t previous = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] == 0) continue;
    symbols.gaps.push_back(static_cast<uint32_t>(i - previous - 1));
    symbols.nonzeros.push_back(static_cast<uint8_t>(values[i]));
    previous = i;
  }
  return symbols;
}

HuffmanCounts gap_token_counts(const std::vector<uint32_t>& gaps, int escape) {
  HuffmanCounts counts{};
  for (const uint32_t gap : gaps) {
    counts[escape] += gap / escape;
    ++counts[gap % escape];
  }
  return counts;
}

std::vector<uint8_t> gap_tokens(const std::vector<uint32_t>& gaps, int escape) {
  std::vector<uint8_t> tokens;
  tokens.reserve(gaps.size());
  for (const uint32_t gap : gaps) {
    tokens.insert(tokens.end(), gap / escape, static_cast<uint8_t>(escape));
    tokens.push_back(static_cast<uint8_t>(gap % escape));
  }
  return tokens;
}

void place_values(const uint8_t* tokens, int64_t token_count, int escape, const uint8_t* values, int64_t nnz,
                  int64_t count, int8_t* output, const std::string& field) {
  Scatter scatter{escape, nnz, count, output, values};
  int64_t token = 0;
  for (; token + kTokensTogether <= token_count; token += kTokensTogether) {
    if (!scatter.block(tokens + token)) break;
  }
  for (; token < token_count; ++token) scatter.one(tokens[token], token, field);
  if (scatter.done != nnz || tokens[token_count - 1] == escape) {
    throw FormatError("E_CSR_NNZ", field + ".gaps", token_count - 1,
                      std::to_string(nnz) + " values, the last token one of them",
                      std::to_string(scatter.done) + " values");
  }
  std::fill(output + scatter.position, output + count, int8_t{0});
}

}  // namespace pqk
