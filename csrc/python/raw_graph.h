// A Graph of pqk_ext/runtime/graph.py, checked: what engines are made from.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/graph.h"

namespace pqk::python {

std::string type_name(const pybind11::handle& object);

// Codec and payload, by index of the node.
using CodedWeights = std::map<size_t, std::pair<std::string, pybind11::bytes>>;

// Throws FormatError for a graph that breaks a rule. The result points into `graph`'s arrays, into `kept`,
// which gets contiguous copies of those that are not, and into `coded`.
engine::Graph checked_graph(const pybind11::object& graph, int64_t max_activation_bytes,
                            const CodedWeights& coded, std::vector<pybind11::array>& kept);

}  // namespace pqk::python
