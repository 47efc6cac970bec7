#include "core/engine/choose.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "core/engine/time_conv2d.h"
#include "core/int8_weights.h"
#include "core/isa.h"

namespace pqk::engine {
namespace {

// With more non-zeros than this no kernel for zeros can win, whatever the CPU: they cost more than one dense
// multiplication for every non-zero.
constexpr double kDense = 0.8;

std::shared_ptr<const PackedConv2d> pack_by_name(const Conv2dShape& shape, const Conv2dConstants& constants,
                                                 const std::string& name) {
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    if (kernel.name == name) return kernel.pack(shape, constants);
  }
  return nullptr;
}

// The kernel that the caller wants; null where it has no wish.
std::shared_ptr<const PackedConv2d> pack_asked(const KernelChoices& choices, const std::string& node,
                                               const Conv2dShape& shape, const Conv2dConstants& constants) {
  const auto own = choices.find(node);
  if (own != choices.end()) {
    std::shared_ptr<const PackedConv2d> packed = pack_by_name(shape, constants, own->second);
    if (packed != nullptr) return packed;
    throw std::invalid_argument("kernels['" + node + "']: no kernel '" + own->second + "' for this layer on " +
                                isa_name(active_isa()));
  }
  const auto all = choices.find("*");
  return all == choices.end() ? nullptr : pack_by_name(shape, constants, all->second);
}

// Shares of the weights, and of their blocks of four input channels, that are not all zero.
struct Density {
  double weights, blocks;
};

double weight_density(const Conv2dShape& s, const int8_t* weight) {
  const int64_t count = s.out_channels * (s.in_channels / s.groups) * s.kernel_height * s.kernel_width;
  return static_cast<double>(active_weight_sums()(weight, count).nonzero) /
         static_cast<double>(std::max<int64_t>(1, count));
}

// Columns of `rows` rows that are not all zero.
int64_t nonzero_columns(const int8_t* matrix, int64_t rows, int64_t columns) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f;
  int64_t count = 0, column = 0;
  for (; column + 8 <= columns; column += 8) {
    uint64_t any = 0;
    for (int64_t row = 0; row < rows; ++row) {
      uint64_t word;
      std::memcpy(&word, matrix + row * columns + column, sizeof word);
      any |= word;
    }
    count += std::popcount((((any & kLow) + kLow) | any) & ~kLow);  // top bits of the bytes that are not 0
  }
  for (; column < columns; ++column) {
    int any = 0;
    for (int64_t row = 0; row < rows; ++row) any |= matrix[row * columns + column];
    count += any != 0;
  }
  return count;
}

double block_density(const Conv2dShape& s, const int8_t* weight) {
  const int64_t inputs = s.in_channels / s.groups, taps = s.kernel_height * s.kernel_width;
  int64_t blocks = 0;
  for (int64_t output = 0; output < s.out_channels; ++output) {
    for (int64_t input = 0; input < inputs; input += 4) {
      const int64_t rows = std::min<int64_t>(4, inputs - input);
      blocks += rows == 4 ? nonzero_columns(weight, 4, taps) : nonzero_columns(weight, rows, taps);
      weight += rows * taps;
    }
  }
  const int64_t all = s.out_channels * ((inputs + 3) / 4) * taps;
  return static_cast<double>(blocks) / static_cast<double>(std::max<int64_t>(1, all));
}

// What the time of a kernel depends on, densities in steps of 2 %.
std::string layer_key(const Conv2dShape& s, const Conv2dConstants& constants, const Density& density) {
  const auto percent = [](double share) { return static_cast<int>(share * 50 + 0.5) * 2; };
  std::ostringstream key;
  key << isa_name(active_isa()) << ' ' << s.in_channels << 'x' << s.in_height << 'x' << s.in_width << "->"
      << s.out_channels << 'x' << s.out_height << 'x' << s.out_width << " kernel " << s.kernel_height << 'x'
      << s.kernel_width << " stride " << s.stride_height << 'x' << s.stride_width << " dilation "
      << s.dilation_height << 'x' << s.dilation_width << " groups " << s.groups
      << (constants.input_zero_point == 0 ? " zero border" : "") << (constants.has_residual ? " residual" : "")
      << (constants.float_output ? " float" : "") << " weights " << percent(density.weights) << "% blocks "
      << percent(density.blocks) << '%';
  return key.str();
}

}  // namespace

