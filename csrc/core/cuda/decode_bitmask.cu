#include "core/cuda/decode_bitmask.h"

#include "core/cuda/coded_memory.h"
#include "core/cuda/coded_plan.h"
#include "core/cuda/elements.h"

namespace pqk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOwn = 16;                // weights of a thread
constexpr int kTile = kThreads * kOwn;  // of a block
constexpr int kScanThreads = 1024;

// What the working memory holds.
struct alignas(16) Places {
  int status;
  int64_t values[1];  // before each tile: non-zero weights; first those in it
};

int64_t tiles_of(const BitmaskPayload& payload) { return ceil_div(payload.count, int64_t{kTile}); }

// Bits of the 16 weights from `at` on, a multiple of 16.
__device__ __forceinline__ uint32_t mask_of(const BitmaskPayload& payload, int64_t mask_bytes, int64_t at) {
  const DeviceBytes mask{payload.data, payload.data + mask_bytes};
  const uint8_t* const from = payload.data + at / 8;
  return byte_or_zero(mask, from) | byte_or_zero(mask, from + 1) << 8;
}

// The sum over the threads before this one, and over all of the block, which call together.
template <int kBlock>
__device__ int sum_before(int own, int& all) {
  __shared__ int of_warps[kBlock / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int end = own;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int before = __shfl_up_sync(kAllLanes, end, distance);
    if (lane >= distance) end += before;
  }
  __syncthreads();  // the sums of the last call are read
  if (lane == kWarp - 1) of_warps[warp] = end;
  __syncthreads();
  int before = end - own;
  all = 0;
  for (int i = 0; i < kBlock / kWarp; ++i) {
    if (i < warp) before += of_warps[i];
    all += of_warps[i];
  }
  return before;
}

__global__ void __launch_bounds__(kThreads)
    bitmask_count_kernel(BitmaskPayload payload, int64_t mask_bytes, int64_t tiles, Places* places) {
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int own = __popc(mask_of(payload, mask_bytes, tile * kTile + kOwn * static_cast<int>(threadIdx.x)));
    int all = 0;
    sum_before<kThreads>(own, all);
    if (threadIdx.x == 0) places->values[tile] = all;
  }
}

// One block: from the tiles' counts to the places of their first values, and whether the payload has so many.
__global__ void __launch_bounds__(kScanThreads)
    bitmask_place_kernel(BitmaskPayload payload, int64_t mask_bytes, int64_t tiles, Places* places) {
  int64_t total = 0;
  for (int64_t first = 0; first < tiles; first += kScanThreads) {
    const int64_t tile = first + threadIdx.x;
    int all = 0;
    const int before = sum_before<kScanThreads>(tile < tiles ? static_cast<int>(places->values[tile]) : 0, all);
    if (tile < tiles) places->values[tile] = total + before;
    total += all;
  }
  if (threadIdx.x != 0) return;
  const int spare = payload.count % 8 == 0 ? 0 : payload.data[mask_bytes - 1] >> (payload.count % 8);
  const int64_t values = payload.size - mask_bytes;
  int status = spare == 0 ? kWhole : kPaddingFault;
  if (total < values) status = kSizeFault;
  if (total > values) status = kTruncated;
  places->status = status;
}

// A tile's values lie in shared memory, from where each thread takes its own.
__global__ void __launch_bounds__(kThreads)
    bitmask_expand_kernel(BitmaskPayload payload, int64_t mask_bytes, int64_t tiles, Places* places,
                          int8_t* output) {
  __shared__ uint4 memory[kTile / 16 + 1];
  const uint8_t* const values = reinterpret_cast<const uint8_t*>(memory);
  const DeviceBytes bytes{payload.data, payload.data + payload.size};
  __shared__ bool whole;  // as one thread sees it: other blocks may find a fault meanwhile
  if (threadIdx.x == 0) whole = places->status == kWhole;
  __syncthreads();
  if (!whole) return;
  bool zero = false;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t at = tile * kTile + kOwn * static_cast<int>(threadIdx.x);
    const uint32_t mask = mask_of(payload, mask_bytes, at);
    int all = 0;
    const int before = sum_before<kThreads>(__popc(mask), all);
    const uint8_t* const first = payload.data + mask_bytes + places->values[tile];
    const int skip = static_cast<int>(reinterpret_cast<uintptr_t>(first) % 16);
    for (int i = threadIdx.x; i * 16 < skip + all; i += kThreads) {
      memory[i] = load_vector(bytes, first - skip + 16 * i);
    }
    __syncthreads();
    Pack<int8_t, kOwn> weights;
    int next = skip + before;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool set = (mask >> i & 1) != 0;
      weights.values[i] = set ? static_cast<int8_t>(values[next]) : int8_t{0};
      zero |= set && weights.values[i] == 0;
      next += set;
    }
    store_pack(output, at, payload.count, weights);
  }
  if (zero) atomicMax(&places->status, static_cast<int>(kValueFault));
}

}  // namespace

int64_t bitmask_workspace(const BitmaskPayload& payload) {
  return static_cast<int64_t>(sizeof(Places)) + tiles_of(payload) * static_cast<int64_t>(sizeof(int64_t));
}

const char* decode_bitmask(const BitmaskPayload& payload, void* workspace, int8_t* output) {
  const DeviceGuard guard(payload.device);
  auto* const places = static_cast<Places*>(workspace);
  const int64_t tiles = tiles_of(payload), mask_bytes = payload.mask_bytes();
  const dim3 grid(grid_size(tiles));
  const char* error =
      launch(bitmask_count_kernel, grid, dim3(kThreads), 0, payload.stream, payload, mask_bytes, tiles, places);
  if (error == nullptr) {
    error = launch(bitmask_place_kernel, dim3(1), dim3(kScanThreads), 0, payload.stream, payload, mask_bytes,
                   tiles, places);
  }
  if (error != nullptr) return error;
  return launch(bitmask_expand_kernel, grid, dim3(kThreads), 0, payload.stream, payload, mask_bytes, tiles,
                places, output);
}

}  // namespace pqk::cuda
