// A checked graph as a device program: the same layout of an image's memory as on the CPU, steps in the order
// of the nodes, and one block of constants. Knows nothing of CUDA.
#pragma once

#include <string>
#include <vector>

#include "core/cuda/engine/steps.h"
#include "core/engine/graph.h"

namespace pqk::engine::device {

struct StepName {
  std::string node;    // its name in the graph
  std::string kernel;  // what runs it
};

struct Program {
  std::vector<Step> steps;
  std::vector<StepName> names;  // by step
  std::vector<Border> borders;
  std::vector<uint8_t> constants;
  int64_t arena_bytes = 0;  // of one image
  int64_t input_numel = 0, output_numel = 0;
  int64_t most_items = 1;    // of a step and one image
  int64_t weight_bytes = 0;  // one for each weight, four for those of float operators
  int64_t products = 0;      // multiply-adds of convolutions and linear layers, for one image
};

// Throws FormatError when the graph needs too much memory, std::invalid_argument for a layer beyond what the
// kernels can index.
Program make_program(const Graph& graph);

// The tile of a convolution's warps for so many images: so large that `warps` warps have work if they can, and
// not of more pairs of channel tiles than there are registers for.
void choose_tiles(Step& step, int images, int64_t warps, int most_pairs);

}  // namespace pqk::engine::device
