// pqk_ext._engine_cuda: the inference engine on NVIDIA GPUs; the same file bound to the kernels that run on the
// CPU is _engine_cuda_emulated, for tests. Needs no torch. Imported for device="cuda" only.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/cuda/engine/execute.h"
#include "python/errors.h"
#include "python/gil.h"
#include "python/raw_graph.h"
#include "python/samples.h"
#if defined(PQK_CUDA_EMULATION)
#include "core/cuda/emulation/grid.h"
#endif

namespace py = pybind11;

namespace pqk::python {
namespace {

using engine::device::Engine;
using engine::device::Executor;

Executor executor_of(const std::string& name) {
  if (name == "auto") return Executor::kAutomatic;
  if (name == "resident") return Executor::kResident;
  if (name == "steps") return Executor::kSteps;
  throw py::value_error("executor must be 'auto', 'resident' or 'steps', got '" + name + "'");
}

class PyEngine {
 public:
  PyEngine(const py::object& graph, int device, int64_t max_activation_bytes, const std::string& executor) {
    std::vector<py::array> kept;
    const engine::Graph checked = checked_graph(graph, max_activation_bytes, {}, kept);
    samples_ = Samples(checked);
    const Executor wanted = executor_of(executor);
    without_gil([&] { engine_ = std::make_unique<Engine>(checked, device, wanted); });
  }

  py::array run(const py::object& x, const py::object& out) const { return samples_.run(*engine_, x, out); }

  std::vector<std::tuple<std::string, std::string, double>> profile(const py::object& x, int repeats) const {
    const py::array input = samples_.input_to_profile(x, repeats);
    const float* from = static_cast<const float*>(input.data());
    std::vector<double> seconds;
    without_gil([&] { seconds = engine_->profile(from, repeats); });
    std::vector<std::tuple<std::string, std::string, double>> result;
    for (size_t i = 0; i < seconds.size(); ++i) {
      const auto& [node, kernel] = engine_->program().names[i];
      result.emplace_back(node, kernel, seconds[i]);
    }
    return result;
  }

  std::vector<std::pair<std::string, std::string>> kernels() const {
    std::vector<std::pair<std::string, std::string>> result;
    for (const auto& [node, kernel] : engine_->program().names) result.emplace_back(node, kernel);
    return result;
  }

  const Engine& engine() const { return *engine_; }

 private:
  std::unique_ptr<Engine> engine_;
  Samples samples_;
};

}  // namespace
}  // namespace pqk::python

#if defined(PQK_CUDA_EMULATION)
#define PQK_MODULE _engine_cuda_emulated
#else
#define PQK_MODULE _engine_cuda
#endif

PYBIND11_MODULE(PQK_MODULE, module) {
  using pqk::python::PyEngine;
  module.doc() = "The inference engine of pqk_ext on NVIDIA GPUs; needs no torch.";
  py::register_exception_translator(&pqk::python::translate_format_error);
  py::class_<PyEngine>(module, "Engine", py::module_local(),
                       "A graph made ready to run on a GPU; see pqk_ext.runtime.Model.")
      .def(py::init<const py::object&, int, int64_t, const std::string&>(), py::arg("graph"), py::kw_only(),
           py::arg("device"), py::arg("max_activation_bytes"), py::arg("executor") = "auto")
      .def("run", &PyEngine::run, py::arg("x"), py::arg("out") = py::none(),
           "Outputs for a float32 array (N, *input shape), with the GIL released.")
      .def("profile", &PyEngine::profile, py::arg("x"), py::arg("repeats"),
           "(node, kernel, least seconds) of every step for the first image, each in a launch of its own.")
      .def_property_readonly("kernels", &PyEngine::kernels, "(node, kernel) of every step.")
      .def_property_readonly("executor", [](const PyEngine& self) { return self.engine().executor(); })
      .def_property_readonly("device_name", [](const PyEngine& self) { return self.engine().device().name; })
      .def_property_readonly("isa", [](const PyEngine& self) { return self.engine().device().architecture; })
      .def_property_readonly("weight_bytes",
                             [](const PyEngine& self) { return self.engine().program().weight_bytes; })
      .def_property_readonly("activation_bytes",
                             [](const PyEngine& self) { return self.engine().program().arena_bytes; });
}
