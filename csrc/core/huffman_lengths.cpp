#include <algorithm>
#include <numeric>

#include "core/huffman.h"
#include "core/huffman_steps.h"

namespace pqk {
namespace {

struct Item {
  uint64_t weight;
  bool is_leaf;
};

// Items of the next level: pairs of `previous` packed together, merged with the leaves; a leaf goes first on
// ties.
std::vector<Item> package_and_merge(const std::vector<Item>& leaves, const std::vector<Item>& previous) {
  std::vector<Item> packages;
  for (size_t i = 0; i + 1 < previous.size(); i += 2) {
    packages.push_back({previous[i].weight + previous[i + 1].weight, false});
  }
  std::vector<Item> merged(leaves.size() + packages.size());
  std::merge(leaves.begin(), leaves.end(), packages.begin(), packages.end(), merged.begin(),
             [](const Item& a, const Item& b) { return a.weight < b.weight; });
  return merged;
}

// A symbol's length is coded against that of the used symbol before it.
constexpr int kFirstPredecessor = 8;

template <class Put>
void put_token(int length, int predecessor, const Put& put) {
  length ? put_step(length, predecessor, put) : put_no_step(put);
}

struct UsedRange {
  int first = 0, last = 0;
};

UsedRange used_range(const HuffmanLengths& lengths) {
  UsedRange range;
  while (range.first < kHuffmanSymbols - 1 && lengths[range.first] == 0) ++range.first;
  range.last = kHuffmanSymbols - 1;
  while (range.last > range.first && lengths[range.last] == 0) --range.last;
  return range;
}

}  // namespace

HuffmanCounts smoothed_counts(const HuffmanCounts& counts, int radius, int unused) {
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  const auto is_spike = [&](int s) { return counts[s] * 8 > total; };
  int first = 0, last = kHuffmanSymbols - 1;
  while (first < last && counts[first] == 0) ++first;
  while (last > first && counts[last] == 0) --last;
  constexpr uint64_t kScale = 64;
  HuffmanCounts result{};
  for (int s = first; s <= last; ++s) {
    if (s == unused) continue;
    uint64_t sum = 0, members = 0;
    for (int n = std::max(first, s - radius); n <= std::min(last, s + radius); ++n) {
      if (n == unused || is_spike(n)) continue;
      sum += counts[n];
      ++members;
    }
    const uint64_t mean = is_spike(s) ? kScale * counts[s] : kScale * sum / members;
    result[s] = std::max<uint64_t>(mean, counts[s] > 0);
  }
  return result;
}

HuffmanCounts huffman_counts(const uint8_t* symbols, int64_t count, uint8_t flip) {
  // Four at a time: equal neighbours would wait for each other's sum.
  std::array<HuffmanCounts, 4> parts{};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int k = 0; k < 4; ++k) ++parts[k][symbols[i + k]];
  }
  for (; i < count; ++i) ++parts[0][symbols[i]];
  HuffmanCounts counts;
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    const int from = s ^ flip;
    counts[s] = parts[0][from] + parts[1][from] + parts[2][from] + parts[3][from];
  }
  return counts;
}

HuffmanLengths optimal_huffman_lengths(const HuffmanCounts& counts, int max_length) {
  HuffmanLengths lengths{};
  std::vector<int> symbols;
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (counts[s]) symbols.push_back(s);
  }
  std::stable_sort(symbols.begin(), symbols.end(), [&](int a, int b) { return counts[a] < counts[b]; });
  if (symbols.size() == 1) lengths[symbols[0]] = 1;
  if (symbols.size() < 2) return lengths;

  std::vector<Item> leaves;
  for (const int s : symbols) leaves.push_back({counts[s], true});
  std::vector<std::vector<Item>> levels{leaves};
  while (static_cast<int>(levels.size()) < max_length)
    levels.push_back(package_and_merge(leaves, levels.back()));
  // The 2n - 2 lightest items of the last level cover each leaf as often as its code is long.
  size_t taken = 2 * symbols.size() - 2;
  for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
    const size_t leaf_count =
        std::count_if(level->begin(), level->begin() + taken, [](const Item& item) { return item.is_leaf; });
    for (size_t i = 0; i < leaf_count; ++i) ++lengths[symbols[i]];
    taken = 2 * (taken - leaf_count);
  }
  return lengths;
}

