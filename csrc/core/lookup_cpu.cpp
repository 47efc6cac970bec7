#include "core/lookup.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

void lookup_run(const uint8_t* table, const uint8_t* in, uint8_t* out, int64_t count) {
  int64_t i = 0;
#if PQK_ISA_LEVEL >= 2
  const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
  const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
  for (; i < count; i += 64) {
    const __mmask64 mask = count - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (count - i)) - 1;
    const __m512i x = _mm512_maskz_loadu_epi8(mask, in + i);
    const __m512i low = _mm512_permutex2var_epi8(t0, x, t1), high = _mm512_permutex2var_epi8(t2, x, t3);
    _mm512_mask_storeu_epi8(out + i, mask, _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(x), high));
  }
#endif
  for (; i < count; ++i) out[i] = table[in[i]];
}

}  // namespace

void lookup_kernel(const LookupParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                   int64_t row_end) {
  const bool whole_rows = input.pixel_stride == output.pixel_stride && output.pixel_stride - p.channels < 4;
  const int64_t runs = whole_rows ? 1 : p.width;
  const int64_t length = whole_rows ? p.width * output.pixel_stride : p.channels;
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < runs; ++x) {
      lookup_run(p.table, input.data + y * input.row_stride + x * input.pixel_stride,
                 output.data + y * output.row_stride + x * output.pixel_stride, length);
    }
  }
}

#include "core/isa_end.h"
