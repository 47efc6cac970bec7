}  // namespace PQK_ISA
}  // namespace pqk

#if PQK_ISA_LEVEL >= 1
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
