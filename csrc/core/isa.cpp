#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace pqk {
namespace {

constexpr int kUndecided = -1;
std::atomic<int> forced_isa{kUndecided};

bool runs_here(Isa isa) {
#if defined(PQK_X86_64)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    case Isa::kAvx512Vnni:
      return runs_here(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vbmi2");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

Isa parse(const std::string& name) {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512Vnni}) {
    if (name != isa_name(isa)) continue;
    if (runs_here(isa)) return isa;
    throw std::runtime_error("PQK_FORCE_ISA: this CPU or build does not run '" + name + "'");
  }
  throw std::runtime_error("PQK_FORCE_ISA: expected baseline, avx2 or avx512vnni, got '" + name + "'");
}

Isa default_isa() {
  const char* forced = std::getenv("PQK_FORCE_ISA");
  if (forced != nullptr && *forced != '\0') return parse(forced);
  return supported_isas().back();
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512Vnni:
      return "avx512vnni";
  }
  return "unknown";
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> result;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512Vnni}) {
    if (runs_here(isa)) result.push_back(isa);
  }
  return result;
}

Isa active_isa() {
  int isa = forced_isa.load(std::memory_order_relaxed);
  if (isa == kUndecided) {
    isa = static_cast<int>(default_isa());
    forced_isa.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void force_isa(const std::string& name) {
  forced_isa.store(name.empty() ? kUndecided : static_cast<int>(parse(name)), std::memory_order_relaxed);
}

}  // namespace pqk
