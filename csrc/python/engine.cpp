// The inference engine: a Graph of pqk_ext/runtime/graph.py in, arrays in and out.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/engine/execute.h"
#include "core/float_conv2d.h"
#include "python/gil.h"
#include "python/module.h"
#include "python/raw_graph.h"
#include "python/samples.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

using engine::Engine;

class PyEngine {
 public:
  PyEngine(const py::object& graph, int num_threads, int64_t max_activation_bytes,
           const engine::KernelChoices& kernels, const engine::KernelTable& kernel_table, bool measure,
           const CodedWeights& coded)
      : coded_(coded) {
    check_num_threads(num_threads);
    std::vector<py::array> kept;
    const engine::Graph checked = checked_graph(graph, max_activation_bytes, coded_, kept);
    samples_ = Samples(checked);
    without_gil([&] {
      engine_ =
          std::make_unique<Engine>(checked, num_threads, engine::KernelOptions{kernels, kernel_table, measure});
    });
  }

  py::array run(const py::object& x, const py::object& out) const { return samples_.run(*engine_, x, out); }

  std::vector<std::tuple<std::string, std::string, double>> profile(const py::object& x, int repeats) const {
    const py::array input = samples_.input_to_profile(x, repeats);
    const float* from = static_cast<const float*>(input.data());
    std::vector<double> seconds;
    without_gil([&] { seconds = engine_->profile(from, repeats); });
    std::vector<std::tuple<std::string, std::string, double>> result;
    for (size_t i = 0; i < seconds.size(); ++i) {
      result.emplace_back(engine_->plan().infos()[i].node, engine_->plan().infos()[i].kernel, seconds[i]);
    }
    return result;
  }

  std::vector<std::pair<std::string, std::string>> kernels() const {
    std::vector<std::pair<std::string, std::string>> result;
    for (const engine::StepInfo& info : engine_->plan().infos()) result.emplace_back(info.node, info.kernel);
    return result;
  }

  const Engine& engine() const { return *engine_; }

 private:
  CodedWeights coded_;  // whose bytes the engine reads
  std::unique_ptr<Engine> engine_;
  Samples samples_;
};

}  // namespace

void register_engine(py::module_& module) {
  module.def(
      "conv2d_kernels",
      [] {
        std::vector<std::string> names;
        for (const Conv2dKernel& kernel : conv2d_kernels()) names.emplace_back(kernel.name);
        return names;
      },
      "Names of the kernels for convolutions and linear layers.");
  module.def(
      "float_conv2d_kernels",
      [] {
        std::vector<std::string> names;
        for (const FloatConv2dKernel& kernel : float_conv2d_kernels()) names.emplace_back(kernel.name);
        return names;
      },
      "The same for float codebooks.");
  py::class_<PyEngine>(module, "Engine", "A graph made ready to run; see pqk_ext.runtime.Model.")
      .def(py::init<const py::object&, int, int64_t, const engine::KernelChoices&, const engine::KernelTable&,
                    bool, const CodedWeights&>(),
           py::arg("graph"), py::kw_only(), py::arg("num_threads"), py::arg("max_activation_bytes"),
           py::arg("kernels") = engine::KernelChoices{}, py::arg("kernel_table") = engine::KernelTable{},
           py::arg("measure") = false, py::arg("coded") = CodedWeights{})
      .def("run", &PyEngine::run, py::arg("x"), py::arg("out") = py::none(),
           "Outputs for a float32 array (N, *input shape), with the GIL released.")
      .def("profile", &PyEngine::profile, py::arg("x"), py::arg("repeats"),
           "(node, kernel, least seconds) of every step for the first image, on one thread.")
      .def_property_readonly("kernels", &PyEngine::kernels, "(node, kernel) of every step.")
      .def_property_readonly(
          "measured", [](const PyEngine& self) { return self.engine().plan().measured(); },
          "Seconds by layer and kernel, of layers that kernel_table lacked.")
      .def_property_readonly("isa", [](const PyEngine& self) { return self.engine().plan().isa(); })
      .def_property_readonly("num_threads", [](const PyEngine& self) { return self.engine().num_threads(); })
      .def_property_readonly("weight_bytes",
                             [](const PyEngine& self) { return self.engine().plan().weight_bytes(); })
      .def_property_readonly("activation_bytes",
                             [](const PyEngine& self) { return self.engine().plan().arena_bytes(); });
}

}  // namespace pqk::python
