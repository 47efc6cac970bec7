// The rules of each operator: dtypes, shapes, quantization parameters, bounds that keep int32 sums exact.
#pragma once

#include "core/engine/graph.h"

namespace pqk::engine {

// `node` has its fields and its stated value; its inputs lie in `graph`. Throws FormatError.
void check_node(const Graph& graph, const RawNode& raw, const std::string& label, const Node& node);
// The part of it for operators of float codebooks.
void check_float_node(const Graph& graph, const RawNode& raw, const std::string& label, const Node& node);

}  // namespace pqk::engine
