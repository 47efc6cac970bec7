#include <algorithm>
#include <cstring>

#include "core/masked_conv2d.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_transpose_cpu.h"

#include "core/masked_lanes_cpu.h"

namespace {

class Filler {
 public:
  Filler(const LanePass& pass, const ImageBatch& source, const LaneTile& tile)
      : p_(pass), source_(source), tile_(tile), step_(pass.blocks * kImageLanes) {
    width_ = pass.columns() + pass.x.reach;
  }

  void fill(float* panel) const {
    const int64_t kept = tile_.follows ? p_.y.reach : 0;
    if (kept > 0) keep_lines(panel, kept);
    for (const int64_t first_y : p_.y.first) {
      for (const int64_t first_x : p_.x.first) {
        for (int64_t line = kept; line < tile_.lines + p_.y.reach; ++line) {
          const int64_t row = first_y + (p_.row_begin + tile_.line + line) * p_.y.step;
          fill_line(row, first_x + p_.column_begin * p_.x.step, panel + line * p_.line_pitch);
        }
        panel += p_.slot_pitch;
      }
    }
  }

 private:
  // The tile before, of p_.tile_rows lines, ends with the first `count` of this one.
  void keep_lines(float* panel, int64_t count) const {
    const int64_t slots = static_cast<int64_t>(p_.y.first.size() * p_.x.first.size());
    for (int64_t channel = 0; channel < p_.in_channels; ++channel) {
      for (int64_t slot = 0; slot < slots; ++slot) {
        float* lines = panel + channel * p_.channel_pitch + slot * p_.slot_pitch;
        std::memmove(lines, lines + p_.tile_rows * p_.line_pitch,
                     static_cast<size_t>(count * p_.line_pitch) * sizeof(float));
      }
    }
  }

  void zero(float* line, int64_t begin, int64_t end) const {
    for (int64_t channel = 0; channel < p_.in_channels && begin < end; ++channel) {
      std::memset(line + channel * p_.channel_pitch + begin * step_, 0,
                  static_cast<size_t>((end - begin) * step_) * sizeof(float));
    }
  }

  // Cell i of the line is column first + i * step of a row of the source, if both exist.
  void fill_line(int64_t row, int64_t first, float* line) const {
    if (row < 0 || row >= p_.in_height) return zero(line, 0, width_);
    const int64_t step = p_.x.step;
    const int64_t begin = std::min(width_, first >= 0 ? 0 : (-first + step - 1) / step);
    const int64_t end =
        std::clamp<int64_t>(first >= p_.in_width ? 0 : (p_.in_width - first + step - 1) / step, begin, width_);
    zero(line, 0, begin);
    zero(line, end, width_);
    if (begin == end) return;
    for (int64_t block = 0; block < p_.blocks; ++block) {
      const int64_t images = std::clamp<int64_t>(tile_.images - block * kImageLanes, 0, kImageLanes);
      const float* from = source_.data + (tile_.image + block * kImageLanes) * source_.image_stride +
                          row * source_.row_stride + (first + begin * step) * source_.column_stride;
      float* to = line + begin * step_ + block * kImageLanes;
      if (source_.channel_stride == 1) {
        for (int64_t i = 0; i < end - begin; ++i) {
          gather_lanes(from + i * step * source_.column_stride, source_.image_stride, images, p_.in_channels,
                       to + i * step_, p_.channel_pitch);
        }
      } else {
        fill_columns(from, images, end - begin, to);
      }
    }
  }

  // `count` columns, each p_.x.step after the other, of every channel.
  void fill_columns(const float* from, int64_t images, int64_t count, float* to) const {
    const int64_t stride = p_.x.step * source_.column_stride;
    for (int64_t channel = 0; channel < p_.in_channels; ++channel) {
      if (stride == 1) {
        gather_lanes(from, source_.image_stride, images, count, to, step_);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          gather_lanes(from + i * stride, source_.image_stride, images, 1, to + i * step_, step_);
        }
      }
      from += source_.channel_stride;
      to += p_.channel_pitch;
    }
  }

  const LanePass& p_;
  const ImageBatch& source_;
  const LaneTile& tile_;
  const int64_t step_;  // floats from a cell to the next
  int64_t width_;       // cells of a line
};

}  // namespace

void lane_fill_kernel(const LanePass& pass, const ImageBatch& source, const LaneTile& tile, float* panel) {
  Filler(pass, source, tile).fill(panel);
}

#include "core/isa_end.h"
