// core/cuda/mma.h on the CPU, from the fragment layouts of the PTX ISA. Included by it alone.
#pragma once

namespace pqk::cuda {
namespace emulation {

// What a lane brings to d += A * B.
struct MmaRequest : Request {
  int* d = nullptr;
  const uint32_t* a = nullptr;
  const uint32_t* b = nullptr;
  uint32_t metadata = 0;
};

struct LdmatrixRequest : Request {
  uint32_t* r = nullptr;
  const unsigned char* row = nullptr;
};

void require_whole_warp(Request* const* lanes);
// A is int8_t or uint8_t, B likewise; kSparse: A has 64 columns, of which `metadata` says which 32 are kept.
template <class A, class B, bool kSparse>
void complete_mma(Request* const* lanes);
void complete_ldmatrix(Request* const* lanes);

template <class A, class B, bool kSparse>
void mma(const char* name, int* d, const uint32_t* a, const uint32_t* b, uint32_t metadata) {
  MmaRequest request;
  request.complete = complete_mma<A, B, kSparse>;
  request.name = name;
  request.d = d;
  request.a = a;
  request.b = b;
  request.metadata = metadata;
  warp_collective(kAllLanes, request);
}

}  // namespace emulation

#define PQK_DENSE_MMA(name, A, B)                                                 \
  inline void name(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    emulation::mma<A, B, false>(#name, d, a, b, 0);                               \
  }
PQK_DENSE_MMA(mma_s8, int8_t, int8_t)
PQK_DENSE_MMA(mma_u8s8, uint8_t, int8_t)
PQK_DENSE_MMA(mma_s8u8, int8_t, uint8_t)
#undef PQK_DENSE_MMA

#define PQK_SPARSE_MMA(name, A, B)                                                                   \
  inline void name(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) { \
    emulation::mma<A, B, true>(#name, d, a, b, metadata);                                            \
  }
PQK_SPARSE_MMA(mma_sparse_s8, int8_t, int8_t)
PQK_SPARSE_MMA(mma_sparse_u8s8, uint8_t, int8_t)
PQK_SPARSE_MMA(mma_sparse_s8u8, int8_t, uint8_t)
#undef PQK_SPARSE_MMA

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  emulation::LdmatrixRequest request;
  request.complete = emulation::complete_ldmatrix;
  request.name = "ldmatrix_x4";
  request.r = r;
  request.row = static_cast<const unsigned char*>(shared);
  emulation::warp_collective(kAllLanes, request);
}

inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  emulation::start_copy(shared, global, valid);
}
inline void cp_async_commit() { emulation::commit_copies(); }
template <int kPending>
void cp_async_wait() {
  emulation::wait_for_copies(kPending);
}

}  // namespace pqk::cuda
