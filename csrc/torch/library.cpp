// The op library's own calls; every operator registers itself in its own file.
#include "core/isa.h"
#include "torch/check.h"

namespace {

std::string isa_in_use() { return pqk::isa_name(pqk::active_isa()); }

}  // namespace

STABLE_TORCH_LIBRARY(pqk, m) { m.def("isa_in_use() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(pqk, CompositeExplicitAutograd, m) { m.impl("isa_in_use", TORCH_BOX(&isa_in_use)); }
