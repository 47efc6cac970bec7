// The dense kernel of float_conv2d.h.
#pragma once

#include "core/float_packing.h"

namespace pqk {

struct FloatDirectPlan {
  Conv2dShape shape;
  // Panels of kPanel channels, those of a group one after the other; the last of a group has as many vectors as
  // it needs.
  const float* weight;
  int64_t group_in, group_out;
  int64_t group_panels;
  int64_t group_floats;  // from a group's weights to the next group's
  FloatEpilogue epilogue;
};

struct FloatDirectFormat {
  int64_t lanes, panel;  // channels of a vector, of a panel
};
using FloatDirectFormatFunction = FloatDirectFormat();
// Panels [panel_begin, panel_end), counted through the groups.
using FloatDirectKernel = void(const FloatDirectPlan&, const FloatConvImages&, int64_t row_begin,
                               int64_t row_end, int64_t panel_begin, int64_t panel_end);
PQK_CPU_KERNEL(FloatDirectFormatFunction, float_direct_format)
PQK_CPU_KERNEL(FloatDirectKernel, float_direct_kernel)

}  // namespace pqk
