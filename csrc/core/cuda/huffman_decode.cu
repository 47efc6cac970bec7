#include "core/cuda/huffman_decode.h"

#include "core/cuda/coded_header.h"
#include "core/cuda/coded_memory.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 128;     // of a block; each decodes a part of the stream
constexpr int kLeastPart = 1024;  // bits
constexpr int kFirstLength = 8;   // what a table's first step is from
constexpr uint8_t kFlip = 0x80;   // value byte ^ 0x80 == value + 128
constexpr int kTableVectors = kHuffmanTableSize * 2 / 16;

struct alignas(16) Table {
  uint16_t entries[kHuffmanTableSize];  // by the next 12 bits: the value, and the code's length << 8
};

struct Plan {
  int status, single;
  int64_t stream, bits;  // where the stream begins in the payload; of codes in it
  int64_t part;          // bits
  Table table;
};

// What blocks know of their parts. Ends of blocks are of two rounds.
struct Work {
  Plan* plan;
  int64_t* begin;       // [parts]
  int* found;           // [parts]: symbols that begin in a part
  int64_t* block_end;   // [2][blocks]
  int64_t* block_from;  // [blocks]: symbols before the block's
  int64_t blocks;
};

int64_t most_blocks(int64_t size) {
  return ceil_div(ceil_div(8 * size, int64_t{kLeastPart}), int64_t{kThreads});
}

Work arrange(const HuffmanDecode& job, void* scratch) {
  Work work{};
  work.blocks = most_blocks(job.size);
  work.plan = static_cast<Plan*>(scratch);
  work.begin = reinterpret_cast<int64_t*>(work.plan + 1);
  work.block_end = work.begin + work.blocks * kThreads;
  work.block_from = work.block_end + 2 * work.blocks;
  work.found = reinterpret_cast<int*>(work.block_from + work.blocks);
  return work;
}

struct Lengths {
  uint8_t length[kHuffmanSymbols];
  uint16_t first[kHuffmanSymbols];    // entry of the table
  int number[kHuffmanMaxLength + 1];  // of symbols by length
};

// As HuffmanDecoder's tables; the parts are such that codes of one length are in step from the start.
__device__ void read_lengths(Header& header, Lengths& lengths, Plan& plan) {
  const int first = header.u8(), last = header.u8();
  header.check(first <= last, kLengthFault);
  header.begin_bits();
  int predecessor = kFirstLength, used = 0, divisor = 0, kraft = 0, only = 0;
  for (int& number : lengths.number) number = 0;
  for (int s = 0; s < kHuffmanSymbols; ++s) lengths.length[s] = 0;
  for (int s = first; s <= last && header.status() == kWhole; ++s) {
    const int length = header.step(predecessor, 1, kHuffmanMaxLength);
    if (length == Header::kNoStep) continue;
    lengths.length[s] = static_cast<uint8_t>(predecessor = length);
    ++lengths.number[length];
    ++used;
    kraft += kHuffmanTableSize >> length;
    divisor = common_divisor(length, divisor);
    only = s;
  }
  header.end_bits();
  plan.single = used == 1 && kraft == kHuffmanTableSize / 2;
  header.check(kraft == kHuffmanTableSize || plan.single, kCodeFault);
  if (header.status() != kWhole) return;
  plan.part = ceil_div(kLeastPart, divisor) * divisor;
  if (plan.single) plan.table.entries[0] = static_cast<uint16_t>((only ^ kFlip) | 1 << 8);
  // From numbers to the entries where the codes of a length begin.
  for (int length = 1, entry = 0; length <= kHuffmanMaxLength; ++length) {
    const int begin = entry;
    entry += lengths.number[length] * (kHuffmanTableSize >> length);
    lengths.number[length] = begin;
  }
  for (int s = first; s <= last; ++s) {
    const int length = lengths.length[s];
    if (length == 0) continue;
    lengths.first[s] = static_cast<uint16_t>(lengths.number[length]);
    lengths.number[length] += kHuffmanTableSize >> length;
  }
}

__global__ void __launch_bounds__(kThreads) plan_kernel(HuffmanDecode job, Plan* plan) {
  __shared__ Lengths lengths;
  __shared__ int fill;
  if (threadIdx.x == 0) {
    Header header(job.payload, job.size);
    const int spare = header.u8();
    plan->bits = 0;
    plan->part = kLeastPart;
    plan->single = 0;
    read_lengths(header, lengths, *plan);
    const int64_t bits = 8 * header.remaining() - spare;
    header.check(spare <= 7 && bits >= 0, kStreamFault);
    if (header.status() == kWhole) {
      const int last = header.remaining() > 0 ? job.payload[job.size - 1] : 0;
      header.check((last & ((1 << spare) - 1)) == 0, kStreamFault);
      header.check(job.count <= bits, kBombFault);
      plan->stream = header.at();
    }
    if (header.status() == kWhole) plan->bits = bits;
    plan->status = header.status();
    fill = header.status() == kWhole && !plan->single;
  }
  __syncthreads();
  if (!fill) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int s = warp; s < kHuffmanSymbols; s += kThreads / kWarp) {
    const int length = lengths.length[s];
    if (length == 0) continue;
    const uint16_t entry = static_cast<uint16_t>((s ^ kFlip) | length << 8);
    for (int i = lane; i < kHuffmanTableSize >> length; i += kWarp)
      plan->table.entries[lengths.first[s] + i] = entry;
  }
}

