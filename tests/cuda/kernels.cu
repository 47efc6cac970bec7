// Kernels that use what core/cuda/device.h and mma.h promise, for test_emulation.py: part of the emulation's
// library, and compiled by nvcc where there is a GPU. Each function takes device memory and returns nullptr or
// an error.
#include "core/cuda/mma.h"

using namespace pqk::cuda;

namespace {

constexpr int kThreads = 96;

template <bool kBarrier>
__global__ void reverse_kernel(const int* in, int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = in[blockIdx.x * kThreads + threadIdx.x];
  if (kBarrier) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// Each lane adds its two neighbours' values, twice.
template <bool kSync>
__global__ void neighbours_kernel(const int* in, int* out) {
  __shared__ int values[kWarp];
  const int lane = threadIdx.x;
  int value = in[lane];
  for (int step = 0; step < 2; ++step) {
    values[lane] = value;
    if (kSync) __syncwarp();
    value = values[(lane + 1) % kWarp] + values[(lane + kWarp - 1) % kWarp];
    if (kSync) __syncwarp();
  }
  out[lane] = value;
}

// out[output][thread]
__global__ void collectives_kernel(const int* in, int* out) {
  const int lane = threadIdx.x % kWarp, value = in[threadIdx.x];
  int* at = out + threadIdx.x;
  const auto put = [&](int result) {
    *at = result;
    at += blockDim.x;
  };
  put(static_cast<int>(__ballot_sync(kAllLanes, value & 1)));
  put(__any_sync(kAllLanes, value == 7));
  put(__all_sync(kAllLanes, value != 7));
  put(__shfl_sync(kAllLanes, value, lane * 5 + 3));
  put(__shfl_sync(kAllLanes, value, 2, 8));
  put(__shfl_up_sync(kAllLanes, value, 3));
  put(__shfl_up_sync(kAllLanes, value, 1, 4));
  put(__shfl_down_sync(kAllLanes, value, 5));
  put(__shfl_down_sync(kAllLanes, value, 3, 16));
  put(__shfl_xor_sync(kAllLanes, value, 11));
  put(__shfl_xor_sync(kAllLanes, value, 2, 4));
  put(static_cast<int>(__shfl_xor_sync(kAllLanes, static_cast<double>(value) + 0.5, 1) * 2));
  put(static_cast<int>(__match_any_sync(kAllLanes, value % 4)));
  put(__reduce_add_sync(kAllLanes, value));
  put(__reduce_min_sync(kAllLanes, value - 50));
  put(static_cast<int>(__reduce_or_sync(kAllLanes, static_cast<unsigned>(value))));
  // The two halves of a warp go their own ways.
  if (lane < 16) {
    put(__shfl_xor_sync(0x0000ffffu, value, 1));
  } else {
    const int first = __shfl_sync(0xffff0000u, value, 16);
    put(first + __popc(__ballot_sync(0xffff0000u, value & 2)));
  }
  put(__syncthreads_count(value & 1));
  put(__syncthreads_and(value < 90));
  put(__syncthreads_or(value == 7));
}

// Most threads return before the others meet.
__global__ void early_return_kernel(int* out) {
  if (threadIdx.x % 3 != 0) return;
  const uint32_t here = __ballot_sync(kAllLanes, 1);
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(here);
}

// out[thread of the grid] = its block and thread number
__global__ void positions_kernel(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(out + block * (blockDim.x * blockDim.y * blockDim.z) + thread, 1000 * block + thread);
}

// out = in by way of `bytes` of dynamic shared memory.
__global__ void dynamic_kernel(const int* in, int* out, int count) {
  int* values = dynamic_shared<int>();
  for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = in[i];
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = values[count - 1 - i];
}

// out = in + 1, tile by tile of 16 bytes a thread, the next tile under way while one is worked on.
template <bool kWait>
__global__ void async_kernel(const int4* in, int4* out, int tiles, int valid_tiles) {
  __shared__ int4 buffer[2][kWarp];
  const int lane = threadIdx.x;
  const auto start = [&](int tile) {
    if (tile < tiles) cp_async_16(&buffer[tile % 2][lane], in + tile * kWarp + lane, tile < valid_tiles);
    cp_async_commit();
  };
  start(0);
  for (int tile = 0; tile < tiles; ++tile) {
    start(tile + 1);
    if (kWait) cp_async_wait<1>();
    __syncwarp();
    const int4 value = buffer[tile % 2][(lane + 1) % kWarp];
    out[tile * kWarp + (lane + 1) % kWarp] = make_int4(value.x + 1, value.y + 1, value.z + 1, value.w + 1);
    __syncwarp();
  }
}

// kind 0: s8, 1: u8 by s8, 2: s8 by u8. a[16][32 or kept 32], b[8][32 or 64], d[16][8], metadata[lane].
__global__ void mma_kernel(int kind, bool sparse, bool by_ldmatrix, const uint32_t* a, const uint32_t* b,
                           const uint32_t* metadata, int* d) {
  const int lane = threadIdx.x, group = lane / 4, quad = lane % 4;
  uint32_t fragment_a[4], fragment_b[4] = {};
  __shared__ __align__(16) uint32_t shared_a[16][8];
  for (int i = lane; i < 16 * 8; i += kWarp) shared_a[i / 8][i % 8] = a[i];
  __syncwarp();
  if (by_ldmatrix) {
    // Matrices: rows 0-7, rows 8-15, and the same of the second 16 columns.
    ldmatrix_x4(fragment_a, &shared_a[lane % 16][lane / 16 * 4]);
  } else {
    for (int r = 0; r < 4; ++r) fragment_a[r] = shared_a[group + 8 * (r % 2)][quad + 4 * (r / 2)];
  }
  const int depth = sparse ? 16 : 8;
  for (int r = 0; r < depth / 4; ++r) fragment_b[r] = b[group * depth + quad + 4 * r];
  int sum[4];
  for (int r = 0; r < 4; ++r) sum[r] = d[(group + 8 * (r / 2)) * 8 + 2 * quad + r % 2];
  const uint32_t dense_b[2] = {fragment_b[0], fragment_b[1]};
  if (sparse) {
    if (kind == 0) mma_sparse_s8(sum, fragment_a, fragment_b, metadata[lane]);
    if (kind == 1) mma_sparse_u8s8(sum, fragment_a, fragment_b, metadata[lane]);
    if (kind == 2) mma_sparse_s8u8(sum, fragment_a, fragment_b, metadata[lane]);
  } else {
    if (kind == 0) mma_s8(sum, fragment_a, dense_b);
    if (kind == 1) mma_u8s8(sum, fragment_a, dense_b);
    if (kind == 2) mma_s8u8(sum, fragment_a, dense_b);
  }
  for (int r = 0; r < 4; ++r) d[(group + 8 * (r / 2)) * 8 + 2 * quad + r % 2] = sum[r];
}

// out[output][i] for words x, y and the float of x's bits.
__global__ void scalars_kernel(const uint32_t* x_words, const uint32_t* y_words, uint32_t* out, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t x = x_words[i], y = y_words[i];
  uint32_t* at = out + i;
  const auto put = [&](uint32_t result) {
    *at = result;
    at += count;
  };
  put(static_cast<uint32_t>(__popc(x)));
  put(static_cast<uint32_t>(__clz(static_cast<int>(x))));
  put(static_cast<uint32_t>(__ffs(static_cast<int>(x))));
  put(__brev(x));
  put(__umulhi(x, y));
  put(__byte_perm(x, y, 0x0c51));
  put(__byte_perm(x, y, 0x7362));
  put(__funnelshift_l(x, y, y & 63));
  put(__funnelshift_r(x, y, y & 63));
  put(static_cast<uint32_t>(__dp4a(static_cast<int>(x), static_cast<int>(y), 5)));
  put(__dp4a(x, y, 5u));
  put(static_cast<uint32_t>(__float2int_rn(__uint_as_float(x))));
  put(__float_as_uint(__fadd_rn(__fmul_rn(__uint_as_float(x), 3.0f), 0.1f)));
}

// What must not be done.
__global__ void lonely_barrier_kernel(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void wrong_mask_kernel(int* out) { out[threadIdx.x] = static_cast<int>(__ballot_sync(0xfffeu, 1)); }
__global__ void absent_lane_kernel(int* out) {
  if (threadIdx.x < 31) out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  __syncthreads();
}
__global__ void misaligned_kernel(const int* in, int* out) {
  const int4 value = *reinterpret_cast<const int4*>(in + 1);
  out[threadIdx.x] = value.x + value.w;
}
__global__ void out_of_bounds_kernel(int* out, int index) {
  __shared__ int values[8];
  values[index + threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
__global__ void beyond_dynamic_kernel(int index) { dynamic_shared<int>()[index] = 1; }
__global__ void uninitialised_kernel(int* out) {
  __shared__ int values[kWarp];
  out[threadIdx.x] = values[threadIdx.x];
  out[kWarp + threadIdx.x] = dynamic_shared<int>()[threadIdx.x];
  values[threadIdx.x] = 0;
  dynamic_shared<int>()[threadIdx.x] = 0;
}

}  // namespace

#define PQK_TEST extern "C" __attribute__((visibility("default"))) const char*

PQK_TEST pqk_test_reverse(const int* in, int* out, int blocks, int barrier) {
  return barrier ? launch(reverse_kernel<true>, blocks, kThreads, 0, nullptr, in, out)
                 : launch(reverse_kernel<false>, blocks, kThreads, 0, nullptr, in, out);
}
PQK_TEST pqk_test_neighbours(const int* in, int* out, int sync) {
  return sync ? launch(neighbours_kernel<true>, 1, kWarp, 0, nullptr, in, out)
              : launch(neighbours_kernel<false>, 1, kWarp, 0, nullptr, in, out);
}
PQK_TEST pqk_test_collectives(const int* in, int* out) {
  return launch(collectives_kernel, 1, kThreads, 0, nullptr, in, out);
}
PQK_TEST pqk_test_early_return(int* out) { return launch(early_return_kernel, 1, 80, 0, nullptr, out); }
PQK_TEST pqk_test_positions(int* out, const unsigned* sizes) {
  return launch(positions_kernel, dim3(sizes[0], sizes[1], sizes[2]), dim3(sizes[3], sizes[4], sizes[5]), 0,
                nullptr, out);
}
PQK_TEST pqk_test_dynamic(const int* in, int* out, int count, int shared_bytes) {
  return launch(dynamic_kernel, 1, 64, static_cast<size_t>(shared_bytes), nullptr, in, out, count);
}
PQK_TEST pqk_test_async(const void* in, void* out, int tiles, int valid_tiles, int wait) {
  const auto* from = static_cast<const int4*>(in);
  auto* to = static_cast<int4*>(out);
  return wait ? launch(async_kernel<true>, 1, kWarp, 0, nullptr, from, to, tiles, valid_tiles)
              : launch(async_kernel<false>, 1, kWarp, 0, nullptr, from, to, tiles, valid_tiles);
}
PQK_TEST pqk_test_mma(int kind, int sparse, int by_ldmatrix, const uint32_t* a, const uint32_t* b,
                      const uint32_t* metadata, int* d, int threads) {
  return launch(mma_kernel, 1, threads, 0, nullptr, kind, sparse != 0, by_ldmatrix != 0, a, b, metadata, d);
}
PQK_TEST pqk_test_scalars(const uint32_t* x, const uint32_t* y, uint32_t* out, int count) {
  return launch(scalars_kernel, ceil_div(count, 64), 64, 0, nullptr, x, y, out, count);
}
PQK_TEST pqk_test_lonely_barrier(int* out) { return launch(lonely_barrier_kernel, 1, 64, 0, nullptr, out); }
PQK_TEST pqk_test_wrong_mask(int* out) { return launch(wrong_mask_kernel, 1, kWarp, 0, nullptr, out); }
PQK_TEST pqk_test_absent_lane(int* out) { return launch(absent_lane_kernel, 1, kWarp, 0, nullptr, out); }
PQK_TEST pqk_test_misaligned(const int* in, int* out) {
  return launch(misaligned_kernel, 1, kWarp, 0, nullptr, in, out);
}
PQK_TEST pqk_test_out_of_bounds(int* out, int index) {
  return launch(out_of_bounds_kernel, 1, 4, 0, nullptr, out, index);
}
PQK_TEST pqk_test_beyond_dynamic(int index) { return launch(beyond_dynamic_kernel, 1, 1, 64, nullptr, index); }
PQK_TEST pqk_test_uninitialised(int* out, int blocks) {
  return launch(uninitialised_kernel, blocks, kWarp, kWarp * sizeof(int), nullptr, out);
}
PQK_TEST pqk_test_launch(int grid, int block, int shared_bytes) {
  return launch(beyond_dynamic_kernel, static_cast<unsigned>(grid), static_cast<unsigned>(block),
                static_cast<size_t>(shared_bytes), nullptr, 0);
}
