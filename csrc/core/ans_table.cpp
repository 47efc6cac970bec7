#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/ans.h"
#include "core/huffman_steps.h"

namespace pqk {
namespace {

constexpr int kMaxPrecision = 15;
constexpr int kMirroredFlag = 16;
constexpr int kFirstPredecessor = 8;
constexpr int kMiddle = 128;  // the symbol of value 0, its own mirror image

int mirror(int symbol) { return kHuffmanSymbols - symbol; }

// Bits below the leading one of a weight in [2^exponent, 2^(exponent + 1)). What they save grows with the
// share, so that two classes up deserve one bit more.
int fraction_bits(int exponent, int precision) {
  return std::clamp((exponent + precision) / 2 - 5, 0, exponent);
}

uint32_t weight_of(const AnsTable& table, int symbol) {
  const int exponent = kAnsShareBits - table.lengths[symbol];
  const int shift = exponent - fraction_bits(exponent, table.precision);
  return (1u << exponent) + (uint32_t{table.fractions[symbol]} << shift);
}

// Weights scaled to a sum of kAnsTotal, none below 1. What rounding leaves goes to the largest, or comes from
// them.
AnsShares scaled(const AnsTable& table) {
  AnsShares shares{};
  std::vector<int> used;
  uint32_t sum = 0;
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (table.lengths[s] == 0) continue;
    used.push_back(s);
    sum += weight_of(table, s);
  }
  int left = kAnsTotal;
  for (const int s : used) {
    shares[s] = static_cast<uint16_t>(std::max<uint32_t>(1, (weight_of(table, s) * kAnsTotal + sum / 2) / sum));
    left -= shares[s];
  }
  std::stable_sort(used.begin(), used.end(), [&](int a, int b) { return shares[a] > shares[b]; });
  for (size_t i = 0; left != 0; i = (i + 1) % used.size()) {
    if (left < 0 && shares[used[i]] == 1) {
      i = used.size() - 1;  // all that follow are 1 too: back to the first
      continue;
    }
    const int step = left > 0 ? 1 : -1;
    shares[used[i]] = static_cast<uint16_t>(shares[used[i]] + step);
    left -= step;
  }
  return shares;
}

AnsTable table_for(const HuffmanCounts& counts, int precision, bool mirrored) {
  AnsTable table{.precision = precision, .mirrored = mirrored};
  const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (counts[s] == 0) continue;
    const double weight = std::clamp(static_cast<double>(counts[s]) * kAnsTotal / total, 1.0, kAnsTotal - 1.0);
    int exponent = std::bit_width(static_cast<uint32_t>(weight)) - 1;
    int bits = fraction_bits(exponent, precision);
    double fraction = std::floor((weight / (1 << exponent) - 1) * (1 << bits) + 0.5);
    if (fraction == 1 << bits && exponent < kAnsShareBits - 1) {
      ++exponent;
      fraction = 0;
    }
    fraction = std::min(fraction, double((1 << bits) - 1));
    table.lengths[s] = static_cast<uint8_t>(kAnsShareBits - exponent);
    table.fractions[s] = static_cast<uint16_t>(fraction);
  }
  table.shares = scaled(table);
  return table;
}

HuffmanCounts mirrored_counts(const HuffmanCounts& counts) {
  HuffmanCounts result = counts;
  for (int s = kMiddle + 1; s < kHuffmanSymbols; ++s)
    result[s] = result[mirror(s)] = counts[s] + counts[mirror(s)];
  // Sums count every symbol but the middle one twice.
  result[kMiddle] *= 2;
  return result;
}

struct Range {
  int first, last;
};

Range coded_range(const AnsTable& table) {
  const auto used = [&](int s) { return table.lengths[s] > 0; };
  Range range{table.mirrored ? kMiddle : 0, kHuffmanSymbols - 1};
  while (range.first < range.last && !used(range.first)) ++range.first;
  while (range.last > range.first && !used(range.last)) --range.last;
  return range;
}

