#include "core/packed.h"

#include <cstring>
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

constexpr uint64_t kBytes = 0x0101010101010101;

inline uint64_t spread(uint64_t packed, int bits, uint64_t fields) {
#if PQK_ISA_LEVEL >= 1
  (void)bits;
  return _pdep_u64(packed, fields);
#else
  uint64_t bytes = 0;
  for (int i = 0; i < 8; ++i) bytes |= (packed >> (i * bits)) << (8 * i) & fields & uint64_t{0xff} << (8 * i);
  return bytes;
#endif
}

}  // namespace

void unpack_kernel(const uint8_t* packed, int bits, int64_t groups, int8_t* output) {
  const uint64_t fields = kBytes * ((1u << bits) - 1), sign = kBytes << (bits - 1), guard = kBytes << 7;
  for (int64_t g = 0; g < groups; ++g, packed += bits, output += 8) {
    uint64_t word;
    std::memcpy(&word, packed, sizeof word);
    // (code ^ sign) - sign extends the sign; the guard keeps each byte from borrowing of the next.
    const uint64_t bytes = (((spread(word, bits, fields) ^ sign) | guard) - sign) ^ guard;
    std::memcpy(output, &bytes, sizeof bytes);
  }
}

#include "core/isa_end.h"
