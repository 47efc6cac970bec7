// Coded weights in device memory. A first kernel reads a payload's header, on the device and without the host's
// knowing, into a plan: code tables and where the chunks are. The kernels that decode, or multiply while they
// decode, run behind it on the same stream.
//
// Payloads are trusted no more than on the CPU: whatever the bytes, nothing outside of them is read, and what
// CPU decoders refuse leaves a status other than kWhole.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/codec.h"
#include "core/interleaved_huffman.h"

namespace pqk::cuda {

enum class DeviceCodec { kRaw, kPacked, kInterleavedHuffman, kInterleavedSparseHuffman };

// Of several faults the one with the largest number is reported.
enum CodedStatus : int {
  kWhole,
  kStreamFault,
  kValueFault,
  kIndexFault,
  kCountFault,
  kPaddingFault,
  kBombFault,
  kCodeFault,
  kLengthFault,
  kSizeFault,
  kVarintFault,
  kTruncated,
};

struct CodedPayload {
  int device;
  void* stream;
  DeviceCodec codec;
  const uint8_t* data;
  int64_t size;
  WeightShape shape;
};

// What decoding looks up by the next 7 bits of a stream.
struct CodedTable {
  // From the lowest byte on: the first symbol of the token, bits of the whole code word, bits of its prefix,
  // and the mask of its plain bits.
  uint32_t entries[kInterleavedTableSize];
  int period, wide, single;
  int bit_step;  // the greatest common divisor of the lengths of code words
};

// The streams of one chunk: those of its values, and of its gaps if the weight is sparse.
struct CodedChunk {
  int64_t symbols;
  int64_t begin[2], size[2];  // bytes of the payload; values first
};

struct alignas(16) CodedPlan {
  int status;
  int bits;  // of a packed value
  int tail_blocks, longest_gap;
  int64_t rows_per_chunk, num_chunks;
  CodedTable tables[2];  // of values, of gaps
  CodedChunk chunks[1];  // as many as there are
};

// Whether there are kernels for a codec.
bool find_device_codec(std::string_view name, DeviceCodec& codec);
// Of the plan, in bytes of device memory.
int64_t coded_plan_bytes(const CodedPayload& payload);
// nullptr where the payload may hold so many weights, as far as its size tells; else the broken rule.
const char* check_payload_size(const CodedPayload& payload);
// The rule of FORMAT.md that a status stands for.
const char* coded_status_name(int status);
// As many thread blocks of one warp as decoding the payload pays for.
int64_t coded_grid(const CodedPayload& payload);

// Whether what is put on `stream` is not run but captured into a graph.
bool is_capturing(void* stream);

// Each returns nullptr or CUDA's words for what went wrong with the launch.
const char* read_coded_plan(const CodedPayload& payload, CodedPlan* plan);
// Of weights that were decoded, as a raw payload: whole if the plan was by which they were decoded.
const char* read_decoded_plan(const CodedPayload& raw, CodedPlan* plan, const CodedPlan* decoded);

}  // namespace pqk::cuda
