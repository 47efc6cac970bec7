// Steps that only move values: concat, slice, pad, dilate, flatten, and copies between layouts.
#pragma once

#include "core/cuda/engine/frame.cuh"

namespace pqk::engine::device {

// Where an output's index along an axis comes from, or -1.
PQK_DEVICE int source_of(const Axis& axis, int index) {
  const int at = index * axis.step + axis.start;
  if (axis.divisor == 1) return at >= 0 && at < axis.size ? at : -1;
  const int source = at / axis.divisor;
  return at >= 0 && source * axis.divisor == at && source < axis.size ? source : -1;
}

// False where the value comes from nowhere.
PQK_DEVICE bool source_of(const Axis (&axes)[3], const Position& to, Position& from) {
  from = {to.image, source_of(axes[1], to.y), source_of(axes[2], to.x), source_of(axes[0], to.c)};
  return from.c >= 0 && from.y >= 0 && from.x >= 0;
}

PQK_DEVICE void run(const MoveCodes& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& to) {
    Position from;
    const bool inside = source_of(s.axes, to, from);
    const uint8_t code = inside ? pixel_of(frame, s.input, from)[from.c] : static_cast<uint8_t>(s.fill);
    pixel_of(frame, s.output, to)[static_cast<int64_t>(to.c) * s.output_channel_stride] = code;
  });
}

PQK_DEVICE void run(const MoveFloats& s, const Frame& frame, const Team& team) {
  const bool planes = s.output.channel_stride != 1 || s.input.channel_stride != 1;
  for (int i = team.thread; i < num_items(s.extent, frame); i += team.threads) {
    const Position to = planes ? pixels_first(s.extent, i) : channels_first(s.extent, i);
    Position from;
    const float value = source_of(s.axes, to, from) ? load_float(frame, s.input, from) : 0.0f;
    if (s.tells && value != value) report_nan(frame, s.extent, to);
    store_float(frame, s.output, to, value);
  }
}

}  // namespace pqk::engine::device
