// The choice of tokens: which runs of symbols share a prefix, and how long prefixes are; and how the file holds
// it.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/huffman_steps.h"
#include "core/interleaved_huffman.h"

namespace pqk {
namespace {

constexpr int kTreeLevels = 9;                    // runs of 2^0..2^8 symbols
constexpr int kTreeSize = 2 * kHuffmanSymbols;    // node 1 is all symbols, node n has children 2n and 2n + 1
constexpr int kFirstLength = 4, kFirstExtra = 0;  // what a table's first steps are from
constexpr uint64_t kNarrowShare = 100;            // no plain bits: worth a hundredth
constexpr int kBisections = 24;

int64_t prefix_share(int length) { return int64_t{kInterleavedTableSize} >> length; }

// For each aligned run of symbols, how often one of them occurs.
using RunCounts = std::array<uint64_t, kTreeSize>;

RunCounts run_counts(const HuffmanCounts& counts) {
  RunCounts runs{};
  std::copy(counts.begin(), counts.end(), runs.begin() + kHuffmanSymbols);
  for (int node = kHuffmanSymbols - 1; node > 0; --node) runs[node] = runs[2 * node] + runs[2 * node + 1];
  return runs;
}

// Cuts the symbols into runs, each a token, so that the bits of all plus `price` times the tokens' share of
// prefixes are least: dynamic programming over the tree of runs. Prefix lengths are then improved by others.
class RunCut {
 public:
  RunCut(const RunCounts& runs, double price) : runs_(runs) {
    for (int node = kTreeSize - 1, extra = 0; node > 0; --node) {
      while (node < kHuffmanSymbols >> extra) ++extra;
      if (runs[node] == 0) continue;
      double cost = 1e300;
      for (int length = 1; length <= kInterleavedMaxPrefix && extra <= kInterleavedMaxExtra; ++length) {
        const double own = static_cast<double>(runs[node]) * (length + extra) + price * prefix_share(length);
        if (own >= cost) continue;
        cost = own;
        length_[node] = length;
      }
      const double split = extra ? cost_[2 * node] + cost_[2 * node + 1] : cost;
      if (split < cost) length_[node] = 0;
      cost_[node] = std::min(cost, split);
    }
  }

  int64_t shares() const {
    return visit(1, [](int, int) {});
  }

  InterleavedCode tokens() const {
    InterleavedCode code;
    visit(1, [&](int node, int length) {
      int extra = 0;
      while (node << extra < kHuffmanSymbols) ++extra;
      const int base = (node << extra) - kHuffmanSymbols;
      code.push_back({static_cast<uint8_t>(base), static_cast<uint8_t>(extra), static_cast<uint8_t>(length)});
    });
    return code;
  }

 private:
  // The tokens below `node` in order; returns the sum of their shares.
  template <class Visit>
  int64_t visit(int node, const Visit& visitor) const {
    if (runs_[node] == 0) return 0;
    if (length_[node] == 0) return visit(2 * node, visitor) + visit(2 * node + 1, visitor);
    visitor(node, length_[node]);
    return prefix_share(length_[node]);
  }

