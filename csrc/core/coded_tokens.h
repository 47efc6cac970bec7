// One row of x against the rows of a coded weight of which only the non-zero ones are stored: nothing is done
// for zeros.
#pragma once

#include "core/codec.h"
#include "core/isa.h"

namespace pqk {

// Zeros and the weight behind them. Positions run through the rows of a chunk; a weight may be 0 too.
struct WeightTokens {
  const uint8_t* gaps;
  const uint8_t* values;  // int8, as they are
  int64_t count;
};

// Decodes the non-zero weights of one chunk, in their order.
class TokenCursor {
 public:
  virtual ~TokenCursor() = default;
  // The next tokens, none at the end; they stay until the next call. Nobody has checked that positions lie
  // inside of the chunk.
  virtual WeightTokens next() = 0;
};

// What a CodedWeight is too if its payload stores gaps and values.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual std::unique_ptr<TokenCursor> open_tokens(int64_t chunk) const = 0;
};

// Tokens are taken in groups, the last of a row with some of the next row, which find zeros behind x.
inline constexpr int64_t kTokenGroup = 16;
inline constexpr int64_t kTokenSlack = kTokenGroup * 256;

// Where the products of a chunk have got to.
template <class X, class Sum>
struct TokenProducts {
  const X* input;  // a row of x, then kTokenSlack zeros
  int64_t row_size, rows;
  Sum* sums;  // [rows], 0 at first
  int64_t row = 0, position = 0;
  Sum sum = 0;

  // After the last token.
  void finish() {
    if (row < rows) sums[row] = sum;
  }
};

using Int8TokenProducts = TokenProducts<int16_t, int32_t>;  // x less its zero point
using FloatTokenProducts = TokenProducts<float, float>;

// Adds the products of some tokens. False where one lies behind the last row.
using Int8TokensKernel = bool(const WeightTokens& tokens, Int8TokenProducts& products);
// `table` is by value + 128.
using FloatTokensKernel = bool(const WeightTokens& tokens, const float* table, FloatTokenProducts& products);
PQK_CPU_KERNEL(Int8TokensKernel, int8_tokens)
PQK_CPU_KERNEL(FloatTokensKernel, float_tokens)

// Throws E_CSR_INDEX where kernel(tokens) gives false.
template <class Kernel>
void for_each_token(const TokenSource& weight, int64_t chunk, const Kernel& kernel) {
  const std::unique_ptr<TokenCursor> cursor = weight.open_tokens(chunk);
  for (WeightTokens tokens = cursor->next(); tokens.count > 0; tokens = cursor->next()) {
    if (kernel(tokens)) continue;
    throw FormatError("E_CSR_INDEX", "payload.gaps", -1, "values at positions inside of the chunk",
                      "one behind it");
  }
}

}  // namespace pqk
