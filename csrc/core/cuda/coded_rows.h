// Rows of a coded weight, decoded by warps and given away where they are: in registers, 16 neighbouring weights
// a lane. A sink stores them, or multiplies with them.
//
// A sink has
//   begin(first_row, rows)        of what follows
//   block(weights, begin, count)  a block: a lane's weights are those from `begin` + 16 * lane on, counted from
//                                 the first row on; `count` of the block's kInterleavedBlock are weights at all
//   end(whole)                    whether the payload was
// which all lanes call together.
#pragma once

#include "core/cuda/coded_stream.h"

namespace pqk::cuda {

// Weights that a sparse chunk's tokens are put to before a sink takes them.
constexpr int kWindowBytes = 8 * kInterleavedBlock;

template <DeviceCodec kCodec>
struct RowMemory {};
template <>
struct RowMemory<DeviceCodec::kInterleavedHuffman> {
  StreamMemory values;
  TailMemory tail;
};
template <>
struct RowMemory<DeviceCodec::kInterleavedSparseHuffman> {
  StreamMemory values, gaps;
  TailMemory tail;
  alignas(16) uint8_t window[kWindowBytes];
};

// A value of `kBits` bits out of a lane's 16, as a byte of its word.
template <int kBits>
__device__ __forceinline__ uint4 unpack_lane(const uint4& packed) {
  if constexpr (kBits == 8) return packed;
  const uint32_t word[5] = {packed.x, packed.y, packed.z, packed.w, 0};
  uint32_t out[4] = {};
#pragma unroll
  for (int i = 0; i < kSymbolsOfLane; ++i) {
    const int bit = i * kBits;
    const uint32_t window = __funnelshift_r(word[bit / 32], word[bit / 32 + 1], bit % 32);
    const uint32_t value = static_cast<uint32_t>(static_cast<int32_t>(window << (32 - kBits)) >> (32 - kBits));
    out[i / 4] |= (value & 0xff) << (8 * (i % 4));
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

__device__ __forceinline__ uint4 unpack_lane(const uint4& packed, int bits) {
  switch (bits) {
    case 1:
      return unpack_lane<1>(packed);
    case 2:
      return unpack_lane<2>(packed);
    case 3:
      return unpack_lane<3>(packed);
    case 4:
      return unpack_lane<4>(packed);
    case 5:
      return unpack_lane<5>(packed);
    case 6:
      return unpack_lane<6>(packed);
    case 7:
      return unpack_lane<7>(packed);
    default:
      return packed;
  }
}

// A row of weights of a fixed number of bits.
template <class Sink>
__device__ void give_fixed(const CodedPayload& payload, const CodedPlan& plan, const uint8_t* data, int64_t row,
                           int lane, Sink& sink) {
  const int64_t row_size = payload.shape.count / payload.shape.rows;
  const DeviceBytes bytes{payload.data, payload.data + payload.size};
  sink.begin(row, 1);
  for (int64_t begin = 0; begin < row_size; begin += kInterleavedBlock) {
    const int64_t value = row * row_size + begin + kSymbolsOfLane * lane;
    const uint4 packed = load_bits(bytes, data, value * plan.bits);
    sink.block(unpack_lane(packed, plan.bits), begin,
               static_cast<int>(min(static_cast<int64_t>(kInterleavedBlock), row_size - begin)));
  }
  sink.end(true);
}

template <class Sink>
__device__ void give_dense(const CodedPayload& payload, CodedPlan& plan, int64_t index, int lane,
                           RowMemory<DeviceCodec::kInterleavedHuffman>& memory, Sink& sink) {
  const CodedChunk chunk = plan.chunks[index];
  const int64_t first = index * plan.rows_per_chunk;
  sink.begin(first, min(plan.rows_per_chunk, payload.shape.rows - first));
  StreamDecoder decoder(memory.values, memory.tail, lane);
  bool whole = decoder.start({payload.data, payload.data + payload.size}, payload.data + chunk.begin[0],
                             chunk.size[0], chunk.symbols, plan.tail_blocks, plan.tables[0]);
  if (whole) {
    for (int64_t block = 0, begin = 0; begin < chunk.symbols; ++block, begin += kInterleavedBlock) {
      sink.block(decoder.next(block), begin,
                 static_cast<int>(min(static_cast<int64_t>(kInterleavedBlock), chunk.symbols - begin)));
    }
    whole = decoder.finish();
  }
  if (!whole && lane == 0) atomicMax(&plan.status, static_cast<int>(kStreamFault));
  sink.end(whole);
}

// Where a sparse chunk has got to: weights lie in the window until nothing more comes before its end.
template <class Sink>
class SparseWindow {
 public:
  __device__ __forceinline__ SparseWindow(uint8_t* window, int64_t weights, int lane, Sink& sink)
      : window_(window), weights_(weights), lane_(lane), sink_(sink) {
    __syncwarp();
    for (int at = 16 * lane; at < kWindowBytes; at += 16 * kWarp) clear(at);
    __syncwarp();
  }

  // A block of tokens, 16 a lane; with this block there are `rest` left. What is wrong with them, the same on
  // all lanes.
  __device__ int put(const uint4& gaps, const uint4& values, int64_t rest, int longest_gap) {
    const int64_t own_rest = rest - kSymbolsOfLane * lane_;
    const int count =
        static_cast<int>(max(static_cast<int64_t>(0), min(own_rest, static_cast<int64_t>(kSymbolsOfLane))));
    const uint32_t gap[4] = {gaps.x, gaps.y, gaps.z, gaps.w},
                   value[4] = {values.x, values.y, values.z, values.w};
    int own = 0;
    bool bad_value = false, bad_end = false;
#pragma unroll
    for (int i = 0; i < kSymbolsOfLane; ++i) {
      if (i >= count) continue;
      const int g = static_cast<int>(gap[i / 4] >> (8 * (i % 4)) & 0xff);
      const bool zero = (value[i / 4] >> (8 * (i % 4)) & 0xff) == 0;
      own += g + 1;
      bad_value |= zero && g != longest_gap;
      bad_end = zero;
    }
    bad_end &= own_rest <= kSymbolsOfLane;  // the chunk's last
    int end = own;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, distance);
      if (lane_ >= distance) end += before;
    }
    const int total = __shfl_sync(kAllLanes, end, kWarp - 1);
    if (__any_sync(kAllLanes, bad_value)) return kValueFault;
    if (__any_sync(kAllLanes, bad_end)) return kCountFault;
    if (position_ + total > weights_) return kIndexFault;
    const int64_t first = position_ + end - own;
    position_ += total;
    while (true) {
      int64_t at = first;
#pragma unroll
      for (int i = 0; i < kSymbolsOfLane; ++i) {
        at += gap[i / 4] >> (8 * (i % 4)) & 0xff;
        if (i < count && at >= begin_ && at < begin_ + kWindowBytes) {
          window_[at - begin_] = static_cast<uint8_t>(value[i / 4] >> (8 * (i % 4)));
        }
        ++at;
      }
      __syncwarp();
      if (position_ < begin_ + kWindowBytes) return kWhole;
      give();
    }
  }

  // Zeros up to the end of the chunk.
  __device__ void finish() {
    while (begin_ < weights_) give();
  }

 private:
  __device__ __forceinline__ void clear(int at) {
    *reinterpret_cast<uint4*>(window_ + at) = make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void give() {
    for (int block = 0; block < kWindowBytes && begin_ + block < weights_; block += kInterleavedBlock) {
      const int at = block + kSymbolsOfLane * lane_;
      const uint4 weights = *reinterpret_cast<const uint4*>(window_ + at);
      clear(at);
      sink_.block(weights, begin_ + block,
                  static_cast<int>(min(static_cast<int64_t>(kInterleavedBlock), weights_ - begin_ - block)));
    }
    __syncwarp();
    begin_ += kWindowBytes;
  }

  uint8_t* window_;
  int64_t weights_, begin_ = 0, position_ = 0;
  int lane_;
  Sink& sink_;
};

template <class Sink>
__device__ void give_sparse(const CodedPayload& payload, CodedPlan& plan, int64_t index, int lane,
                            RowMemory<DeviceCodec::kInterleavedSparseHuffman>& memory, Sink& sink) {
  const CodedChunk chunk = plan.chunks[index];
  const int64_t first = index * plan.rows_per_chunk;
  const int64_t rows = min(plan.rows_per_chunk, payload.shape.rows - first);
  sink.begin(first, rows);
  const DeviceBytes bytes{payload.data, payload.data + payload.size};
  SparseWindow<Sink> window(memory.window, rows * (payload.shape.count / payload.shape.rows), lane, sink);
  StreamDecoder values(memory.values, memory.tail, lane), gaps(memory.gaps, memory.tail, lane);
  int fault = kWhole;
  if (chunk.symbols > 0) {
    const bool started = values.start(bytes, payload.data + chunk.begin[0], chunk.size[0], chunk.symbols,
                                      plan.tail_blocks, plan.tables[0]) &&
                         gaps.start(bytes, payload.data + chunk.begin[1], chunk.size[1], chunk.symbols,
                                    plan.tail_blocks, plan.tables[1]);
    fault = started ? kWhole : kStreamFault;
    for (int64_t block = 0, begin = 0; begin < chunk.symbols && fault == kWhole;
         ++block, begin += kInterleavedBlock) {
      const uint4 next_gaps = gaps.next(block), next_values = values.next(block);
      fault = window.put(next_gaps, next_values, chunk.symbols - begin, plan.longest_gap);
    }
    if (fault == kWhole && !(gaps.finish() & values.finish())) fault = kStreamFault;
  }
  if (fault != kWhole && lane == 0) atomicMax(&plan.status, fault);
  window.finish();
  sink.end(fault == kWhole);
}

// The rows of chunk `index` of a plan that is whole, to a sink.
template <DeviceCodec kCodec, class Sink>
__device__ __forceinline__ void give_rows(const CodedPayload& payload, CodedPlan& plan, int64_t index, int lane,
                                          RowMemory<kCodec>& memory, Sink& sink) {
  if constexpr (kCodec == DeviceCodec::kRaw) {
    give_fixed(payload, plan, payload.data, index, lane, sink);
  } else if constexpr (kCodec == DeviceCodec::kPacked) {
    give_fixed(payload, plan, payload.data + 1, index, lane, sink);
  } else if constexpr (kCodec == DeviceCodec::kInterleavedHuffman) {
    give_dense(payload, plan, index, lane, memory, sink);
  } else {
    give_sparse(payload, plan, index, lane, memory, sink);
  }
}

// Calls body.operator()<codec>().
template <class Body>
const char* for_codec(DeviceCodec codec, const Body& body) {
  switch (codec) {
    case DeviceCodec::kRaw:
      return body.template operator()<DeviceCodec::kRaw>();
    case DeviceCodec::kPacked:
      return body.template operator()<DeviceCodec::kPacked>();
    case DeviceCodec::kInterleavedHuffman:
      return body.template operator()<DeviceCodec::kInterleavedHuffman>();
    case DeviceCodec::kInterleavedSparseHuffman:
      return body.template operator()<DeviceCodec::kInterleavedSparseHuffman>();
  }
  return nullptr;
}

}  // namespace pqk::cuda