  const RunCounts& runs_;
  std::array<double, kTreeSize> cost_{};
  std::array<int, kTreeSize> length_{};  // of the prefix of a run that is a token, 0 for one that is cut
};

// Optimal lengths for given runs.
void assign_lengths(const HuffmanCounts& counts, InterleavedCode& code) {
  HuffmanCounts token_counts{};
  for (size_t t = 0; t < code.size(); ++t) {
    const auto first = counts.begin() + code[t].base;
    token_counts[t] = std::accumulate(first, first + (1 << code[t].extra), uint64_t{0});
  }
  const HuffmanLengths lengths = optimal_huffman_lengths(token_counts, kInterleavedMaxPrefix);
  for (size_t t = 0; t < code.size(); ++t) code[t].length = lengths[t];
}

InterleavedCode wide_code(const HuffmanCounts& counts) {
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  const RunCounts runs = run_counts(counts);
  // The price at which the tokens just fit into all prefixes. A high price makes few tokens.
  double low = static_cast<double>(total) / 65536, high = 16.0 * static_cast<double>(total);
  for (int i = 0; i < kBisections; ++i) {
    const double price = std::sqrt(low * high);
    (RunCut(runs, price).shares() > kInterleavedTableSize ? low : high) = price;
  }
  InterleavedCode code = RunCut(runs, high).tokens();
  assign_lengths(counts, code);
  return code;
}

uint64_t table_bits(const InterleavedCode& code);

uint64_t cost(const HuffmanCounts& counts, const InterleavedCode& code) {
  return interleaved_bits(counts, code) + table_bits(code);
}

bool is_wide(const InterleavedCode& code) {
  return std::any_of(code.begin(), code.end(), [](const InterleavedToken& token) { return token.extra > 0; });
}

// Calls put(bits, number of bits) for the table after its first and last symbol.
template <class Put>
void put_code(const InterleavedCode& code, const Put& put) {
  const bool wide = is_wide(code);
  put(wide, 1);
  int symbol = code.front().base, length = kFirstLength, extra = kFirstExtra;
  for (const InterleavedToken& token : code) {
    for (; symbol < token.base; ++symbol) put_no_step(put);
    put_step(token.length, length, put);
    if (wide) put_step(token.extra, extra, put);
    length = token.length;
    extra = token.extra;
    symbol += 1 << extra;
  }
}

uint64_t table_bits(const InterleavedCode& code) {
  uint64_t bits = 16;
  put_code(code, [&](uint32_t, int size) { bits += static_cast<uint64_t>(size); });
  return bits;
}

void check_code(const InterleavedCode& code, const std::string& field) {
  int64_t shares = 0;
  for (const InterleavedToken& token : code) shares += prefix_share(token.length);
  const bool single = code.size() == 1 && code[0].length == 1 && code[0].extra == 0;
  if (shares == kInterleavedTableSize || single) return;
  throw FormatError(shares > kInterleavedTableSize ? "E_HUFF_OVERSUBSCRIBED" : "E_HUFF_INCOMPLETE", field, -1,
                    "a Kraft sum of 128/128", std::to_string(shares) + "/128");
}

InterleavedToken read_token(BitReader& bits, int symbol, int last, const InterleavedToken& previous, bool wide,
                            const std::string& field) {
  const int length = read_step(bits, previous.length, 1, kInterleavedMaxPrefix, field);
  if (length == kNoStep) return {static_cast<uint8_t>(symbol), 0, 0};
  const int extra = wide ? read_step(bits, previous.extra, 0, kInterleavedMaxExtra, field) : 0;
  if (extra == kNoStep || symbol % (1 << extra) || symbol + (1 << extra) - 1 > last) {
    throw FormatError(
        "E_HUFF_LENGTH", field, bits.byte_offset(), "an aligned run of symbols up to " + std::to_string(last),
        extra == kNoStep ? "none" : std::to_string(1 << extra) + " from " + std::to_string(symbol));
  }
  return {static_cast<uint8_t>(symbol), static_cast<uint8_t>(extra), static_cast<uint8_t>(length)};
}

}  // namespace

InterleavedCode interleaved_code(const HuffmanCounts& counts) {
  InterleavedCode narrow;
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (counts[s]) narrow.push_back({static_cast<uint8_t>(s), 0, 0});
  }
  uint64_t acceptable = 0;  // no need to look for better
  if (narrow.size() <= kInterleavedTableSize) {
    assign_lengths(counts, narrow);
    const uint64_t best = huffman_bits(counts, optimal_huffman_lengths(counts));
    acceptable = best + best / kNarrowShare;
    if (narrow.size() == 1 || interleaved_bits(counts, narrow) <= acceptable) return narrow;
  }
  const InterleavedCode wide = wide_code(counts);
  if (wide.size() == 1) return narrow;
  const uint64_t wide_cost = cost(counts, wide);
  return acceptable > 0 && cost(counts, narrow) <= wide_cost + wide_cost / kNarrowShare ? narrow : wide;
}

uint64_t interleaved_bits(const HuffmanCounts& counts, const InterleavedCode& code) {
  uint64_t bits = 0;
  for (const InterleavedToken& token : code) {
    const auto first = counts.begin() + token.base;
    bits += std::accumulate(first, first + (1 << token.extra), uint64_t{0}) * (token.length + token.extra);
  }
  return bits;
}

int interleaved_period(const InterleavedCode& code) {
  int longest = 0;
  for (const InterleavedToken& token : code) longest = std::max(longest, token.length + token.extra);
  if (longest <= 4 && !is_wide(code)) return 4;
  return longest <= 8 ? 2 : 1;
}

int64_t interleaved_table_size(const InterleavedCode& code) {
  return static_cast<int64_t>((table_bits(code) + 7) / 8);
}

void write_interleaved_code(const InterleavedCode& code, std::vector<uint8_t>& out) {
  out.push_back(code.front().base);
  out.push_back(static_cast<uint8_t>(code.back().base + (1 << code.back().extra) - 1));
  BitWriter bits(out);
  put_code(code, [&](uint32_t value, int size) { bits.put(value, size); });
  bits.finish();
}

InterleavedCode read_interleaved_code(ByteReader& reader, const char* what) {
  const std::string name = std::string(what) + ".lengths";
  const std::string field = reader.field() + "." + name;
  const int64_t start = reader.offset();
  const int first = reader.u8(name.c_str()), last = reader.u8(name.c_str());
  if (last < first) {
    throw FormatError("E_HUFF_LENGTH", field, start, "a last symbol of at least " + std::to_string(first),
                      std::to_string(last));
  }
  BitReader bits(reader, name.c_str());
  const bool wide = bits.get();
  InterleavedCode code;
  InterleavedToken previous{0, kFirstExtra, kFirstLength};
  for (int symbol = first; symbol <= last;) {
    const InterleavedToken token = read_token(bits, symbol, last, previous, wide, field);
    symbol += 1 << token.extra;
    if (token.length == 0) continue;
    code.push_back(token);
    previous = token;
  }
  bits.check_spare("E_HUFF_LENGTH", field);
  check_code(code, field);
  return code;
}

}  // namespace pqk
