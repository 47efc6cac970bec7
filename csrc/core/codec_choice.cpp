// The codec for a weight, without encoding it by each.
#include <cmath>

#include "core/codec.h"

namespace pqk {
namespace {

// The entropy of where the non-zero values are and of what they are, in bytes; a hundredth less, since in a
// given order both may be coded a little better than on average.
int64_t gap_bound(int64_t weights, const HuffmanCounts& counts) {
  const double count = static_cast<double>(weights);
  const double nonzeros = count - static_cast<double>(counts[128]);
  const auto bits = [](double part, double whole) { return part > 0 ? part * std::log2(whole / part) : 0.0; };
  double total = bits(nonzeros, count) + bits(count - nonzeros, count);
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (s != 128) total += bits(static_cast<double>(counts[s]), nonzeros);
  }
  return static_cast<int64_t>(0.99 * total / 8);
}

}  // namespace

const WeightCodec& choose_weight_codec(const int8_t* values, WeightShape shape, double speed_tolerance) {
  const HuffmanCounts counts = huffman_counts(reinterpret_cast<const uint8_t*>(values), shape.count, 0x80);
  SizeQuery query{values, shape, counts, gap_bound(shape.count, counts), INT64_MAX};
  const auto longest = [&](int64_t shortest) { return static_cast<double>(shortest) * (1 + speed_tolerance); };
  std::vector<int64_t> sizes;
  int64_t shortest = INT64_MAX;
  for (const WeightCodec& codec : weight_codecs()) {
    sizes.push_back(codec.size(query));
    shortest = std::min(shortest, sizes.back());
    query.limit = static_cast<int64_t>(std::min(longest(shortest), 0x1p62));
  }
  const auto time = [&](const WeightCodec& codec) {
    return codec.cost.weight * static_cast<double>(shape.count) +
           codec.cost.nonzero * static_cast<double>(query.nonzeros());
  };
  const WeightCodec* best = nullptr;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const WeightCodec& codec = weight_codecs()[i];
    if (static_cast<double>(sizes[i]) > longest(shortest)) continue;
    if (best == nullptr || time(codec) < time(*best)) best = &codec;
  }
  return *best;
}

}  // namespace pqk
