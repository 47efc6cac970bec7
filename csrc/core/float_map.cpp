#include "core/float_map.h"

#include <algorithm>
#include <iterator>

namespace pqk {

std::optional<FloatMap> float_map_by_name(const std::string& name) {
  static const char* const names[] = {"relu", "relu6", "sigmoid", "silu", "hard_swish", "hard_sigmoid", "tanh"};
  const auto* const found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) return std::nullopt;
  return static_cast<FloatMap>(found - std::begin(names));
}

}  // namespace pqk
