// Blocks of 16 images between their own memory and lanes of vectors.

namespace {

#if PQK_ISA_LEVEL >= 2
typedef float Lanes __attribute__((vector_size(64)));

inline Lanes low_pairs(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
inline Lanes high_pairs(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
inline Lanes low_halves(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
inline Lanes high_halves(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
inline Lanes even_quarters(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
inline Lanes odd_quarters(Lanes a, Lanes b) {
  return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// Transposes 16 x 16 floats.
inline __attribute__((always_inline)) void transpose_lanes(Lanes (&r)[kImageLanes]) {
  Lanes t[kImageLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kImageLanes; i += 2) {
    t[i] = low_pairs(r[i], r[i + 1]);
    t[i + 1] = high_pairs(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kImageLanes; i += 4) {
    r[i] = low_halves(t[i], t[i + 2]);
    r[i + 1] = high_halves(t[i], t[i + 2]);
    r[i + 2] = low_halves(t[i + 1], t[i + 3]);
    r[i + 3] = high_halves(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = even_quarters(r[i], r[i + 4]);
    t[i + 4] = odd_quarters(r[i], r[i + 4]);
    t[i + 8] = even_quarters(r[i + 8], r[i + 12]);
    t[i + 12] = odd_quarters(r[i + 8], r[i + 12]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = even_quarters(t[i], t[i + 8]);
    r[i + 4] = even_quarters(t[i + 4], t[i + 12]);
    r[i + 8] = odd_quarters(t[i], t[i + 8]);
    r[i + 12] = odd_quarters(t[i + 4], t[i + 12]);
  }
}

// to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns; both at most 16. With `pad`, lanes
// behind `rows` become 0.
inline void move_lanes(const float* from, int64_t from_step, int64_t rows, int64_t columns, float* to,
                       int64_t to_step, bool pad) {
  const __mmask16 in = static_cast<__mmask16>((1u << columns) - 1);
  const __mmask16 out = pad ? 0xffff : static_cast<__mmask16>((1u << rows) - 1);
  Lanes r[kImageLanes];
  if (rows == kImageLanes && columns == kImageLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kImageLanes; ++i) r[i] = _mm512_loadu_ps(from + i * from_step);
    transpose_lanes(r);
#pragma GCC unroll 16
    for (int i = 0; i < kImageLanes; ++i) _mm512_storeu_ps(to + i * to_step, r[i]);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kImageLanes; ++i) {
    r[i] = i < rows ? _mm512_maskz_loadu_ps(in, from + i * from_step) : Lanes{};
  }
  transpose_lanes(r);
#pragma GCC unroll 16
  for (int i = 0; i < kImageLanes; ++i) {
    if (i < columns) _mm512_mask_storeu_ps(to + i * to_step, out, r[i]);
  }
}
#else
inline void move_lanes(const float* from, int64_t from_step, int64_t rows, int64_t columns, float* to,
                       int64_t to_step, bool pad) {
  if (pad && rows < kImageLanes) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = rows; i < kImageLanes; ++i) to[j * to_step + i] = 0;
    }
  }
  transpose(from, from_step, rows, columns, to, to_step);
}
#endif

// Values j < count of `images` images, image_stride apart, to lines of 16 lanes; lanes without an image get 0.
inline void gather_lanes(const float* from, int64_t image_stride, int64_t images, int64_t count, float* to,
                         int64_t line_step) {
  for (int64_t j = 0; j < count; j += kImageLanes) {
    move_lanes(from + j, image_stride, images, std::min(kImageLanes, count - j), to + j * line_step, line_step,
               true);
  }
}

// The way back.
inline void scatter_lanes(const float* from, int64_t line_step, int64_t count, float* to, int64_t image_stride,
                          int64_t images) {
  for (int64_t j = 0; j < count; j += kImageLanes) {
    move_lanes(from + j * line_step, line_step, std::min(kImageLanes, count - j), images, to + j, image_stride,
               false);
  }
}

}  // namespace
