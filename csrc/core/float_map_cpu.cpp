#include "core/float_map.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

template <class Function>
void map_rows(const Function& function, int64_t count, const ConstNhwcImage& input, const NhwcImage& output,
              int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const float* in = input.row(y);
    float* out = output.row(y);
    for (int64_t i = 0; i < count; ++i) out[i] = function(in[i]);
  }
}

}  // namespace

void float_map_kernel(FloatMap function, int64_t channels, int64_t width, const ConstNhwcImage& input,
                      const NhwcImage& output, int64_t row_begin, int64_t row_end) {
  // A row is one run: pixels of float images lie next to each other.
  const auto map = [&](const auto& f) { map_rows(f, width * channels, input, output, row_begin, row_end); };
  switch (function) {
    case FloatMap::kRelu:
      return map([](float x) { return x < 0.0f ? 0.0f : x; });
    case FloatMap::kRelu6:
      return map([](float x) { return relu6(x); });
    case FloatMap::kSigmoid:
      return map([](float x) { return sigmoid(x); });
    case FloatMap::kSilu:
      return map([](float x) { return x * sigmoid(x); });
    case FloatMap::kHardSwish:
      return map([](float x) { return x * (relu6(x + 3.0f) / 6.0f); });
    case FloatMap::kHardSigmoid:
      return map([](float x) { return relu6(x + 3.0f) / 6.0f; });
    case FloatMap::kTanh:
      return map([](float x) { return tanh_value(x); });
  }
}

#include "core/isa_end.h"