// The codes of a stream, through a table in shared memory.
struct Codes {
  DeviceBytes bytes;
  const uint8_t* stream;
  const uint16_t* table;
  int64_t bits;

  // 32 bits, the first at the top.
  __device__ __forceinline__ uint32_t window(int64_t position) const {
    const uint8_t* const at = stream + position / 8;
    const uint32_t skip = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(at) & 3);
    const uint32_t first = __byte_perm(load_word(bytes, at - skip), 0, 0x0123);
    const uint32_t second = __byte_perm(load_word(bytes, at - skip + 4), 0, 0x0123);
    return __funnelshift_l(second, first, 8 * skip + static_cast<uint32_t>(position & 7));
  }

  // Calls visit(value) for the codes that begin before `end`; returns where the last one ends.
  template <class Visit>
  __device__ __forceinline__ int64_t decode(int64_t position, int64_t end, const Visit& visit) const {
    while (position < end) {
      const uint32_t both = window(position);
      const uint32_t one = table[both >> (32 - kHuffmanMaxLength)];
      visit(static_cast<uint8_t>(one));
      position += one >> 8;
      if (position >= end) break;
      const uint32_t other = table[both << (one >> 8) >> (32 - kHuffmanMaxLength)];
      visit(static_cast<uint8_t>(other));
      position += other >> 8;
    }
    return position;
  }
};

__device__ __forceinline__ Codes open_codes(const HuffmanDecode& job, const Plan& plan, Table& table) {
  const uint4* const from = reinterpret_cast<const uint4*>(plan.table.entries);
  for (int i = static_cast<int>(threadIdx.x); i < kTableVectors; i += kThreads) {
    reinterpret_cast<uint4*>(table.entries)[i] = from[i];
  }
  __syncthreads();
  return {{job.payload, job.payload + job.size}, job.payload + plan.stream, table.entries, plan.bits};
}

// The parts of a block, given where its first code begins: each begins where the one before ends. Returns where
// the last one ends. Parts begin as `begin` says, or, if they are new, where they would if codes were of one
// bit.
__device__ int64_t put_in_step(const Codes& codes, const Work& work, int64_t block, int64_t from, bool is_new,
                               int64_t* ends) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t index = block * kThreads + thread, part = work.plan->part;
  const int64_t part_end = min((index + 1) * part, codes.bits);
  int64_t begin = is_new ? min(index * part, codes.bits) : work.begin[index];
  if (thread == 0) begin = from;
  int64_t end = begin;
  int found = 0;
  for (bool wrong = true;;) {
    if (wrong) {
      found = 0;
      end = min(codes.decode(begin, part_end, [&](uint8_t) { ++found; }), codes.bits);
    }
    __syncthreads();
    ends[thread] = end;
    __syncthreads();
    const int64_t before = thread == 0 ? from : ends[thread - 1];
    wrong = before != begin;
    begin = before;
    if (!__syncthreads_or(wrong)) break;
  }
  work.begin[index] = begin;
  work.found[index] = found;
  return ends[kThreads - 1];
}

// First every block guesses where it begins; then it begins where the one before had ended.
__global__ void __launch_bounds__(kThreads) step_kernel(HuffmanDecode job, Work work, int round) {
  __shared__ Table table;
  __shared__ int64_t ends[kThreads];
  const Plan& plan = *work.plan;
  if (plan.single || plan.status != kWhole) return;
  const Codes codes = open_codes(job, plan, table);
  for (int64_t block = blockIdx.x; block < work.blocks; block += gridDim.x) {
    int64_t from = min(block * kThreads * plan.part, plan.bits);
    if (round == 1 && block > 0) from = work.block_end[block - 1];
    const int64_t end = put_in_step(codes, work, block, from, round == 0, ends);
    if (threadIdx.x == 0) work.block_end[round * work.blocks + block] = end;
    __syncthreads();
  }
}

