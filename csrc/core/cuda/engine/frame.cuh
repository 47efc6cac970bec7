// What the device functions of all steps share: where a team's threads find their items, and values in memory.
#pragma once

#include "core/cuda/device.h"
#include "core/cuda/engine/steps.h"
#include "core/numerics.h"

namespace pqk::engine::device {

#define PQK_DEVICE __device__ __forceinline__

struct Position {
  int image, y, x, c;  // c counts channels, or quads of them
};

PQK_DEVICE int num_items(const Extent& e, const Frame& frame) {
  return frame.images * static_cast<int>(e.by_pixels.divisor * e.by_channels.divisor);
}

PQK_DEVICE Position with_pixel(const Extent& e, Position at, int pixel) {
  at.x = e.by_width.split(pixel, at.y);
  return at;
}

// Neighbouring threads take neighbouring channels, as they lie in images of codes.
PQK_DEVICE Position channels_first(const Extent& e, int item) {
  Position at{};
  int pixels;
  at.c = e.by_channels.split(item, pixels);
  return with_pixel(e, at, e.by_pixels.split(pixels, at.image));
}

// Neighbouring threads take neighbouring pixels, as they lie in the caller's memory.
PQK_DEVICE Position pixels_first(const Extent& e, int item) {
  Position at{};
  int planes;
  const int pixel = e.by_pixels.split(item, planes);
  at.c = e.by_channels.split(planes, at.image);
  return with_pixel(e, at, pixel);
}

// Calls body(position) for the team's items.
template <class Body>
PQK_DEVICE void for_each(const Extent& e, const Frame& frame, const Team& team, const Body& body) {
  for (int i = team.thread; i < num_items(e, frame); i += team.threads) body(channels_first(e, i));
}

PQK_DEVICE uint8_t* image_of(const Frame& frame, const Codes& codes, int image) {
  return frame.arena + image * frame.arena_step + codes.offset;
}

// The first of the position's channels, or of its quad's.
PQK_DEVICE uint8_t* pixel_of(const Frame& frame, const Codes& codes, const Position& at) {
  return image_of(frame, codes, at.image) + at.y * codes.row_stride + at.x * codes.pixel_stride;
}

// The number of a quad's channels: images of one channel have bytes next to each other, all others whole quads.
PQK_DEVICE uint32_t load_quad(const Frame& frame, const Codes& codes, const Position& at) {
  const uint8_t* from = pixel_of(frame, codes, at);
  if (codes.pixel_stride == 1) return *from;
  return reinterpret_cast<const uint32_t*>(from)[at.c];
}

PQK_DEVICE void store_quad(const Frame& frame, const Codes& codes, const Position& at, uint32_t quad) {
  uint8_t* to = pixel_of(frame, codes, at);
  if (codes.pixel_stride == 1) {
    *to = static_cast<uint8_t>(quad);
  } else {
    reinterpret_cast<uint32_t*>(to)[at.c] = quad;
  }
}

PQK_DEVICE int byte_of(uint32_t word, int index) { return static_cast<int>((word >> (8 * index)) & 0xff); }

PQK_DEVICE const float* read_floats(const Frame& frame, const Floats& floats, int image) {
  switch (floats.memory) {
    case Floats::Memory::kInput:
      return frame.input + image * frame.input_step;
    case Floats::Memory::kOutput:
      return frame.output + image * frame.output_step;
    default:
      return reinterpret_cast<const float*>(frame.arena + image * frame.arena_step + floats.offset);
  }
}

PQK_DEVICE float* write_floats(const Frame& frame, const Floats& floats, int image) {
  if (floats.memory == Floats::Memory::kOutput) return frame.output + image * frame.output_step;
  return reinterpret_cast<float*>(frame.arena + image * frame.arena_step + floats.offset);
}

PQK_DEVICE int64_t float_index(const Floats& floats, int y, int x, int channel) {
  return static_cast<int64_t>(y) * floats.row_stride + static_cast<int64_t>(x) * floats.pixel_stride +
         static_cast<int64_t>(channel) * floats.channel_stride;
}

PQK_DEVICE float load_float(const Frame& frame, const Floats& floats, const Position& at) {
  return read_floats(frame, floats, at.image)[float_index(floats, at.y, at.x, at.c)];
}

PQK_DEVICE void store_float(const Frame& frame, const Floats& floats, const Position& at, float value) {
  write_floats(frame, floats, at.image)[float_index(floats, at.y, at.x, at.c)] = value;
}

// Remembers the smallest index of a NaN in the image.
PQK_DEVICE void report_nan(const Frame& frame, const Extent& e, const Position& at) {
  const auto pixels = static_cast<int>(e.by_pixels.divisor);
  const int index = at.c * pixels + at.y * e.width + at.x;
  atomicMax(frame.nan + at.image, ~static_cast<uint32_t>(index));
}

PQK_DEVICE Span span_of(const Frame& frame, const Constant<Span>& spans, int index) {
  const int4 v = __ldg(reinterpret_cast<const int4*>(spans.at(frame)) + index);
  return {v.x, v.y, v.z, v.w};
}

}  // namespace pqk::engine::device
