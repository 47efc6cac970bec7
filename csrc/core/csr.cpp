#include "core/csr.h"

#include <algorithm>

namespace pqk {
namespace {

constexpr int64_t kInt32Max = INT32_MAX;

[[noreturn]] void refuse(const char* code, const std::string& prefix, const char* array, int64_t position,
                         const std::string& expected, const std::string& got) {
  const std::string field = prefix.empty() ? array : prefix + "." + array;
  const int64_t offset = position < 0 ? -1 : position * static_cast<int64_t>(sizeof(int32_t));
  throw FormatError(code, field, offset, expected, got);
}

void check_counts(const CsrIndices& csr, const std::string& prefix) {
  const int64_t nnz = csr.value_count;
  // Neither rows * cols nor nnz + cols need fit 64 bits.
  const bool fits = csr.cols == 0 ? nnz == 0 : nnz / csr.cols + (nnz % csr.cols != 0) <= csr.rows;
  if (nnz > kInt32Max || !fits) {
    refuse("E_CSR_NNZ", prefix, "values", -1,
           "at most " + std::to_string(csr.rows) + " x " + std::to_string(csr.cols) + " values, below 2^31",
           std::to_string(nnz));
  }
  if (csr.col_count != nnz) {
    refuse("E_CSR_NNZ", prefix, "col_indices", -1, std::to_string(nnz) + " entries, one for each value",
           std::to_string(csr.col_count));
  }
  if (csr.crow_count - 1 != csr.rows) {
    refuse("E_CSR_INDPTR", prefix, "crow_indices", -1, std::to_string(csr.rows) + " + 1 entries",
           std::to_string(csr.crow_count));
  }
}

void check_row_pointers(const CsrIndices& csr, const std::string& prefix) {
  const int32_t* crow = csr.crow_indices;
  if (crow[0] != 0) {
    refuse("E_CSR_INDPTR", prefix, "crow_indices", 0, "0 for row 0", std::to_string(crow[0]));
  }
  for (int64_t row = 0; row < csr.rows; ++row) {
    if (crow[row + 1] >= crow[row]) continue;
    refuse("E_CSR_INDPTR", prefix, "crow_indices", row + 1,
           "at least " + std::to_string(crow[row]) + " as the end of row " + std::to_string(row),
           std::to_string(crow[row + 1]));
  }
  if (crow[csr.rows] != csr.value_count) {
    refuse("E_CSR_INDPTR", prefix, "crow_indices", csr.rows,
           std::to_string(csr.value_count) + " (the number of values) as the end of row " +
               std::to_string(csr.rows - 1),
           std::to_string(crow[csr.rows]));
  }
}

[[noreturn]] void refuse_column(const CsrIndices& csr, int64_t row, const std::string& prefix) {
  int64_t previous = -1;
  for (int64_t at = csr.crow_indices[row];; ++at) {
    const int64_t column = csr.col_indices[at];
    if (column <= previous || column >= csr.cols) {
      refuse("E_CSR_INDEX", prefix, "col_indices", at,
             "a column in [" + std::to_string(previous + 1) + ", " + std::to_string(csr.cols) + ") in row " +
                 std::to_string(row) + ", position " + std::to_string(at),
             std::to_string(column));
    }
    previous = column;
  }
}

void check_columns(const CsrIndices& csr, const std::string& prefix) {
  for (int64_t row = 0; row < csr.rows; ++row) {
    const int64_t begin = csr.crow_indices[row], end = csr.crow_indices[row + 1];
    if (begin == end) continue;
    // Strictly increasing from a first >= 0 to a last < cols; without a branch, so that the loop vectorises.
    int bad = csr.col_indices[begin] < 0 || csr.col_indices[end - 1] >= csr.cols;
    for (int64_t at = begin + 1; at < end; ++at) bad |= csr.col_indices[at] <= csr.col_indices[at - 1];
    if (bad) refuse_column(csr, row, prefix);
  }
}

}  // namespace

void validate_csr(const CsrIndices& indices, const std::string& prefix) {
  check_counts(indices, prefix);
  check_row_pointers(indices, prefix);
  check_columns(indices, prefix);
}

template <class Value>
CsrMatrix<Value> csr_from_dense(const Value* dense, int64_t rows, int64_t cols) {
  const int64_t count =
      std::count_if(dense, dense + rows * cols, [](Value value) { return value != Value{0}; });
  if (count > kInt32Max || cols > kInt32Max) {
    refuse("E_CSR_NNZ", "", "values", -1, "fewer than 2^31 non-zeros and columns",
           std::to_string(count) + " non-zeros, " + std::to_string(cols) + " columns");
  }
  CsrMatrix<Value> csr;
  csr.crow_indices.reserve(static_cast<size_t>(rows) + 1);
  csr.col_indices.reserve(static_cast<size_t>(count));
  csr.values.reserve(static_cast<size_t>(count));
  csr.crow_indices.push_back(0);
  for (int64_t row = 0; row < rows; ++row) {
    const Value* line = dense + row * cols;
    for (int64_t column = 0; column < cols; ++column) {
      if (line[column] == Value{0}) continue;
      csr.col_indices.push_back(static_cast<int32_t>(column));
      csr.values.push_back(line[column]);
    }
    csr.crow_indices.push_back(static_cast<int32_t>(csr.values.size()));
  }
  return csr;
}

template <class Value>
void csr_to_dense(const int32_t* crow_indices, const int32_t* col_indices, const Value* values, int64_t rows,
                  int64_t cols, Value* dense) {
  std::fill(dense, dense + rows * cols, Value{0});
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t at = crow_indices[row]; at < crow_indices[row + 1]; ++at) {
      dense[row * cols + col_indices[at]] = values[at];
    }
  }
}

template CsrMatrix<int8_t> csr_from_dense(const int8_t*, int64_t, int64_t);
template CsrMatrix<float> csr_from_dense(const float*, int64_t, int64_t);
template void csr_to_dense(const int32_t*, const int32_t*, const int8_t*, int64_t, int64_t, int8_t*);
template void csr_to_dense(const int32_t*, const int32_t*, const float*, int64_t, int64_t, float*);

}  // namespace pqk
