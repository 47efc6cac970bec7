// The arithmetic of the whole package, once. CPU kernels of every instruction set, CUDA kernels, and the
// numpy and torch references compute exactly these expressions, so results agree to the bit.
//
// Rules: float32 throughout; a product and a following sum are rounded separately (never a fused multiply-add);
// rounding to integers is half to even; clamping happens before a float is cast to an integer.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PQK_HOST_DEVICE __host__ __device__
#else
#define PQK_HOST_DEVICE
#endif

namespace pqk {

PQK_HOST_DEVICE inline float clamp_float(float value, float low, float high) {
  // A NaN value fails both comparisons and stays NaN.
  return value < low ? low : (value > high ? high : value);
}

// clamp(rint(x * inv_scale) + zero_point): a code as a float. NaN stays NaN.
PQK_HOST_DEVICE inline float quantize_value(float x, float inv_scale, float zero_point, float quant_min,
                                            float quant_max) {
  const float rounded = rintf(x * inv_scale);
  const float shifted = rounded + zero_point;
  return clamp_float(shifted, quant_min, quant_max);
}

PQK_HOST_DEVICE inline float dequantize_value(float code, float scale, float zero_point) {
  return (code - zero_point) * scale;
}

PQK_HOST_DEVICE inline float fake_quantize_value(float x, float scale, float inv_scale, float zero_point,
                                                 float quant_min, float quant_max) {
  return dequantize_value(quantize_value(x, inv_scale, zero_point, quant_min, quant_max), scale, zero_point);
}

// The real-valued result of an accumulator: separate multiply and add.
PQK_HOST_DEVICE inline float rescale(int32_t accumulator, float multiplier, float bias) {
  const float product = static_cast<float>(accumulator) * multiplier;
  return product + bias;
}

// The same with a residual operand, in this order: (acc * m + (r - zp) * m_r) + bias.
PQK_HOST_DEVICE inline float rescale_residual(int32_t accumulator, float multiplier, int32_t residual,
                                              int32_t residual_zero_point, float residual_multiplier,
                                              float bias) {
  const float product = static_cast<float>(accumulator) * multiplier;
  const float other = static_cast<float>(residual - residual_zero_point) * residual_multiplier;
  const float sum = product + other;
  return sum + bias;
}

// clamp(rint(value)) as an unsigned 8-bit code. `value` must not be NaN (the plan checks its parameters).
PQK_HOST_DEVICE inline uint8_t to_code(float value, float quant_min, float quant_max) {
  return static_cast<uint8_t>(clamp_float(rintf(value), quant_min, quant_max));
}

// Whether every |value| <= `range` * |multiplier| + |bias| converts to int32 with room for rounding.
inline bool fits_int32(double range, double multiplier, double bias) {
  return range * std::fabs(multiplier) + std::fabs(bias) < 1e9;
}

// exp(x) for x <= 0 in plain float32 steps (Cody-Waite reduction, degree-6 polynomial), so that softmax has
// the same bits everywhere; at most 2 ulp from the true value. Below -87 the result is 0.
PQK_HOST_DEVICE inline float exp_nonpositive(float x) {
  if (!(x >= -87.0f)) return x != x ? x : 0.0f;
  const float n = rintf(x * 1.44269504f);
  const float high = n * 0.693359375f;
  const float low = n * -2.12194440e-4f;
  float r = x - high;
  r = r - low;
  float p = 1.9875691500e-4f;
  p = p * r;
  p = p + 1.3981999507e-3f;
  p = p * r;
  p = p + 8.3334519073e-3f;
  p = p * r;
  p = p + 4.1665795894e-2f;
  p = p * r;
  p = p + 1.6666665459e-1f;
  p = p * r;
  p = p + 5.0000001201e-1f;
  const float r2 = r * r;
  p = p * r2;
  p = p + r;
  p = p + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

PQK_HOST_DEVICE inline float relu6(float x) { return clamp_float(x, 0.0f, 6.0f); }

PQK_HOST_DEVICE inline float absolute(float x) { return x < 0.0f ? -x : x; }

// exp of what is not positive never overflows.
PQK_HOST_DEVICE inline float sigmoid(float x) {
  const float e = exp_nonpositive(-absolute(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

PQK_HOST_DEVICE inline float tanh_value(float x) {
  const float e = exp_nonpositive(-2.0f * absolute(x));
  const float t = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -t : t;
}

}  // namespace pqk
