// Blocks of floats from pixels of channels to channels of pixels.

namespace {

constexpr int64_t kTransposed = 8;  // rows and columns of a block

#if PQK_ISA_LEVEL >= 1
inline void transpose_block(const float* from, int64_t from_step, float* to, int64_t to_step) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_step);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_step, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_step, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#else
inline void transpose_block(const float* from, int64_t from_step, float* to, int64_t to_step) {
  for (int64_t i = 0; i < kTransposed; ++i) {
    for (int64_t j = 0; j < kTransposed; ++j) to[j * to_step + i] = from[i * from_step + j];
  }
}
#endif

// to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns. Ends overlap, so that there are
// whole blocks only where there is one at all.
inline void transpose(const float* from, int64_t from_step, int64_t rows, int64_t columns, float* to,
                      int64_t to_step) {
  if (rows < kTransposed || columns < kTransposed) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = 0; i < rows; ++i) to[j * to_step + i] = from[i * from_step + j];
    }
    return;
  }
  for (int64_t i = 0; i < rows; i += kTransposed) {
    const int64_t row = i + kTransposed <= rows ? i : rows - kTransposed;
    for (int64_t j = 0; j < columns; j += kTransposed) {
      const int64_t column = j + kTransposed <= columns ? j : columns - kTransposed;
      transpose_block(from + row * from_step + column, from_step, to + column * to_step + row, to_step);
    }
  }
}

}  // namespace
