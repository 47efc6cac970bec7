// What the forward and the backward kernels of fake-quantize share.
#pragma once

#include "core/cuda/elements.h"
#include "core/cuda/fake_quantize.h"

namespace pqk::cuda {

// One channel's constants; bounds are of codes less their zero point.
template <class T>
struct Channel {
  Channel() = default;
  __device__ Channel(const FakeQuantizeParams& p, int64_t c) : scale(static_cast<const T*>(p.scale)[c]) {
    inv_scale = T(1) / scale;
    const T zero_point = p.zero_point_is_float ? round_even(static_cast<const T*>(p.zero_point)[c])
                                               : static_cast<T>(static_cast<const int32_t*>(p.zero_point)[c]);
    low = static_cast<T>(p.quant_min) - zero_point;
    high = static_cast<T>(p.quant_max) - zero_point;
  }
  T scale, inv_scale, low, high;
};

// The widest packs of elements that every tensor of a call allows.
template <class Storage>
bool allows_packs(const FakeQuantizeParams& p, const void* a, const void* b, const void* c) {
  constexpr int kPack = elements_of_16_bytes(sizeof(Storage));
  return is_aligned(a, 16) && is_aligned(b, 16) && is_aligned(c, 16) && is_aligned(p.mask, kPack);
}

template <template <class> class Job, class... Arguments>
const char* for_float_type(FloatType type, const Arguments&... arguments) {
  switch (type) {
    case FloatType::kFloat32:
      return Job<float>::run(arguments...);
    case FloatType::kFloat64:
      return Job<double>::run(arguments...);
    case FloatType::kBFloat16:
      return Job<BFloat16>::run(arguments...);
  }
  return "unknown element type";
}

}  // namespace pqk::cuda
