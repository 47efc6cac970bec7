// Any bytes as a stream of any complete Huffman code, into an output of any size: the symbols that a decoder
// working bit by bit finds, or an error where it finds one.
#include "core/huffman.h"
#include "fuzz.h"

namespace pqk::fuzz {
namespace {

// A complete code: leaves are split until enough are there, none deeper than 12.
HuffmanLengths read_code(Bytes& bytes) {
  std::vector<uint8_t> leaves{0};
  for (int64_t splits = bytes.range(0, 40); splits > 0 || leaves.size() == 1; --splits) {
    const size_t at = bytes.u8() % leaves.size();
    if (leaves[at] == kHuffmanMaxLength) continue;
    leaves.push_back(++leaves[at]);
  }
  if (bytes.range(0, 15) == 0) leaves = {1};
  HuffmanLengths lengths{};
  const int64_t first = bytes.u8(), step = bytes.u8() | 1;  // odd, so that no symbol comes twice
  for (size_t i = 0; i < leaves.size(); ++i) {
    lengths[static_cast<uint8_t>(first + static_cast<int64_t>(i) * step)] = leaves[i];
  }
  return lengths;
}

struct Symbols {
  std::vector<uint8_t> found;  // as many as are whole
  bool complete = false;       // the last one ends with the last bit
};

Symbols reference(const HuffmanLengths& lengths, ByteSpan stream, int64_t bits) {
  std::vector<std::pair<int, int>> order;  // (length, symbol), as canonical codes count
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    if (lengths[s]) order.emplace_back(lengths[s], s);
  }
  std::sort(order.begin(), order.end());
  Symbols symbols;
  for (int64_t position = 0; position < bits;) {
    int code = 0, length = 0, first = 0;  // first: of the codes of this length
    for (size_t at = 0;;) {
      if (position == bits || length == kHuffmanMaxLength) return symbols;
      code = code << 1 | (stream.data[position / 8] >> (7 - position % 8) & 1);
      ++position;
      ++length;
      first <<= 1;
      size_t end = at;
      while (end < order.size() && order[end].first == length) ++end;
      const int here = static_cast<int>(end - at);
      if (code - first < here) {
        symbols.found.push_back(static_cast<uint8_t>(order[at + static_cast<size_t>(code - first)].second));
        break;
      }
      first += here;
      at = end;
    }
  }
  symbols.complete = true;
  return symbols;
}

}  // namespace
}  // namespace pqk::fuzz

PQK_FUZZ_TARGET(huffman_decode) {
  const HuffmanLengths lengths = read_code(bytes);
  check_huffman_lengths(lengths, "code");
  const int spare = static_cast<int>(bytes.range(0, 7));
  const bool all = bytes.flag();
  int64_t count = bytes.range(0, 3000);
  const Exact<uint8_t> stream = bytes.rest();
  const Symbols symbols = reference(lengths, stream.span(), stream.size() * 8 - spare);
  if (all) count = static_cast<int64_t>(symbols.found.size());
  try {
    check_huffman_stream(stream.span(), spare, count, "stream");
  } catch (const FormatError& error) {
    require_named(error);
    return;
  }
  const bool right = symbols.complete && count == static_cast<int64_t>(symbols.found.size());
  Exact<uint8_t> output(count);
  try {
    HuffmanDecoder(lengths, 0).decode(stream.span(), spare, output.data(), count, "stream");
  } catch (const FormatError& error) {
    require_named(error);
    require(!right, "the symbols of a stream that is right", error.what());
    return;
  }
  require(right && std::equal(output.data(), output.data() + count, symbols.found.begin()),
          "the symbols that the stream holds");
}
