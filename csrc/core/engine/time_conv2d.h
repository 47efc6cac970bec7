// Times the kernels of one layer against each other on this CPU.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/int8_conv2d.h"

namespace pqk::engine {

using Conv2dCandidates = std::vector<std::pair<std::string, std::shared_ptr<const PackedConv2d>>>;

// Seconds for `images` images on the calling thread by candidate's name: the least of several runs taken in
// turn, on made-up codes. Takes about a millisecond, or a few runs of a large layer.
std::map<std::string, double> time_conv2d(const Conv2dCandidates& candidates, const Conv2dShape& shape,
                                          const Conv2dConstants& constants, int64_t images);

}  // namespace pqk::engine
