#include "core/quantize.h"

#include <algorithm>
#include <atomic>

namespace pqk {
namespace {

constexpr int64_t kElementsPerThread = 32768;

int64_t rows_per_thread(const ChannelView& view) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, view.inner));
}

}  // namespace

int64_t quantize(const QuantizeParams& params, const Parallel& parallel) {
  std::atomic<int64_t> first_nan{INT64_MAX};
  parallel(params.view.outer * params.view.channels, rows_per_thread(params.view),
           [&](int64_t begin, int64_t end) {
             const int64_t at = active_quantize_kernel()(params, begin, end);
             if (at < 0) return;
             int64_t seen = first_nan.load();
             while (at < seen && !first_nan.compare_exchange_weak(seen, at)) {
             }
           });
  return first_nan == INT64_MAX ? -1 : first_nan.load();
}

void dequantize(const DequantizeParams& params, const Parallel& parallel) {
  parallel(params.view.outer * params.view.channels, rows_per_thread(params.view),
           [&](int64_t begin, int64_t end) { active_dequantize_kernel()(params, begin, end); });
}

}  // namespace pqk
