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

class Plan {
 public:
  // Throws FormatError when the graph needs too much memory, std::invalid_argument for a choice that cannot be.
  Plan(const Graph& graph, const KernelOptions& options);

  const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
  const std::vector<StepInfo>& infos() const { return infos_; }
  int64_t arena_bytes() const { return arena_bytes_; }  // of one image
  // Images of a batch that go through every step together.
  int64_t group() const { return group_; }
  int64_t scratch_bytes() const { return scratch_bytes_; }  // that a thread needs
  int64_t input_numel() const { return input_numel_; }
  int64_t output_numel() const { return output_numel_; }
  // Times taken while planning, for layers that the options' table lacked.
  const KernelTable& measured() const { return measured_; }
  const char* isa() const { return isa_; }
  // Fills the borders of a fresh arena.
  void prepare(uint8_t* arena) const;

 private:
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<StepInfo> infos_;
  std::vector<Fill> fills_;
  KernelTable measured_;
  int64_t arena_bytes_, scratch_bytes_ = 0, group_, input_numel_, output_numel_;
  const char* isa_;
};

}  // namespace pqk::engine
