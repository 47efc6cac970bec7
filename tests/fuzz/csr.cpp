// Any index arrays as a CSR matrix: accepted exactly where a plain reading of the rules accepts them, and then
// the dense matrix and back gives the same arrays.
#include "core/csr.h"

#include "fuzz.h"

namespace pqk::fuzz {
namespace {

bool is_matrix(const CsrIndices& csr) {
  if (csr.crow_count != csr.rows + 1 || csr.col_count != csr.value_count || csr.crow_indices[0] != 0)
    return false;
  if (csr.crow_indices[csr.rows] != csr.value_count) return false;
  for (int64_t row = 0; row < csr.rows; ++row) {
    if (csr.crow_indices[row] > csr.crow_indices[row + 1]) return false;
  }
  for (int64_t row = 0; row < csr.rows; ++row) {
    for (int64_t at = csr.crow_indices[row]; at < csr.crow_indices[row + 1]; ++at) {
      if (csr.col_indices[at] < 0 || csr.col_indices[at] >= csr.cols) return false;
      if (at > csr.crow_indices[row] && csr.col_indices[at] <= csr.col_indices[at - 1]) return false;
    }
  }
  return true;
}

// Small numbers, that rise now and then; or any.
Exact<int32_t> read_indices(Bytes& bytes, int64_t count, bool rises) {
  Exact<int32_t> values(count);
  uint32_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t byte = bytes.u8();
    const uint32_t number = byte == 255 ? static_cast<uint32_t>(bytes.number(4)) : byte % 16u;
    values[i] = static_cast<int32_t>(rises && byte != 255 ? last + number % 4 : number);
    last = static_cast<uint32_t>(values[i]);
  }
  return values;
}

}  // namespace
}  // namespace pqk::fuzz

PQK_FUZZ_TARGET(csr) {
  const int64_t rows = bytes.range(0, 12);
  const bool huge = bytes.range(0, 15) == 15;
  const int64_t cols = huge ? bytes.i64() & INT64_MAX : bytes.range(0, 24);
  const Exact<int32_t> crow = read_indices(bytes, bytes.range(0, 15) ? rows + 1 : bytes.range(1, 14), true);
  const int64_t nnz = bytes.range(0, 15) ? std::clamp(crow[crow.size() - 1], 0, 60) : bytes.range(0, 60);
  const Exact<int32_t> columns = read_indices(bytes, nnz, bytes.flag());
  const CsrIndices csr{crow.data(), crow.size(), columns.data(), nnz, nnz, rows, cols};
  bool accepted = true;
  try {
    validate_csr(csr, "matrix");
  } catch (const FormatError& error) {
    require_named(error);
    accepted = false;
  }
  require(accepted == is_matrix(csr), "what the rules say");
  if (!accepted || huge) return;
  Exact<int8_t> values(nnz), dense(rows * cols);
  for (int64_t i = 0; i < nnz; ++i) values[i] = static_cast<int8_t>(bytes.u8() | 1);
  csr_to_dense(crow.data(), columns.data(), values.data(), rows, cols, dense.data());
  const CsrMatrix<int8_t> again = csr_from_dense(dense.data(), rows, cols);
  require(std::equal(crow.data(), crow.data() + crow.size(), again.crow_indices.begin(),
                     again.crow_indices.end()) &&
              std::equal(columns.data(), columns.data() + nnz, again.col_indices.begin(),
                         again.col_indices.end()) &&
              std::equal(values.data(), values.data() + nnz, again.values.begin(), again.values.end()),
          "the matrix that was filled");
}
