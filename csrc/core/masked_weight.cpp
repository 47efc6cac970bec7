#include "core/masked_weight.h"

#include <atomic>

namespace pqk {
namespace {

constexpr int64_t kElementsPerThread = 65536;

}  // namespace

void mask_weight(const MaskParams& params, const Parallel& parallel) {
  parallel(params.count, kElementsPerThread,
           [&](int64_t begin, int64_t end) { active_mask_kernel()(params, begin, end); });
}

int64_t count_kept(const uint8_t* mask, int64_t count, const Parallel& parallel) {
  std::atomic<int64_t> kept{0};
  parallel(count, 4 * kElementsPerThread,
           [&](int64_t begin, int64_t end) { kept += active_mask_count_kernel()(mask + begin, end - begin); });
  return kept;
}

template <class Value>
CsrMatrix<Value> csr_from_mask(const Value* weight, const uint8_t* mask, int64_t rows, int64_t cols,
                               int64_t kept) {
  CsrMatrix<Value> csr;
  csr.crow_indices.resize(static_cast<size_t>(rows) + 1);
  csr.col_indices.resize(static_cast<size_t>(kept));
  csr.values.resize(static_cast<size_t>(kept));
  int64_t at = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* columns = csr.col_indices.data() + at;
    const int64_t count = active_mask_positions_kernel()(mask + row * cols, cols, columns);
    for (int64_t i = 0; i < count; ++i) csr.values[at + i] = weight[row * cols + columns[i]];
    at += count;
    csr.crow_indices[row + 1] = static_cast<int32_t>(at);
  }
  return csr;
}

template CsrMatrix<float> csr_from_mask(const float*, const uint8_t*, int64_t, int64_t, int64_t);
template CsrMatrix<double> csr_from_mask(const double*, const uint8_t*, int64_t, int64_t, int64_t);

}  // namespace pqk
