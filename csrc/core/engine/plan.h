// A graph made ready to run: packed weights, memory layout, flat list of steps. Immutable, shared by threads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/engine/steps.h"

namespace pqk::engine {

struct StepInfo {
  std::string node;    // its name in the graph
  std::string kernel;  // what runs it
};

// Steps [begin, end) that so many images of a frame go through together, before the next images do.
struct Stretch {
  size_t begin, end;
  int64_t images;
};

class Plan {
 public:
  // Packs weights on the threads of `parallel`. Throws FormatError when the graph needs too much memory,
  // std::invalid_argument for a choice that cannot be.
  Plan(const Graph& graph, const KernelOptions& options, const Parallel& parallel);

  const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
  const std::vector<StepInfo>& infos() const { return infos_; }
  int64_t arena_bytes() const { return arena_bytes_; }  // of one image
  // Most images of a frame.
  int64_t group() const { return group_; }
  const std::vector<Stretch>& stretches() const { return stretches_; }
  int64_t scratch_bytes() const { return scratch_bytes_; }  // that a thread needs
  // Of payloads that layers keep, and one for each weight of the other layers.
  int64_t weight_bytes() const { return weight_bytes_; }
  // Whether the weights of a layer are decoded in each run.
  bool decodes() const { return decodes_; }
  int64_t input_numel() const { return input_numel_; }
  int64_t output_numel() const { return output_numel_; }
  // Times taken while planning, for layers that the options' table lacked.
  const KernelTable& measured() const { return measured_; }
  const char* isa() const { return isa_; }
  // Fills the borders of a fresh arena.
  void prepare(uint8_t* arena) const;

 private:
  void add_step(std::unique_ptr<Step> step, const std::string& node, int64_t images);

  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<StepInfo> infos_;
  std::vector<Stretch> stretches_;
  std::vector<Fill> fills_;
  KernelTable measured_;
  int64_t arena_bytes_, scratch_bytes_ = 0, weight_bytes_ = 0, group_, input_numel_, output_numel_;
  bool decodes_ = false;
  const char* isa_;
};

}  // namespace pqk::engine
