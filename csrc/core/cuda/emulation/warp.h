// CUDA's barriers and warp collectives. Included by cuda.h alone.
#pragma once

namespace pqk::cuda::emulation {

inline Vote vote_at_barrier(bool value, const std::source_location& where) {
  return block_barrier(value, {where.file_name(), where.line(), where.column()});
}

// A value of up to 8 bytes, and what the lane wants done with the others'.
struct Exchange : Request {
  uint64_t value = 0;
  unsigned source = 0;  // lane
  uint64_t result = 0;
};

inline void shuffle(Request* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    auto& own = *static_cast<Exchange*>(lanes[lane]);
    const auto* source = static_cast<Exchange*>(lanes[own.source]);
    if (source == nullptr) {
      memset(&own.result, kPoison, sizeof own.result);
    } else {
      own.result = source->value;
    }
  }
}

inline void ballot(Request* const* lanes) {
  uint64_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] != nullptr && static_cast<Exchange*>(lanes[lane])->value != 0) bits |= uint64_t{1} << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] != nullptr) static_cast<Exchange*>(lanes[lane])->result = bits;
  }
}

// Which lanes have the same value.
inline void match(Request* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    auto& own = *static_cast<Exchange*>(lanes[lane]);
    for (int other = 0; other < 32; ++other) {
      if (lanes[other] != nullptr && static_cast<Exchange*>(lanes[other])->value == own.value) {
        own.result |= uint64_t{1} << other;
      }
    }
  }
}

template <class Operation>
void reduce(Request* const* lanes) {
  bool first = true;
  uint32_t total = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    const auto value = static_cast<uint32_t>(static_cast<Exchange*>(lanes[lane])->value);
    total = first ? value : Operation()(total, value);
    first = false;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] != nullptr) static_cast<Exchange*>(lanes[lane])->result = total;
  }
}

inline void nothing(Request* const*) {}

inline uint64_t exchange(void (*complete)(Request* const*), const char* name, uint32_t mask, uint64_t value,
                         unsigned source = 0) {
  Exchange request;
  request.complete = complete;
  request.name = name;
  request.value = value;
  request.source = source;
  warp_collective(mask, request);
  return request.result;
}

template <class T>
T shuffle_from(const char* name, uint32_t mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = exchange(shuffle, name, mask, bits, source);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace pqk::cuda::emulation

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  pqk::cuda::emulation::vote_at_barrier(false, where);
}
inline int __syncthreads_count(int value, std::source_location where = std::source_location::current()) {
  return pqk::cuda::emulation::vote_at_barrier(value != 0, where).count;
}
inline int __syncthreads_and(int value, std::source_location where = std::source_location::current()) {
  return pqk::cuda::emulation::vote_at_barrier(value != 0, where).all;
}
inline int __syncthreads_or(int value, std::source_location where = std::source_location::current()) {
  return pqk::cuda::emulation::vote_at_barrier(value != 0, where).any;
}

inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  pqk::cuda::emulation::exchange(pqk::cuda::emulation::nothing, "__syncwarp", mask, 0);
}
// Any set of lanes with this one in it would be right.
inline uint32_t __activemask() { return 1u << pqk::cuda::emulation::lane(); }
inline uint32_t __ballot_sync(uint32_t mask, int value) {
  return static_cast<uint32_t>(
      pqk::cuda::emulation::exchange(pqk::cuda::emulation::ballot, "__ballot_sync", mask, value != 0));
}
inline int __any_sync(uint32_t mask, int value) { return __ballot_sync(mask, value) != 0; }
inline int __all_sync(uint32_t mask, int value) { return __ballot_sync(mask, value == 0) == 0; }

// Lanes exchange values within segments of `width` lanes, a power of two.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const unsigned segment = pqk::cuda::emulation::lane() & ~(width - 1u);
  return pqk::cuda::emulation::shuffle_from("__shfl_sync", mask, value,
                                            segment | (static_cast<unsigned>(source) & (width - 1u)));
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = pqk::cuda::emulation::lane(), within = lane & (width - 1u);
  return pqk::cuda::emulation::shuffle_from("__shfl_up_sync", mask, value,
                                            delta > within ? lane : lane - delta);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = pqk::cuda::emulation::lane(), within = lane & (width - 1u);
  return pqk::cuda::emulation::shuffle_from("__shfl_down_sync", mask, value,
                                            delta >= width - within ? lane : lane + delta);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32) {
  const unsigned lane = pqk::cuda::emulation::lane(), other = (lane ^ static_cast<unsigned>(lane_mask)) & 31;
  return pqk::cuda::emulation::shuffle_from("__shfl_xor_sync", mask, value,
                                            other > (lane | (width - 1u)) ? lane : other);
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return static_cast<uint32_t>(
      pqk::cuda::emulation::exchange(pqk::cuda::emulation::match, "__match_any_sync", mask, bits));
}

#define PQK_REDUCE(name, T, expression)                                                                        \
  inline T name(uint32_t mask, T value) {                                                                      \
    struct Operation {                                                                                         \
      uint32_t operator()(uint32_t left, uint32_t right) const {                                               \
        [[maybe_unused]] const T a = static_cast<T>(left), b = static_cast<T>(right);                          \
        return static_cast<uint32_t>(expression);                                                              \
      }                                                                                                        \
    };                                                                                                         \
    return static_cast<T>(pqk::cuda::emulation::exchange(pqk::cuda::emulation::reduce<Operation>, #name, mask, \
                                                         static_cast<uint32_t>(value)));                       \
  }
PQK_REDUCE(__reduce_add_sync, int, left + right)
PQK_REDUCE(__reduce_add_sync, unsigned, left + right)
PQK_REDUCE(__reduce_min_sync, int, a < b ? a : b)
PQK_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
PQK_REDUCE(__reduce_max_sync, int, a < b ? b : a)
PQK_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
PQK_REDUCE(__reduce_and_sync, unsigned, a& b)
PQK_REDUCE(__reduce_or_sync, unsigned, a | b)
PQK_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef PQK_REDUCE
