// Graphs from bytes, for the target that loads and runs them: mostly such as the engine accepts, with wrong
// fields here and there.
#pragma once

#include <list>

#include "core/engine/graph.h"
#include "fuzz.h"

namespace pqk::fuzz {

class GraphSource {
 public:
  // Adds nodes as the bytes say; what the engine refuses is left out, or mended where its error says how.
  explicit GraphSource(Bytes& bytes);

  const engine::Graph& graph() const { return graph_; }
  // Whether the last node gives float32, as a whole graph must.
  bool complete();
  // Products of all convolutions and linear layers for one image.
  int64_t products() const { return products_; }
  // Some operators add floats in any order.
  bool bits_are_specified() const { return bits_are_specified_; }

 private:
  void add_any_node();
  void spoil(engine::RawNode& node);
  // False where the engine refused it.
  bool add(engine::RawNode& node);
  bool mend(engine::RawNode& node, const FormatError& error);
  void set_inputs(engine::RawNode& node);
  void set_attributes(engine::RawNode& node);
  void set_tensors(engine::RawNode& node);
  engine::RawAttribute attribute(const std::string& name);
  int64_t integer(int64_t low, int64_t high);
  template <class T>
  T* tensor(engine::RawNode& node, const char* name, const char* dtype, std::vector<int64_t> shape);
  void set_codebook(engine::RawNode& node, int8_t* codes, int64_t count);
  void set_qparams(engine::RawValue& value);

  Bytes& bytes_;
  Random random_;
  std::vector<engine::RawValue> values_;
  engine::Graph graph_;
  std::list<Exact<int8_t>> codes_;
  std::list<Exact<uint8_t>> bytes_tensors_;
  std::list<Exact<float>> floats_;
  int64_t products_ = 0;
  bool bits_are_specified_ = true;
};

}  // namespace pqk::fuzz
