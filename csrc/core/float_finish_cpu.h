// From the sums of an output pixel's channels to its values. After float_vector_cpu.h.

namespace {

// The vectors of one pixel: `channels` of them, from one on.
struct Channels {
  const float *multiplier, *bias;
  Floats low, high;
  int64_t vectors, channels;

  Channels(const FloatEpilogue& e, int64_t first, int64_t count)
      : multiplier(e.multiplier + first),
        bias(e.bias + first),
        low(broadcast(e.clamp_min)),
        high(broadcast(e.clamp_max)),
        vectors((count + kLanes - 1) / kLanes),
        channels(count) {}

  // `residual` is null where there is none.
  void finish(const float* sums, const float* residual, float* out) const {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t first = v * kLanes, count = std::min<int64_t>(kLanes, channels - first);
      Floats y = load_floats(sums + first) * load_floats(multiplier + first);
      if (residual != nullptr) {
        y = y + (count == kLanes ? load_floats(residual + first) : load_some(residual + first, count));
      }
      store_some(out + first, clamp(y + load_floats(bias + first), low, high), count);
    }
  }
};

}  // namespace
