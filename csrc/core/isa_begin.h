// Opens the region of a *_cpu.cpp file that is compiled for one instruction set. No include may follow it
// before isa_end.h: headers compiled under a target would leak its instructions into shared inline functions.
// PQK_ISA is the namespace, PQK_ISA_LEVEL 0 baseline, 1 AVX2, 2 AVX-512 with VNNI, VBMI and VBMI2.
#if PQK_ISA_LEVEL >= 2
#if defined(__clang__)
#pragma clang attribute push(                                                                             \
    __attribute__((target(                                                                                \
        "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")
#pragma GCC target("prefer-vector-width=512")
#endif
#elif PQK_ISA_LEVEL == 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif
#endif

namespace pqk {
namespace PQK_ISA {
