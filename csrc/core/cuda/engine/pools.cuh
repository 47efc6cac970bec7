// Pools of codes and of floats.
#pragma once

#include "core/cuda/engine/maps.cuh"

namespace pqk::engine::device {

// Calls take(offset) for every position of the image under a window.
template <class Take>
PQK_DEVICE void for_window(const Span& rows, const Span& columns, int row_stride, int pixel_stride,
                           const Take& take) {
  for (int y = rows.begin; y < rows.end; y += rows.step) {
#pragma unroll 2
    for (int x = columns.begin; x < columns.end; x += columns.step) {
      take(static_cast<int64_t>(y) * row_stride + static_cast<int64_t>(x) * pixel_stride);
    }
  }
}

template <class Take>
PQK_DEVICE void for_quads(const Codes& input, const Frame& frame, const Position& at, const Span& rows,
                          const Span& columns, const Take& take) {
  const uint8_t* image = image_of(frame, input, at.image);
  for_window(rows, columns, input.row_stride, input.pixel_stride, [&](int64_t offset) {
    const bool bytes = input.pixel_stride == 1;
    take(bytes ? image[offset] : reinterpret_cast<const uint32_t*>(image + offset)[at.c]);
  });
}

PQK_DEVICE void run(const MaxPool& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    int largest[4] = {};
    for_quads(s.input, frame, at, span_of(frame, s.rows, at.y), span_of(frame, s.columns, at.x),
              [&](uint32_t quad) {
#pragma unroll
                for (int k = 0; k < 4; ++k)
                  largest[k] = byte_of(quad, k) > largest[k] ? byte_of(quad, k) : largest[k];
              });
    store_quad(frame, s.output, at, quad_of([&](int k) { return largest[k]; }));
  });
}

PQK_DEVICE void run(const AvgPool& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const Span rows = span_of(frame, s.rows, at.y), columns = span_of(frame, s.columns, at.x);
    const int positions = rows.count * columns.count;
    int sums[4] = {};
    for_quads(s.input, frame, at, rows, columns, [&](uint32_t quad) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] += byte_of(quad, k);
    });
    const float multiplier = s.multiplier / static_cast<float>(s.divisor != 0 ? s.divisor : positions);
    const int offset = positions * s.zero_point;
    store_quad(frame, s.output, at, quad_of([&](int k) {
                 return to_code(rescale(sums[k] - offset, multiplier, s.bias), s.quant_min, s.quant_max);
               }));
  });
}

PQK_DEVICE void run(const FloatPool& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const Span rows = span_of(frame, s.rows, at.y), columns = span_of(frame, s.columns, at.x);
    const float area = s.divisor != 0.0f ? s.divisor : static_cast<float>(rows.count * columns.count);
    const float factor = s.largest ? 1.0f : 1.0f / area;
    const float* image = read_floats(frame, s.input, at.image) + float_index(s.input, 0, 0, at.c);
    float value = s.largest ? -INFINITY : 0.0f;
    for_window(rows, columns, s.input.row_stride, s.input.pixel_stride, [&](int64_t offset) {
      const float x = image[offset];
      value = s.largest ? (value > x ? value : x) : value + x;
    });
    store_float(frame, s.output, at, value * factor);
  });
}

}  // namespace pqk::engine::device