// One block. Blocks whose predecessor did not end where it had ended in the first round are put in step again,
// one after the other; then symbols are counted.
__global__ void __launch_bounds__(kThreads) chain_kernel(HuffmanDecode job, Work work) {
  __shared__ Table table;
  __shared__ int64_t ends[kThreads];
  __shared__ int64_t sums[kThreads];
  const Plan& plan = *work.plan;
  const int thread = static_cast<int>(threadIdx.x);
  if (plan.single || plan.status != kWhole) return;
  const int64_t* const first = work.block_end;
  int64_t* const last = work.block_end + work.blocks;
  bool differ = false;
  for (int64_t block = thread; block < work.blocks; block += kThreads) differ |= first[block] != last[block];
  if (__syncthreads_or(differ)) {
    const Codes codes = open_codes(job, plan, table);
    for (int64_t block = 1; block < work.blocks; ++block) {
      const int64_t from = last[block - 1];
      if (from == first[block - 1]) continue;
      const int64_t end = put_in_step(codes, work, block, from, false, ends);
      if (thread == 0) last[block] = end;
      __syncthreads();
    }
  }
  int64_t total = 0;
  for (int64_t base = 0; base < work.blocks; base += kThreads) {
    const int64_t block = base + thread;
    int64_t own = 0;
    for (int i = 0; block < work.blocks && i < kThreads; ++i) own += work.found[block * kThreads + i];
    sums[thread] = own;
    for (int distance = 1; distance < kThreads; distance *= 2) {
      __syncthreads();
      const int64_t before = thread >= distance ? sums[thread - distance] : 0;
      __syncthreads();
      sums[thread] += before;
    }
    __syncthreads();
    if (block < work.blocks) work.block_from[block] = total + sums[thread] - own;
    total += sums[kThreads - 1];
    __syncthreads();
  }
  if (thread == 0 && total != job.count) atomicMax(&work.plan->status, static_cast<int>(kStreamFault));
}

__global__ void __launch_bounds__(kThreads) write_kernel(HuffmanDecode job, Work work) {
  __shared__ Table table;
  __shared__ int sums[kThreads];
  const Plan& plan = *work.plan;
  const int thread = static_cast<int>(threadIdx.x);
  // Another block may be writing the status.
  if (__syncthreads_or(plan.single || plan.status != kWhole)) return;
  const Codes codes = open_codes(job, plan, table);
  bool beyond = false;
  for (int64_t block = blockIdx.x; block < work.blocks; block += gridDim.x) {
    const int64_t index = block * kThreads + thread;
    const int found = work.found[index];
    sums[thread] = found;
    for (int distance = 1; distance < kThreads; distance *= 2) {
      __syncthreads();
      const int before = thread >= distance ? sums[thread - distance] : 0;
      __syncthreads();
      sums[thread] += before;
    }
    int64_t at = work.block_from[block] + sums[thread] - found;
    const int64_t end =
        codes.decode(work.begin[index], min((index + 1) * plan.part, plan.bits), [&](uint8_t value) {
          if (at < job.count) job.output[at++] = static_cast<int8_t>(value);
        });
    beyond |= end > plan.bits;
    __syncthreads();
  }
  if (beyond) atomicMax(&work.plan->status, static_cast<int>(kStreamFault));
}

// A code of one symbol is all zeros.
__global__ void __launch_bounds__(kThreads) single_kernel(HuffmanDecode job, Plan* plan) {
  if (!plan->single || plan->status != kWhole) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  bool wrong = plan->bits != job.count;
  for (int64_t i = plan->stream + first; i < job.size; i += stride) wrong |= job.payload[i] != 0;
  for (int64_t i = first; i < job.count; i += stride)
    job.output[i] = static_cast<int8_t>(plan->table.entries[0] & 0xff);
  if (wrong) atomicMax(&plan->status, static_cast<int>(kStreamFault));
}

}  // namespace

int64_t huffman_decode_scratch(const HuffmanDecode& job) {
  const int64_t blocks = most_blocks(job.size);
  return static_cast<int64_t>(sizeof(Plan)) + blocks * (kThreads * 12 + 3 * 8);
}

const char* huffman_decode(const HuffmanDecode& job, void* scratch) {
  constexpr int64_t kBlocksPerMultiprocessor = 16;
  const DeviceGuard guard(job.device);
  const Work work = arrange(job, scratch);
  const int64_t most = kBlocksPerMultiprocessor * num_multiprocessors(job.device);
  const dim3 grid(static_cast<unsigned>(work.blocks < most ? work.blocks : most)), block(kThreads);
  const char* error = launch(plan_kernel, dim3(1), block, 0, job.stream, job, work.plan);
  for (int round = 0; round < 2 && error == nullptr; ++round) {
    error = launch(step_kernel, grid, block, 0, job.stream, job, work, round);
  }
  if (error == nullptr) error = launch(chain_kernel, dim3(1), block, 0, job.stream, job, work);
  if (error == nullptr) error = launch(write_kernel, grid, block, 0, job.stream, job, work);
  if (error == nullptr) error = launch(single_kernel, grid, block, 0, job.stream, job, work.plan);
  return error;
}

}  // namespace pqk::cuda