// The kernels of one layer, packed when they are asked for.
class KernelChooser::Layer {
 public:
  Layer(const Conv2dShape& shape, const Conv2dConstants& constants) : shape_(shape), constants_(constants) {}

  // Null where the kernel is not for the layer.
  std::shared_ptr<const PackedConv2d> pack(const Conv2dKernel& kernel) {
    const auto [place, is_new] = packed_.try_emplace(kernel.name);
    if (is_new) place->second = kernel.pack(shape_, constants_);
    return place->second;
  }

  std::shared_ptr<const PackedConv2d> for_dense_weights() {
    for (const Conv2dKernel& kernel : conv2d_kernels()) {
      if (auto packed = pack(kernel)) return packed;
    }
    return nullptr;  // not reached: the direct kernel takes every layer
  }

  // Of the kernels in `times`; null where none is for the layer.
  std::shared_ptr<const PackedConv2d> fastest(const KernelTable::mapped_type& times) {
    std::vector<std::pair<double, const Conv2dKernel*>> known;
    for (const Conv2dKernel& kernel : conv2d_kernels()) {
      const auto found = times.find(kernel.name);
      if (found != times.end()) known.emplace_back(found->second, &kernel);
    }
    std::stable_sort(known.begin(), known.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [seconds, kernel] : known) {
      if (auto packed = pack(*kernel)) return packed;
    }
    return nullptr;
  }

  // All of them.
  Conv2dCandidates candidates() {
    Conv2dCandidates all;
    for (const Conv2dKernel& kernel : conv2d_kernels()) {
      if (auto packed = pack(kernel)) all.emplace_back(kernel.name, std::move(packed));
    }
    return all;
  }

  std::map<std::string, double> time(int64_t images) {
    return time_conv2d(candidates(), shape_, constants_, images);
  }

 private:
  const Conv2dShape& shape_;
  const Conv2dConstants& constants_;
  std::map<std::string, std::shared_ptr<const PackedConv2d>> packed_;
};

ChosenConv2d KernelChooser::choose(const std::string& node, const Conv2dShape& shape,
                                   const Conv2dConstants& constants, int64_t most_images) {
  if (auto asked = pack_asked(options_.choices, node, shape, constants)) return {asked, asked};
  Layer layer(shape, constants);
  const double density = weight_density(shape, constants.weight);
  if (density > kDense || (options_.table.empty() && !options_.measure)) {
    const std::shared_ptr<const PackedConv2d> packed = layer.for_dense_weights();
    return {packed, packed};
  }
  const std::string key =
      layer_key(shape, constants, {density, block_density(shape, constants.weight)}) + " images ";
  const auto one = fastest(layer, key + "1", 1);
  const auto many = most_images > 1 ? fastest(layer, key + std::to_string(most_images), most_images) : one;
  if (one == nullptr || many == nullptr) return {};
  return {one, many};
}

std::shared_ptr<const PackedConv2d> KernelChooser::fastest(Layer& layer, const std::string& key,
                                                           int64_t images) {
  for (const KernelTable* table : {&options_.table, static_cast<const KernelTable*>(&measured_)}) {
    const auto found = table->find(key);
    if (found == table->end()) continue;
    if (auto packed = layer.fastest(found->second)) return packed;
  }
  if (!options_.measure) return layer.for_dense_weights();
  if (!may_time_) return nullptr;
  const Conv2dCandidates candidates = layer.candidates();
  if (candidates.size() == 1) return candidates.front().second;
  return layer.fastest(measured_[key] = layer.time(images));
}

}  // namespace pqk::engine
