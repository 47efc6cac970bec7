// Compressed sparse row matrices, named as torch names them: row r holds entries crow_indices[r] to
// crow_indices[r + 1] of col_indices and values. Indices are int32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace pqk {

template <class Value>
struct CsrMatrix {
  std::vector<int32_t> crow_indices;  // [rows + 1]
  std::vector<int32_t> col_indices;   // [nnz]
  std::vector<Value> values;          // [nnz]
};

// The index arrays of a matrix, as they came from a caller or a file, and what they claim to describe.
struct CsrIndices {
  const int32_t* crow_indices;
  int64_t crow_count;
  const int32_t* col_indices;
  int64_t col_count;
  int64_t value_count;
  int64_t rows, cols;
};

// Checks everything that a kernel relies on; no other code may index through unchecked arrays. `prefix` names
// the owner in the error's field: "tensors['3.weight']" gives "tensors['3.weight'].col_indices". Throws
// FormatError:
//   E_CSR_INDPTR  crow_indices has not rows + 1 entries, does not begin with 0, decreases, or does not end with
//   nnz E_CSR_INDEX   a column is negative, >= cols, or not above the one before it in its row E_CSR_NNZ more
//   values than rows x cols or than int32 counts, or not one column for each value
void validate_csr(const CsrIndices& indices, const std::string& prefix = "");

// The entries of a row-major matrix that differ from zero (NaN does; a negative zero does not). Throws
// FormatError E_CSR_NNZ where int32 cannot index them. Instantiated for int8_t and float.
template <class Value>
CsrMatrix<Value> csr_from_dense(const Value* dense, int64_t rows, int64_t cols);

// Fills the row-major [rows, cols] matrix from checked arrays.
template <class Value>
void csr_to_dense(const int32_t* crow_indices, const int32_t* col_indices, const Value* values, int64_t rows,
                  int64_t cols, Value* dense);

}  // namespace pqk
