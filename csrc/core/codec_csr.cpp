// `csr`: u8 width | varint nnz | u32 crow_indices[rows + 1] | column steps of `width` bytes [nnz] | i8
// values[nnz]. A column step is the column itself at the start of a row, otherwise the distance to the column
// before.
#include <algorithm>
#include <limits>

#include "core/codec.h"
#include "core/csr.h"

namespace pqk {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

int step_width(uint32_t largest) { return largest <= 0xff ? 1 : largest <= 0xffff ? 2 : 4; }

std::vector<uint32_t> column_steps(const CsrMatrix<int8_t>& csr) {
  std::vector<uint32_t> steps;
  steps.reserve(csr.col_indices.size());
  for (size_t row = 0; row + 1 < csr.crow_indices.size(); ++row) {
    int32_t previous = 0;
    for (int32_t at = csr.crow_indices[row]; at < csr.crow_indices[row + 1]; ++at) {
      steps.push_back(static_cast<uint32_t>(csr.col_indices[at] - previous));
      previous = csr.col_indices[at];
    }
  }
  return steps;
}

std::vector<int32_t> read_crow(ByteReader& reader, int64_t rows) {
  const int64_t entries = checked_add(rows, 1, reader.field());
  const ByteSpan bytes = reader.take(checked_mul(entries, 4, reader.field()), "crow_indices");
  std::vector<int32_t> crow(entries);
  for (int64_t row = 0; row < entries; ++row) {
    crow[row] = static_cast<int32_t>(load_le(bytes.data + 4 * row, 4));
  }
  return crow;
}

// Sums the steps; validate_csr judges the result. A sum beyond int32 stays at its largest value, which no
// matrix has as a column.
std::vector<int32_t> read_columns(ByteReader& reader, const std::vector<int32_t>& crow, int64_t nnz,
                                  int width) {
  const ByteSpan bytes = reader.take(checked_mul(nnz, width, reader.field()), "col_indices");
  std::vector<int32_t> columns(nnz, -1);
  for (size_t row = 0; row + 1 < crow.size(); ++row) {
    const int64_t end = std::min<int64_t>(crow[row + 1], nnz);
    int64_t column = 0;
    for (int64_t at = std::max(crow[row], 0); at < end; ++at) {
      column = std::min(column + load_le(bytes.data + at * width, width), kInt32Max);
      columns[at] = static_cast<int32_t>(column);
    }
  }
  return columns;
}

std::vector<uint8_t> encode(const int8_t* values, WeightShape shape) {
  const CsrMatrix<int8_t> csr = csr_from_dense(values, shape.rows, shape.row_size());
  const std::vector<uint32_t> steps = column_steps(csr);
  const uint32_t largest = steps.empty() ? 0 : *std::max_element(steps.begin(), steps.end());
  const int width = step_width(largest);
  std::vector<uint8_t> out{static_cast<uint8_t>(width)};
  put_varint(static_cast<uint32_t>(csr.values.size()), out);
  for (const int32_t begin : csr.crow_indices) put_le(static_cast<uint32_t>(begin), 4, out);
  for (const uint32_t step : steps) put_le(step, width, out);
  out.insert(out.end(), csr.values.begin(), csr.values.end());
  return out;
}

int64_t size(const SizeQuery& query) {
  const int64_t rows = query.shape.rows, cols = query.shape.row_size(), nnz = query.nonzeros();
  if (nnz > kInt32Max || cols > kInt32Max) return INT64_MAX;
  const auto with_width = [&](int width) {
    return 1 + varint_size(static_cast<uint32_t>(nnz)) + 4 * (rows + 1) + nnz * (width + 1);
  };
  const int64_t least = with_width(1);
  if (least > query.limit) return least;
  int64_t largest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t previous = 0;
    for (int64_t column = 0; column < cols; ++column) {
      if (query.values[row * cols + column] == 0) continue;
      largest = std::max(largest, column - previous);
      previous = column;
    }
  }
  return with_width(step_width(static_cast<uint32_t>(largest)));
}

// A payload of few bytes may stand for many zeros: there is nothing to refuse before decoding.
void check(ByteSpan, WeightShape, const std::string&) {}

void decode(ByteSpan payload, WeightShape shape, int8_t* output, const std::string& field, const Parallel&) {
  ByteReader reader(payload, field);
  const int64_t cols = shape.row_size();
  const int width = reader.u8("width");
  if (width != 1 && width != 2 && width != 4) {
    throw FormatError("E_CSR_WIDTH", field + ".width", 0, "1, 2 or 4 bytes", std::to_string(width));
  }
  const int64_t nnz = reader.varint("nnz");
  if (nnz > shape.count || cols > kInt32Max) {
    throw FormatError("E_CSR_NNZ", field + ".nnz", 1,
                      "at most " + std::to_string(shape.count) + " values, rows below 2^31",
                      std::to_string(nnz));
  }
  const std::vector<int32_t> crow = read_crow(reader, shape.rows);
  // Fewer bytes than values would make the arrays below large before they are known to be in the file.
  if (nnz > reader.remaining()) reader.take(nnz, "values");
  const std::vector<int32_t> columns = read_columns(reader, crow, nnz, width);
  const ByteSpan values = reader.take(nnz, "values");
  check_end(reader);
  validate_csr({crow.data(), static_cast<int64_t>(crow.size()), columns.data(),
                static_cast<int64_t>(columns.size()), nnz, shape.rows, cols},
               field);
  check_nonzero(values, field);
  csr_to_dense(crow.data(), columns.data(), reinterpret_cast<const int8_t*>(values.data), shape.rows, cols,
               output);
}

PayloadParts parts(ByteSpan payload, WeightShape, const std::string& field) {
  ByteReader reader(payload, field);
  reader.u8("width");
  const int64_t nnz = reader.varint("nnz");
  const int64_t header = reader.offset();
  reader.take(nnz, "values");
  return {.values = nnz, .indices = payload.size - header - nnz, .header = header};
}

}  // namespace

const WeightCodec kCsrCodec{"csr", nullptr, encode, size, {0.05, 1.6}, check, decode, parts};

}  // namespace pqk
