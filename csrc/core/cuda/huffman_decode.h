// Decoding of one long Huffman stream (core/huffman.h) on CUDA, by many threads that begin anywhere: codes fall
// into step after some symbols, wherever one begins (Klein and Wiseman 2003; Weissenberger and Schmidt 2018).
#pragma once

#include <cstdint>

namespace pqk::cuda {

struct HuffmanDecode {
  int device;
  void* stream;
  const uint8_t* payload;  // of codec `huffman`
  int64_t size;            // bytes
  int64_t count;           // weights, at least 1
  int8_t* output;
};

// Bytes of device memory to work in, aligned to 16; an int at its beginning is a CodedStatus afterwards.
int64_t huffman_decode_scratch(const HuffmanDecode& job);
// What a payload that is not whole gives is of no meaning. Returns nullptr or CUDA's words for what went wrong
// with a launch, and does not wait.
const char* huffman_decode(const HuffmanDecode& job, void* scratch);

}  // namespace pqk::cuda
