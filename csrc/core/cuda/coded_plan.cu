#include "core/cuda/coded_plan.h"

#include <algorithm>

#include "core/cuda/coded_header.h"

namespace pqk::cuda {
namespace {

constexpr int kFirstLength = 4, kFirstExtra = 0;  // what a table's first steps are from
struct Tokens {
  uint8_t base[kHuffmanSymbols], extra[kHuffmanSymbols], length[kHuffmanSymbols];
  int count, largest;  // symbol
};

__device__ void read_tokens(Header& header, Tokens& tokens) {
  tokens.count = tokens.largest = 0;
  const int first = header.u8(), last = header.u8();
  header.check(first <= last, kLengthFault);
  header.begin_bits();
  const bool wide = header.bit();
  int length = kFirstLength, extra = kFirstExtra, shares = 0;
  for (int symbol = first; symbol <= last && header.status() == kWhole;) {
    const int found = header.step(length, 1, kInterleavedMaxPrefix);
    if (found == Header::kNoStep) {
      ++symbol;
      continue;
    }
    length = found;
    if (wide) extra = header.step(extra, 0, kInterleavedMaxExtra);
    const bool aligned = extra >= 0 && symbol % (1 << extra) == 0 && symbol + (1 << extra) - 1 <= last;
    header.check(aligned, kLengthFault);
    if (!aligned) break;
    tokens.base[tokens.count] = static_cast<uint8_t>(symbol);
    tokens.extra[tokens.count] = static_cast<uint8_t>(extra);
    tokens.length[tokens.count++] = static_cast<uint8_t>(length);
    shares += kInterleavedTableSize >> length;
    symbol += 1 << extra;
    tokens.largest = symbol - 1;
  }
  header.end_bits();
  const bool single = tokens.count == 1 && tokens.length[0] == 1 && tokens.extra[0] == 0;
  header.check(shares == kInterleavedTableSize || single, kCodeFault);
}

// As InterleavedTable.
__device__ void fill_table(const Tokens& tokens, int flip, CodedTable& table) {
  int longest = 0, divisor = 0, wide = 0;
  for (int t = 0; t < tokens.count; ++t) {
    const int bits = tokens.length[t] + tokens.extra[t];
    longest = bits > longest ? bits : longest;
    divisor = common_divisor(bits, divisor);
    wide |= tokens.extra[t] > 0;
  }
  table.wide = wide;
  table.single = tokens.count == 1;
  table.period = longest <= 4 && !wide ? 4 : (longest <= 8 ? 2 : 1);
  table.bit_step = divisor;
  if (table.single) table.entries[0] = static_cast<uint32_t>(tokens.base[0] ^ flip);
  if (table.single) return;
  uint32_t next = 0;
  for (int length = 1; length <= kInterleavedMaxPrefix; ++length, next <<= 1) {
    for (int t = 0; t < tokens.count; ++t) {
      if (tokens.length[t] != length) continue;
      const int extra = tokens.extra[t];
      const uint32_t entry = static_cast<uint32_t>(tokens.base[t] ^ flip) |
                             static_cast<uint32_t>(length + extra) << 8 | static_cast<uint32_t>(length) << 16 |
                             ((1u << extra) - 1) << 24;
      for (uint32_t i = __brev(next) >> (32 - length); i < kInterleavedTableSize; i += 1u << length) {
        table.entries[i] = entry;
      }
      ++next;
    }
  }
}

__device__ int64_t rows_of_chunk(const CodedPlan& plan, WeightShape shape, int64_t chunk) {
  const int64_t rest = shape.rows - chunk * plan.rows_per_chunk;
  return rest < plan.rows_per_chunk ? rest : plan.rows_per_chunk;
}

__device__ void read_chunk_layout(Header& header, WeightShape shape, CodedPlan& plan) {
  plan.rows_per_chunk = header.varint();
  header.check(plan.rows_per_chunk >= 1 && plan.rows_per_chunk <= shape.rows, kSizeFault);
  plan.tail_blocks = header.u8();
  header.check(plan.tail_blocks <= kInterleavedMaxTailBlocks, kSizeFault);
}

__device__ void read_dense(Header& header, WeightShape shape, Tokens& tokens, CodedPlan& plan) {
  read_chunk_layout(header, shape, plan);
  if (header.status() != kWhole) return;
  read_tokens(header, tokens);
  if (header.status() != kWhole) return;
  fill_table(tokens, kInterleavedFlip, plan.tables[0]);
  const int64_t count = (shape.rows - 1) / plan.rows_per_chunk + 1;
  header.check(count <= header.remaining(), kTruncated);
  if (header.status() != kWhole) return;
  for (int64_t c = 0; c < count; ++c) plan.chunks[c].size[0] = header.varint();
  for (int64_t c = 0; c < count; ++c) {
    CodedChunk& chunk = plan.chunks[c];
    chunk.symbols = rows_of_chunk(plan, shape, c) * (shape.count / shape.rows);
    chunk.begin[0] = header.skip(chunk.size[0]);
    header.check(chunk.symbols <= 8 * chunk.size[0], kBombFault);
  }
  plan.num_chunks = count;
}

__device__ void read_sparse(Header& header, WeightShape shape, Tokens& tokens, CodedPlan& plan) {
  const int64_t all = header.varint();
  header.check(all <= shape.count, kCountFault);
  if (header.status() != kWhole) return;
  if (all == 0) {  // a weight of zeros
    plan.rows_per_chunk = shape.rows;
    plan.num_chunks = 1;
    plan.chunks[0] = {};
    return;
  }
  read_chunk_layout(header, shape, plan);
  plan.longest_gap = header.u8();
  if (header.status() != kWhole) return;
  read_tokens(header, tokens);
  if (header.status() != kWhole) return;
  header.check(tokens.largest <= plan.longest_gap, kValueFault);
  fill_table(tokens, 0, plan.tables[1]);
  read_tokens(header, tokens);
  if (header.status() != kWhole) return;
  fill_table(tokens, kInterleavedFlip, plan.tables[0]);
  const int64_t count = (shape.rows - 1) / plan.rows_per_chunk + 1;
  header.check(3 * count <= header.remaining(), kTruncated);
  if (header.status() != kWhole) return;
  int64_t sum = 0;
  for (int64_t c = 0; c < count; ++c) {
    CodedChunk& chunk = plan.chunks[c];
    chunk.symbols = header.varint();
    chunk.size[1] = header.varint();
    chunk.size[0] = header.varint();
    sum += chunk.symbols;
  }
  header.check(sum == all, kCountFault);
  for (int64_t c = 0; c < count; ++c) {
    CodedChunk& chunk = plan.chunks[c];
    const int64_t weights = rows_of_chunk(plan, shape, c) * (shape.count / shape.rows);
    header.check(chunk.symbols <= weights, kCountFault);
    chunk.begin[1] = header.skip(chunk.size[1]);
    chunk.begin[0] = header.skip(chunk.size[0]);
    header.check(chunk.symbols > 0 || chunk.size[0] + chunk.size[1] == 0, kSizeFault);
    header.check(chunk.symbols <= 8 * chunk.size[0] && chunk.symbols <= 8 * chunk.size[1], kBombFault);
  }
  plan.num_chunks = count;
}

__device__ void read_packed(Header& header, const CodedPayload& payload, CodedPlan& plan) {
  const int64_t count = payload.shape.count;
  plan.bits = header.u8();
  header.check(plan.bits >= 1 && plan.bits <= 8, kSizeFault);
  if (header.status() != kWhole) return;
  const int used = static_cast<int>(count % 8) * plan.bits % 8;
  header.skip(count / 8 * plan.bits + (count % 8 * plan.bits + 7) / 8);
  if (header.status() != kWhole || used == 0) return;
  header.check(payload.data[header.at() - 1] >> used == 0, kPaddingFault);
}

__global__ void plan_kernel(CodedPayload payload, CodedPlan* plan, const CodedPlan* decoded) {
  __shared__ Tokens tokens;
  if (threadIdx.x != 0) return;
  Header header(payload.data, payload.size);
  plan->bits = 8;
  plan->tail_blocks = plan->longest_gap = 0;
  plan->rows_per_chunk = 1;
  plan->num_chunks = payload.shape.rows;
  switch (payload.codec) {
    case DeviceCodec::kRaw:
      header.skip(payload.shape.count);
      break;
    case DeviceCodec::kPacked:
      read_packed(header, payload, *plan);
      break;
    case DeviceCodec::kInterleavedHuffman:
      plan->num_chunks = 0;
      read_dense(header, payload.shape, tokens, *plan);
      break;
    case DeviceCodec::kInterleavedSparseHuffman:
      plan->num_chunks = 0;
      read_sparse(header, payload.shape, tokens, *plan);
      break;
  }
  header.check(header.remaining() == 0, kSizeFault);
  if (decoded != nullptr && decoded->status != kWhole) header.fail(decoded->status);
  plan->status = header.status();
  // Nothing is decoded by a plan that is not whole.
  if (header.status() != kWhole) plan->num_chunks = 0;
}

}  // namespace

bool find_device_codec(std::string_view name, DeviceCodec& codec) {
  constexpr std::pair<std::string_view, DeviceCodec> kCodecs[] = {
      {"raw", DeviceCodec::kRaw},
      {"packed", DeviceCodec::kPacked},
      {"interleaved-huffman", DeviceCodec::kInterleavedHuffman},
      {"interleaved-sparse-huffman", DeviceCodec::kInterleavedSparseHuffman}};
  for (const auto& [known, value] : kCodecs) {
    if (known != name) continue;
    codec = value;
    return true;
  }
  return false;
}

int64_t coded_plan_bytes(const CodedPayload& payload) {
  // A chunk has a row at least, and its size a byte.
  const bool chunked = payload.codec != DeviceCodec::kRaw && payload.codec != DeviceCodec::kPacked;
  const int64_t chunks = chunked ? std::max<int64_t>(1, std::min(payload.shape.rows, payload.size)) : 1;
  return static_cast<int64_t>(sizeof(CodedPlan) + (chunks - 1) * sizeof(CodedChunk));
}

const char* check_payload_size(const CodedPayload& payload) {
  const int64_t count = payload.shape.count, size = payload.size;
  const bool has_header =
      payload.codec == DeviceCodec::kPacked || payload.codec == DeviceCodec::kInterleavedSparseHuffman;
  if (count == 0) return size == (has_header ? 1 : 0) ? nullptr : "E_SIZE_MISMATCH";
  switch (payload.codec) {
    case DeviceCodec::kRaw:
      return size == count ? nullptr : "E_SIZE_MISMATCH";
    case DeviceCodec::kPacked:
    case DeviceCodec::kInterleavedHuffman:
      return count / 8 <= size ? nullptr : "E_BOMB";
    case DeviceCodec::kInterleavedSparseHuffman:
      return size > 0 ? nullptr : "E_TRUNCATED";
  }
  return nullptr;
}

const char* coded_status_name(int status) {
  constexpr const char* kNames[] = {"whole",         "E_HUFF_STREAM",   "E_VALUE_RANGE", "E_CSR_INDEX",
                                    "E_CSR_NNZ",     "E_PADDING",       "E_BOMB",        "E_HUFF_INCOMPLETE",
                                    "E_HUFF_LENGTH", "E_SIZE_MISMATCH", "E_VARINT",      "E_TRUNCATED"};
  return kNames[status];
}

int64_t coded_grid(const CodedPayload& payload) {
  constexpr int64_t kWarpsPerMultiprocessor = 32;
  const int64_t most = std::max<int64_t>(1, std::min(payload.shape.rows, payload.size));
  return std::min(most, kWarpsPerMultiprocessor * num_multiprocessors(payload.device));
}

bool is_capturing([[maybe_unused]] void* stream) {
#if defined(PQK_CUDA_EMULATION)
  return false;
#else
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return status != cudaStreamCaptureStatusNone;
#endif
}

const char* read_coded_plan(const CodedPayload& payload, CodedPlan* plan) {
  return launch(plan_kernel, dim3(1), dim3(kWarp), 0, payload.stream, payload, plan, nullptr);
}

const char* read_decoded_plan(const CodedPayload& raw, CodedPlan* plan, const CodedPlan* decoded) {
  return launch(plan_kernel, dim3(1), dim3(kWarp), 0, raw.stream, raw, plan, decoded);
}

}  // namespace pqk::cuda
