#include "core/isa.h"

#include <pybind11/stl.h>

#include "python/module.h"

namespace pqk::python {

void register_isa(pybind11::module_& module) {
  module.def(
      "active_isa", [] { return std::string(isa_name(active_isa())); }, "Name of the instruction set in use.");
  module.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (const Isa isa : supported_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "Instruction sets that this build carries and this CPU runs, slowest first.");
  module.def("force_isa", &force_isa, pybind11::arg("name"),
             "Use the named instruction set in this process; an empty name returns to the default.");
  module.def(
      "build_config",
      [] {
        pybind11::dict config;
        config["version"] = PQK_VERSION;
        config["compiler"] = PQK_COMPILER;
        config["torch_ops"] = PQK_WITH_TORCH != 0;
        config["cuda_ops"] = PQK_WITH_CUDA != 0;
        config["cuda_engine"] = PQK_WITH_NVCC != 0;
        config["torch_built_against"] = PQK_TORCH_VERSION;
        return config;
      },
      "How this binary was made.");
}

}  // namespace pqk::python
