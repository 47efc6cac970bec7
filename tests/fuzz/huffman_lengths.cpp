// Any bytes as a table of code lengths: an error with a name, or lengths that make a complete code, whose own
// table gives them again.
#include "core/huffman.h"
#include "fuzz.h"

PQK_FUZZ_TARGET(huffman_lengths) {
  const Exact<uint8_t> table = bytes.rest();
  HuffmanLengths lengths;
  try {
    ByteReader reader(table.span(), "table");
    lengths = read_huffman_lengths(reader);
  } catch (const FormatError& error) {
    require_named(error);
    return;
  }
  int used = 0, kraft = 0;
  for (const uint8_t length : lengths) {
    require(length <= kHuffmanMaxLength, "lengths of at most 12");
    used += length > 0;
    if (length) kraft += 1 << (kHuffmanMaxLength - length);
  }
  require(kraft == kHuffmanTableSize || (used == 1 && kraft == kHuffmanTableSize / 2), "a complete code");
  std::vector<uint8_t> written;
  write_huffman_lengths(lengths, written);
  require(static_cast<int64_t>(written.size()) == huffman_lengths_size(lengths), "the size foretold");
  ByteReader reader({written.data(), static_cast<int64_t>(written.size())}, "table");
  require(read_huffman_lengths(reader) == lengths, "the lengths that were written");
  require(reader.remaining() == 0, "all bytes used");
}
