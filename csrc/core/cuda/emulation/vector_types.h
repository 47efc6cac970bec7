// CUDA's vector types, as aligned as there.
#pragma once

#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};

#define PQK_VECTOR_2(Scalar, name)                             \
  struct alignas(2 * sizeof(Scalar)) name##2 { Scalar x, y; }; \
  inline name##2 make_##name##2(Scalar x, Scalar y) { return {x, y}; }
#define PQK_VECTOR_4(Scalar, name)                                   \
  struct alignas(4 * sizeof(Scalar)) name##4 { Scalar x, y, z, w; }; \
  inline name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }
PQK_VECTOR_2(signed char, char)
PQK_VECTOR_2(unsigned char, uchar)
PQK_VECTOR_2(short, short)
PQK_VECTOR_2(unsigned short, ushort)
PQK_VECTOR_2(int, int)
PQK_VECTOR_2(unsigned, uint)
PQK_VECTOR_2(float, float)
PQK_VECTOR_2(long long, longlong)
PQK_VECTOR_2(unsigned long long, ulonglong)
PQK_VECTOR_2(double, double)
PQK_VECTOR_4(signed char, char)
PQK_VECTOR_4(unsigned char, uchar)
PQK_VECTOR_4(short, short)
PQK_VECTOR_4(unsigned short, ushort)
PQK_VECTOR_4(int, int)
PQK_VECTOR_4(unsigned, uint)
PQK_VECTOR_4(float, float)
#undef PQK_VECTOR_2
#undef PQK_VECTOR_4

inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
