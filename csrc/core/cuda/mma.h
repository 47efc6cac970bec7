// Tensor cores on bytes, and the copies that feed them. A warp works together: all 32 lanes call, and every
// lane passes its fragment as the PTX ISA's chapters on mma.m16n8k32 and sparse mma.m16n8k64 lay them out. With
// group = lane / 4 and quad = lane % 4, byte i of register r is
//   A, 16 x 32 row-major:     row group + 8 * (r % 2),  column 4 * quad + i + 16 * (r / 2)
//   B, 32 (or 64) x 8:        row 4 * quad + i + 16 * r, column group
//   C and D, 16 x 8, int32:   row group + 8 * (r / 2),  column 2 * quad + r % 2
// Sparse A, 16 x 64 with at most 2 of each 4 neighbours of a row, holds the 16 x 32 kept bytes as above.
// `metadata` says for kept bytes 16 * (quad / 2) to 16 * (quad / 2) + 15 of row group + 8 * (quad % 2), so not
// for the lane's own bytes, which of its 4 each is: the first in bits 0 and 1. Of the two kept of a group of 4
// the first has the smaller index.
#pragma once

#include "core/cuda/device.h"

#if defined(PQK_CUDA_EMULATION)
#include "core/cuda/emulation/mma.h"
#else

namespace pqk::cuda {

#define PQK_DENSE_MMA(name, types)                                                                    \
  __device__ __forceinline__ void name(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types                                       \
                 ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                         \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                 \
  }
// d += A * B, where A is 16 x 32 and B 32 x 8. The names give A's type first.
PQK_DENSE_MMA(mma_s8, "s8.s8")
PQK_DENSE_MMA(mma_u8s8, "u8.s8")
PQK_DENSE_MMA(mma_s8u8, "s8.u8")
#undef PQK_DENSE_MMA

#define PQK_SPARSE_MMA(name, types)                                                                        \
  __device__ __forceinline__ void name(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],        \
                                       uint32_t metadata) {                                                \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32." types                       \
                 ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"            \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), \
                   "r"(metadata));                                                                         \
  }
// d += A * B, where A is 16 x 64, 2:4 sparse, and B 64 x 8. The names give A's type first.
PQK_SPARSE_MMA(mma_sparse_s8, "s8.s8")
PQK_SPARSE_MMA(mma_sparse_u8s8, "u8.s8")
PQK_SPARSE_MMA(mma_sparse_s8u8, "s8.u8")
#undef PQK_SPARSE_MMA

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 16-byte matrices. Lane l gives the 16-byte aligned address of row l % 8 of matrix l / 8, and gets in
// r[m] the 4 bytes at 4 * (l % 4) of row l / 4 of matrix m.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}

// Starts copying 16 bytes, aligned on both sides; where not `valid` zeros are written and nothing is read.
// They are there after the thread's own cp_async_wait, and for other threads after a barrier behind it.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the kPending youngest groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace pqk::cuda

#endif
