#include "core/engine/choose.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "core/engine/time_conv2d.h"
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

Density density_of(const Conv2dShape& s, const int8_t* weight) {
  const int64_t inputs = s.in_channels / s.groups, taps = s.kernel_height * s.kernel_width;
  int64_t weights = 0, blocks = 0, all_blocks = 0;
  std::vector<int64_t> of_tap(static_cast<size_t>(taps));
  for (int64_t output = 0; output < s.out_channels; ++output) {
    for (int64_t first = 0; first < inputs; first += 4) {
      std::fill(of_tap.begin(), of_tap.end(), 0);
      for (int64_t input = first; input < std::min(first + 4, inputs); ++input) {
        const int8_t* from = weight + (output * inputs + input) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) of_tap[static_cast<size_t>(tap)] += from[tap] != 0;
      }
      for (const int64_t count : of_tap) weights += count, blocks += count != 0;
      all_blocks += taps;
    }
  }
  const double all = static_cast<double>(std::max<int64_t>(1, s.out_channels * inputs * taps));
  return {static_cast<double>(weights) / all,
          static_cast<double>(blocks) / static_cast<double>(std::max<int64_t>(1, all_blocks))};
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

ChosenConv2d KernelChooser::choose(const std::string& node, const Conv2dShape& shape,
                                   const Conv2dConstants& constants, int64_t most_images) {
  if (auto asked = pack_asked(options_.choices, node, shape, constants)) return {asked, asked};
  const Density density = density_of(shape, constants.weight);
  Conv2dCandidates candidates;  // the one for dense weights first
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    if (!candidates.empty() && density.weights > kDense) break;
    if (auto packed = kernel.pack(shape, constants)) candidates.emplace_back(kernel.name, std::move(packed));
  }
  const std::string key = layer_key(shape, constants, density);
  std::shared_ptr<const PackedConv2d> one = fastest(candidates, key, shape, constants, 1);
  return {one, most_images > 1 ? fastest(candidates, key, shape, constants, most_images) : one};
}

std::shared_ptr<const PackedConv2d> KernelChooser::fastest(const Conv2dCandidates& candidates,
                                                           const std::string& layer, const Conv2dShape& shape,
                                                           const Conv2dConstants& constants, int64_t images) {
  if (candidates.size() == 1) return candidates.front().second;
  const std::string key = layer + " images " + std::to_string(images);
  const KernelTable::mapped_type* times = nullptr;
  for (const KernelTable* table : {&options_.table, static_cast<const KernelTable*>(&measured_)}) {
    const auto found = table->find(key);
    if (found == table->end()) continue;
    const bool all = std::all_of(candidates.begin(), candidates.end(), [&](const auto& candidate) {
      return found->second.count(candidate.first) != 0;
    });
    if (all) times = &found->second;
  }
  if (times == nullptr) {
    if (!options_.measure) return candidates.front().second;
    times = &(measured_[key] = time_conv2d(candidates, shape, constants, images));
  }
  return std::min_element(candidates.begin(), candidates.end(),
                          [&](const auto& a, const auto& b) { return times->at(a.first) < times->at(b.first); })
      ->second;
}

}  // namespace pqk::engine
