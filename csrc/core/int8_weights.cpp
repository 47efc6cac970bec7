#include "core/int8_weights.h"

namespace pqk {

ChannelsLast::ChannelsLast(int64_t all_taps) : taps(all_taps) {
  if (taps < 2 || taps > kMostTaps) return;
  masks.resize(static_cast<size_t>(taps * taps));
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t channel = 0; channel < kChannels; ++channel) {
      masks[static_cast<size_t>(tap * taps + (channel * taps + tap) / 64)] |= uint64_t{1} << channel;
    }
  }
}

}  // namespace pqk
