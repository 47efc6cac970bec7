// CUDA's intrinsics of one thread. Included by cuda.h alone.
#pragma once

// Loads and stores with cache hints.
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
T __ldca(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, std::type_identity_t<T> value) {
  *at = value;
}
template <class T>
void __stcg(T* at, std::type_identity_t<T> value) {
  *at = value;
}
template <class T>
void __stwt(T* at, std::type_identity_t<T> value) {
  *at = value;
}

inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }

// What the GPU does with every conversion of a float to an int: NaN is 0, and what does not fit is the nearest.
inline int __float2int_rz(float value) {
  if (value != value) return 0;
  if (value >= 2147483648.0f) return INT32_MAX;
  return value <= -2147483648.0f ? INT32_MIN : static_cast<int>(value);
}
inline int __float2int_rn(float value) { return __float2int_rz(rintf(value)); }
inline int __float2int_rd(float value) { return __float2int_rz(floorf(value)); }
inline int __float2int_ru(float value) { return __float2int_rz(ceilf(value)); }
inline unsigned __float2uint_rn(float value) {
  const float rounded = rintf(value);
  if (!(rounded > 0.0f)) return 0;
  return rounded >= 4294967296.0f ? UINT32_MAX : static_cast<unsigned>(rounded);
}
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.0f / value; }
inline float __fsqrt_rn(float value) { return sqrtf(value); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline int __popc(uint32_t value) { return std::popcount(value); }
inline int __popcll(uint64_t value) { return std::popcount(value); }
inline int __clz(uint32_t value) { return std::countl_zero(value); }
inline int __clzll(uint64_t value) { return std::countl_zero(value); }
inline int __ffs(uint32_t value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline int __ffsll(uint64_t value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline uint32_t __brev(uint32_t value) {
  uint32_t reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (value >> bit & 1) << (31 - bit);
  return reversed;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// Byte i of the result is byte (selector >> 4 * i) & 7 of the eight bytes of x (low) and y (high); with bit 3
// of its nibble set, that byte's sign in all its bits.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7))) & 0xff;
    if ((nibble & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline uint32_t __funnelshift_lc(uint32_t low, uint32_t high, uint32_t shift) {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline uint32_t __funnelshift_rc(uint32_t low, uint32_t high, uint32_t shift) {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

// Four products of bytes, added to c without saturation.
inline int __dp4a(int a, int b, int c) {
  uint32_t sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<uint32_t>(static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i));
  }
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
  return c;
}

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// Threads run one at a time, so that plain operations are atomic.
#define PQK_ATOMIC(name, expression)             \
  template <class T>                             \
  T name(T* at, std::type_identity_t<T> value) { \
    const T old = *at;                           \
    *at = (expression);                          \
    return old;                                  \
  }
PQK_ATOMIC(atomicAdd, static_cast<T>(old + value))
PQK_ATOMIC(atomicSub, static_cast<T>(old - value))
PQK_ATOMIC(atomicMax, old < value ? value : old)
PQK_ATOMIC(atomicMin, value < old ? value : old)
PQK_ATOMIC(atomicOr, old | value)
PQK_ATOMIC(atomicAnd, old& value)
PQK_ATOMIC(atomicXor, old ^ value)
PQK_ATOMIC(atomicExch, value)
#undef PQK_ATOMIC
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
