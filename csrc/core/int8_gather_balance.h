// Which output channels share a vector in the gather kernel.
#pragma once

#include <cstdint>

namespace pqk {

// Shares the channels of a panel out among its tiles so that those of a tile have like numbers of non-zeros
// under every kernel row: the lane with the most decides how many steps a row takes.
//   lanes: the panel's channels, put in their new order.
//   counts: [channel][kernel row], non-zeros.
void balance_panel(int64_t* lanes, int64_t channels, const int32_t* counts, int64_t rows);

}  // namespace pqk