template <class Put>
void put_table(const AnsTable& table, const Put& put) {
  const auto [first, last] = coded_range(table);
  int predecessor = kFirstPredecessor;
  for (int s = first; s <= last; ++s) {
    const int length = table.lengths[s];
    if (length == 0) {
      put_no_step(put);
      continue;
    }
    put_step(length, predecessor, put);
    predecessor = length;
    const int bits = fraction_bits(kAnsShareBits - length, table.precision);
    if (bits) put(table.fractions[s], bits);
  }
}

}  // namespace

double ans_bits(const HuffmanCounts& counts, const AnsShares& shares) {
  static const std::vector<double> bits_of_share = [] {
    std::vector<double> bits(kAnsTotal + 1);
    for (uint32_t share = 1; share <= kAnsTotal; ++share)
      bits[share] = kAnsShareBits - std::log2(double(share));
    return bits;
  }();
  double bits = 0;
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (counts[s]) bits += static_cast<double>(counts[s]) * bits_of_share[shares[s]];
  }
  return bits;
}

int64_t ans_table_bits(const AnsTable& table) {
  int64_t bits = 24;
  put_table(table, [&](uint32_t, int size) { bits += size; });
  return bits + (8 - bits % 8) % 8;
}

AnsTable ans_table(const HuffmanCounts& counts, int unused, bool may_mirror) {
  AnsTable best;
  double least = INFINITY;
  const auto consider = [&](const HuffmanCounts& wanted, bool mirrored) {
    for (int precision = 0; precision <= kMaxPrecision; ++precision) {
      const AnsTable table = table_for(wanted, precision, mirrored);
      const double cost = ans_bits(counts, table.shares) + static_cast<double>(ans_table_bits(table));
      if (cost >= least) continue;
      least = cost;
      best = table;
    }
  };
  for (const int radius : {0, 1, 2, 4, 8, 16}) {
    const HuffmanCounts plain = radius ? smoothed_counts(counts, radius, unused) : counts;
    consider(plain, false);
    // -128 and symbols below it have no mirror image.
    if (may_mirror && plain[0] == 0) consider(mirrored_counts(plain), true);
  }
  return best;
}

void write_ans_table(const AnsTable& table, std::vector<uint8_t>& out) {
  const auto [first, last] = coded_range(table);
  out.push_back(static_cast<uint8_t>(table.precision | (table.mirrored ? kMirroredFlag : 0)));
  out.push_back(static_cast<uint8_t>(first));
  out.push_back(static_cast<uint8_t>(last));
  BitWriter bits(out);
  put_table(table, [&](uint32_t code, int size) { bits.put(code, size); });
  bits.finish();
}

AnsTable read_ans_table(ByteReader& reader) {
  const std::string field = reader.field() + ".shares";
  const int64_t start = reader.offset();
  const int form = reader.u8("shares"), first = reader.u8("shares"), last = reader.u8("shares");
  AnsTable table{.precision = form & kMaxPrecision, .mirrored = (form & kMirroredFlag) != 0};
  if (form >= 2 * kMirroredFlag || last < first || (table.mirrored && first < kMiddle)) {
    throw FormatError("E_ANS_TABLE", field, start, "a form below 32, and a range of symbols that fits it",
                      std::to_string(form) + ", " + std::to_string(first) + ".." + std::to_string(last));
  }
  BitReader bits(reader, "shares");
  int predecessor = kFirstPredecessor;
  for (int s = first; s <= last; ++s) {
    const int length = read_step(bits, predecessor, 1, kAnsShareBits, field);
    if (length == kNoStep) continue;
    predecessor = length;
    table.lengths[s] = static_cast<uint8_t>(length);
    for (int i = fraction_bits(kAnsShareBits - length, table.precision); i > 0; --i) {
      table.fractions[s] = static_cast<uint16_t>(table.fractions[s] << 1 | bits.get());
    }
    if (!table.mirrored || s == kMiddle) continue;
    table.lengths[mirror(s)] = table.lengths[s];
    table.fractions[mirror(s)] = table.fractions[s];
  }
  bits.check_spare("E_ANS_TABLE", field);
  if (table.lengths == HuffmanLengths{}) {
    throw FormatError("E_ANS_TABLE", field, start, "a used symbol", "none");
  }
  table.shares = scaled(table);
  return table;
}

}  // namespace pqk