HuffmanLengths huffman_lengths(const HuffmanCounts& counts, int unused) {
  const auto cost = [&](const HuffmanLengths& lengths) {
    return huffman_bits(counts, lengths) + 8 * static_cast<uint64_t>(huffman_lengths_size(lengths));
  };
  HuffmanLengths best = optimal_huffman_lengths(counts);
  for (const int radius : {1, 2, 4, 8, 16}) {
    const HuffmanLengths lengths = optimal_huffman_lengths(smoothed_counts(counts, radius, unused));
    if (cost(lengths) < cost(best)) best = lengths;
  }
  return best;
}

uint64_t huffman_bits(const HuffmanCounts& counts, const HuffmanLengths& lengths) {
  uint64_t bits = 0;
  for (int s = 0; s < kHuffmanSymbols; ++s) bits += counts[s] * lengths[s];
  return bits;
}

void check_huffman_lengths(const HuffmanLengths& lengths, const std::string& field) {
  int64_t kraft = 0;
  int used = 0;
  for (const uint8_t length : lengths) {
    used += length > 0;
    if (length > 0) kraft += int64_t{1} << (kHuffmanMaxLength - length);
  }
  const bool single = used == 1 && kraft == kHuffmanTableSize / 2;
  if (kraft == kHuffmanTableSize || single) return;
  throw FormatError(kraft > kHuffmanTableSize ? "E_HUFF_OVERSUBSCRIBED" : "E_HUFF_INCOMPLETE", field, -1,
                    "a Kraft sum of 4096/4096", std::to_string(kraft) + "/4096");
}

void write_huffman_lengths(const HuffmanLengths& lengths, std::vector<uint8_t>& out) {
  const auto [first, last] = used_range(lengths);
  out.push_back(static_cast<uint8_t>(first));
  out.push_back(static_cast<uint8_t>(last));
  BitWriter bits(out);
  int predecessor = kFirstPredecessor;
  for (int s = first; s <= last; ++s) {
    put_token(lengths[s], predecessor, [&](uint32_t code, int size) { bits.put(code, size); });
    if (lengths[s]) predecessor = lengths[s];
  }
  bits.finish();
}

int64_t huffman_lengths_size(const HuffmanLengths& lengths) {
  const auto [first, last] = used_range(lengths);
  int64_t bits = 0;
  int predecessor = kFirstPredecessor;
  for (int s = first; s <= last; ++s) {
    put_token(lengths[s], predecessor, [&](uint32_t, int size) { bits += size; });
    if (lengths[s]) predecessor = lengths[s];
  }
  return 2 + (bits + 7) / 8;
}

HuffmanLengths read_huffman_lengths(ByteReader& reader) {
  const std::string field = reader.field() + ".lengths";
  const int64_t start = reader.offset();
  const int first = reader.u8("lengths"), last = reader.u8("lengths");
  if (last < first) {
    throw FormatError("E_HUFF_LENGTH", field, start, "a last symbol of at least " + std::to_string(first),
                      std::to_string(last));
  }
  HuffmanLengths lengths{};
  BitReader bits(reader, "lengths");
  int predecessor = kFirstPredecessor;
  for (int s = first; s <= last; ++s) {
    const int length = read_step(bits, predecessor, 1, kHuffmanMaxLength, field);
    if (length == kNoStep) continue;
    lengths[s] = static_cast<uint8_t>(length);
    predecessor = length;
  }
  bits.check_spare("E_HUFF_LENGTH", field);
  check_huffman_lengths(lengths, field);
  return lengths;
}

}  // namespace pqk
