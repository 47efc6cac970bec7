// Which kernel computes a convolution or linear layer: the one asked for by name, or else the fastest as
// measured on this CPU.
//
// Kernels for weights with zeros win or lose by the layer's shape, by how its zeros lie and by the CPU; so they
// are timed here, on the layer itself, and the times kept in a table that the caller may store and give back.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "core/engine/time_conv2d.h"

namespace pqk::engine {

// Kernels asked for by name, by node name; "*" stands for all nodes that have no choice of their own, and is
// ignored where the kernel is not for the layer.
using KernelChoices = std::map<std::string, std::string>;

// Seconds a run by kernel name, by layer: instruction set, shape, density, images at once.
using KernelTable = std::map<std::string, std::map<std::string, double>>;

struct KernelOptions {
  KernelChoices choices;
  KernelTable table;
  bool measure = false;  // layers that the table lacks; else they get the kernel for dense weights
};

// The kernel for one image alone, and for several that are computed together.
struct ChosenConv2d {
  std::shared_ptr<const PackedConv2d> one, many;
};

class KernelChooser {
 public:
  explicit KernelChooser(const KernelOptions& options, bool may_time = true)
      : options_(options), may_time_(may_time) {}

  // Throws std::invalid_argument for a choice by name that the layer cannot have. No kernels where they have to
  // be timed, which this chooser may not.
  ChosenConv2d choose(const std::string& node, const Conv2dShape& shape, const Conv2dConstants& constants,
                      int64_t most_images);
  const KernelChoices& choices() const { return options_.choices; }
  // What the table lacked.
  const KernelTable& measured() const { return measured_; }

 private:
  class Layer;

  std::shared_ptr<const PackedConv2d> fastest(Layer& layer, const std::string& key, int64_t images);

  const KernelOptions& options_;
  bool may_time_;
  KernelTable measured_;
};

}  // namespace pqk::engine
