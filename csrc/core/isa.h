// Instruction-set dispatch. Files named *_cpu.cpp are compiled once per instruction set, into namespace
// pqk::baseline, pqk::avx2 or pqk::avx512vnni; the process picks one set at first use, or obeys PQK_FORCE_ISA.
#pragma once

#include <string>
#include <vector>

namespace pqk {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512Vnni = 2 };

const char* isa_name(Isa isa);
// The sets that this build carries and this CPU runs, slowest first.
std::vector<Isa> supported_isas();
// The set in use. Throws std::runtime_error when PQK_FORCE_ISA names an unknown or unsupported one.
Isa active_isa();
// Forces a set by name ("baseline", "avx2", "avx512vnni"); an empty name returns to the default choice.
void force_isa(const std::string& name);

}  // namespace pqk

// Declares a kernel of function type `Type` for every instruction set, and `name()` that returns the active
// one:
//   using QuantizeKernel = void(const QuantizeParams&, int64_t begin, int64_t end);
//   PQK_CPU_KERNEL(QuantizeKernel, quantize_kernel)
#if defined(PQK_X86_64)
#define PQK_CPU_KERNEL(Type, name)                                               \
  namespace baseline {                                                           \
  Type name;                                                                     \
  }                                                                              \
  namespace avx2 {                                                               \
  Type name;                                                                     \
  }                                                                              \
  namespace avx512vnni {                                                         \
  Type name;                                                                     \
  }                                                                              \
  inline Type* active_##name() {                                                 \
    static Type* const table[] = {baseline::name, avx2::name, avx512vnni::name}; \
    return table[static_cast<int>(active_isa())];                                \
  }
#else
#define PQK_CPU_KERNEL(Type, name) \
  namespace baseline {             \
  Type name;                       \
  }                                \
  inline Type* active_##name() { return baseline::name; }
#endif
