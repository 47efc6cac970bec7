#include "core/fake_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define PQK_INLINE inline __attribute__((always_inline))
#else
#define PQK_INLINE inline
#endif

#include "core/isa_begin.h"

namespace {

// Sixteen elements are one step on every instruction set, in 16 / kWidth registers, so that sums have one
// order.
constexpr int kStep = 16;

// One element a register: float64, and CPUs without a path of their own.
template <class T>
struct ScalarLanes {
  using Element = T;
  using V = T;
  using M = bool;
  static constexpr int kWidth = 1;
  static V set(T value) { return value; }
  static V load(const T* at) { return *at; }
  static void store(T* at, V value) { *at = value; }
  static V rint(V value) { return std::rint(value); }
  static M at_least(V a, V b) { return a >= b; }
  static M ordered(V a) { return a == a; }
  static M both(M a, M b) { return a && b; }
  static M not_and(M a, M b) { return !a && b; }
  static M from_bytes(const uint8_t* at) { return *at != 0; }
  static V select(M keep, V yes, V no) { return keep ? yes : no; }
  static V zero_unless(M keep, V value) { return keep ? value : T(0); }
  // NaN values pass through, as in numerics.h.
  static V clamp(V v, V low, V high) { return v < low ? low : (v > high ? high : v); }
  static uint32_t bits(M mask) { return mask; }
};

#if PQK_ISA_LEVEL >= 2
struct FloatLanes {
  using Element = float;
  using V = __m512;
  using M = __mmask16;
  static constexpr int kWidth = 16;
  static V set(float value) { return _mm512_set1_ps(value); }
  static V load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, V value) { _mm512_storeu_ps(at, value); }
  static V rint(V value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static M at_least(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static M ordered(V a) { return _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q); }
  static M both(M a, M b) { return a & b; }
  static M not_and(M a, M b) { return static_cast<M>(~a & b); }
  static M from_bytes(const uint8_t* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm_test_epi8_mask(bytes, bytes);
  }
  static V select(M keep, V yes, V no) { return _mm512_mask_blend_ps(keep, no, yes); }
  static V zero_unless(M keep, V value) { return _mm512_maskz_mov_ps(keep, value); }
  // max and min return their second operand when one is NaN.
  static V clamp(V v, V low, V high) { return _mm512_min_ps(high, _mm512_max_ps(low, v)); }
  static uint32_t bits(M mask) { return mask; }
};
#elif PQK_ISA_LEVEL == 1
struct FloatLanes {
  using Element = float;
  using V = __m256;
  using M = __m256;
  static constexpr int kWidth = 8;
  static V set(float value) { return _mm256_set1_ps(value); }
  static V load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, V value) { _mm256_storeu_ps(at, value); }
  static V rint(V value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static M at_least(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static M ordered(V a) { return _mm256_cmp_ps(a, a, _CMP_ORD_Q); }
  static M both(M a, M b) { return _mm256_and_ps(a, b); }
  static M not_and(M a, M b) { return _mm256_andnot_ps(a, b); }
  static M from_bytes(const uint8_t* at) {
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(lanes, _mm256_setzero_si256()));
  }
  static V select(M keep, V yes, V no) { return _mm256_blendv_ps(no, yes, keep); }
  static V zero_unless(M keep, V value) { return _mm256_and_ps(keep, value); }
  static V clamp(V v, V low, V high) { return _mm256_min_ps(high, _mm256_max_ps(low, v)); }
  static uint32_t bits(M mask) { return static_cast<uint32_t>(_mm256_movemask_ps(mask)); }
};
#elif defined(PQK_X86_64)
struct FloatLanes {
  using Element = float;
  using V = __m128;
  using M = __m128;
  static constexpr int kWidth = 4;
  static V set(float value) { return _mm_set1_ps(value); }
  static V load(const float* at) { return _mm_loadu_ps(at); }
  static void store(float* at, V value) { _mm_storeu_ps(at, value); }
  // SSE2 has no rounding instruction: adding and subtracting 2^23 rounds what is smaller, half to even.
  static V rint(V value) {
    const __m128 sign_bit = _mm_set1_ps(-0.0f), limit = _mm_set1_ps(8388608.0f);
    const __m128 magnitude = _mm_andnot_ps(sign_bit, value);
    const __m128 rounded = _mm_sub_ps(_mm_add_ps(magnitude, limit), limit);
    const __m128 is_small = _mm_cmplt_ps(magnitude, limit);
    return select(is_small, _mm_or_ps(rounded, _mm_and_ps(sign_bit, value)), value);
  }
  static M at_least(V a, V b) { return _mm_cmpge_ps(a, b); }
  static M ordered(V a) { return _mm_cmpord_ps(a, a); }
  static M both(M a, M b) { return _mm_and_ps(a, b); }
  static M not_and(M a, M b) { return _mm_andnot_ps(a, b); }
  static M from_bytes(const uint8_t* at) {
    int32_t four;
    memcpy(&four, at, sizeof four);
    const __m128i zero = _mm_setzero_si128();
    const __m128i lanes = _mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
    return _mm_castsi128_ps(_mm_cmpgt_epi32(lanes, zero));
  }
  static V select(M keep, V yes, V no) { return _mm_or_ps(_mm_and_ps(keep, yes), _mm_andnot_ps(keep, no)); }
  static V zero_unless(M keep, V value) { return _mm_and_ps(keep, value); }
  static V clamp(V v, V low, V high) { return _mm_min_ps(high, _mm_max_ps(low, v)); }
  static uint32_t bits(M mask) { return static_cast<uint32_t>(_mm_movemask_ps(mask)); }
};
#else
using FloatLanes = ScalarLanes<float>;
#endif

struct BFloat16 {
  uint16_t bits;
};

inline void widen(const BFloat16* in, float* out, int count) {
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(in[i].bits) << 16;
    memcpy(&out[i], &bits, sizeof bits);
  }
}

inline void narrow(const float* in, BFloat16* out, int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, &in[i], sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out[i].bits = static_cast<uint16_t>(in[i] != in[i] ? 0x7fc0 : rounded);
  }
}

// Gives sixteen elements at `at` as float or double: in place when it can, else through `buffer`, zero-padded.
template <class Element, class Storage>
PQK_INLINE const Element* fetch(const Storage* at, Element* buffer, int count) {
  if constexpr (std::is_same_v<Element, Storage>) {
    if (count == kStep) return at;
    memset(buffer, 0, kStep * sizeof(Element));
    memcpy(buffer, at, count * sizeof(Element));
  } else {
    if (count < kStep) memset(buffer, 0, kStep * sizeof(Element));
    widen(at, buffer, count);
  }
  return buffer;
}

template <class Element, class Storage>
PQK_INLINE Element* target(Storage* at, Element* buffer, int count) {
  if constexpr (std::is_same_v<Element, Storage>) {
    if (count == kStep) return at;
  }
  return buffer;
}

template <class Element, class Storage>
PQK_INLINE void flush(Storage* at, const Element* buffer, int count) {
  if constexpr (std::is_same_v<Element, Storage>) {
    if (count < kStep) memcpy(at, buffer, count * sizeof(Element));
  } else {
    narrow(buffer, at, count);
  }
}

// The parameters of one channel, in registers.
template <class Lanes>
struct Constants {
  using E = typename Lanes::Element;
  Constants(const FakeQuantizeParams& p, const FakeQuantizeTables&, int64_t row, int64_t)
      : Constants(static_cast<const E*>(p.scale)[row % p.view.channels],
                  static_cast<const E*>(p.zero_point)[row % p.view.channels]) {}
  Constants(E scale_value, E zero_point_value)
      : s(Lanes::set(scale_value)), inv(Lanes::set(E(1) / scale_value)), z(Lanes::set(zero_point_value)) {}
  typename Lanes::V scale(int64_t) const { return s; }
  typename Lanes::V inv_scale(int64_t) const { return inv; }
  typename Lanes::V zero_point(int64_t) const { return z; }
  typename Lanes::V s, inv, z;
};

// One parameter an element of the row, from `column` on.
template <class Lanes>
struct Tables {
  using E = typename Lanes::Element;
  Tables(const FakeQuantizeParams&, const FakeQuantizeTables& t, int64_t, int64_t column)
      : s(static_cast<const E*>(t.scale) + column),
        inv(static_cast<const E*>(t.inv_scale) + column),
        z(static_cast<const E*>(t.zero_point) + column) {}
  typename Lanes::V scale(int64_t i) const { return Lanes::load(s + i); }
  typename Lanes::V inv_scale(int64_t i) const { return Lanes::load(inv + i); }
  typename Lanes::V zero_point(int64_t i) const { return Lanes::load(z + i); }
  const E *s, *inv, *z;
};

// Appends bits to a byte stream, 64 at a time.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}
  void push(uint32_t bits, int count) {
    word_ |= static_cast<uint64_t>(bits) << fill_;
    fill_ += count;
    if (fill_ < 64) return;
    memcpy(out_, &word_, sizeof word_);
    out_ += sizeof word_;
    fill_ -= 64;
    word_ = static_cast<uint64_t>(bits) >> (count - fill_);
  }
  void finish() { memcpy(out_, &word_, (fill_ + 7) / 8); }

 private:
  uint8_t* out_;
  uint64_t word_ = 0;
  int fill_ = 0;
};

template <class Lanes>
struct Bounds {
  explicit Bounds(const FakeQuantizeParams& p)
      : low(Lanes::set(static_cast<typename Lanes::Element>(p.quant_min))),
        high(Lanes::set(static_cast<typename Lanes::Element>(p.quant_max))) {}
  typename Lanes::M contain(typename Lanes::V v) const {
    return Lanes::both(Lanes::at_least(v, low), Lanes::at_least(high, v));
  }
  typename Lanes::V low, high;
};

// Sixteen elements; returns which are in range (and kept by the mask).
template <bool kMask, class Lanes, class Source>
PQK_INLINE uint32_t forward_step(const typename Lanes::Element* x, typename Lanes::Element* y,
                                 const uint8_t* mask, const Source& source, int64_t at,
                                 const Bounds<Lanes>& bounds) {
  uint32_t bits = 0;
  for (int i = 0; i < kStep; i += Lanes::kWidth) {
    const auto zero_point = source.zero_point(at + i);
    const auto shifted = Lanes::rint(Lanes::load(x + i) * source.inv_scale(at + i)) + zero_point;
    auto out = (Lanes::clamp(shifted, bounds.low, bounds.high) - zero_point) * source.scale(at + i);
    auto in_range = bounds.contain(shifted);
    if constexpr (kMask) {
      const auto keep = Lanes::from_bytes(mask + i);
      in_range = Lanes::both(in_range, keep);
      out = Lanes::zero_unless(keep, out);
    }
    Lanes::store(y + i, out);
    bits |= Lanes::bits(in_range) << i;
  }
  return bits;
}

template <class Lanes, class Storage, template <class> class Source>
class ForwardRun {
 public:
  using E = typename Lanes::Element;
  ForwardRun(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin)
      : job_(job),
        tables_(tables),
        bounds_(job.params),
        writer_(job.in_range == nullptr ? nullptr : job.in_range + begin / 8) {}

  // Elements [at, at + length) of one row.
  template <bool kMask, bool kBits>
  void piece(int64_t at, int64_t length, int64_t row, int64_t column) {
    const Source<Lanes> source(job_.params, tables_, row, column);
    int64_t i = 0;
    for (; i + kStep <= length; i += kStep) step<kMask, kBits>(at, i, kStep, source);
    if (i < length) step<kMask, kBits>(at, i, static_cast<int>(length - i), source);
  }
  void finish() { writer_.finish(); }

 private:
  template <bool kMask, bool kBits>
  PQK_INLINE void step(int64_t at, int64_t i, int count, const Source<Lanes>& source) {
    Storage* output = static_cast<Storage*>(job_.output) + at + i;
    const E* x = fetch<E>(static_cast<const Storage*>(job_.input) + at + i, x_buffer_, count);
    E* y = target<E>(output, y_buffer_, count);
    const uint8_t* mask = nullptr;
    if constexpr (kMask) mask = fetch(job_.params.mask + at + i, mask_buffer_, count);
    const uint32_t bits = forward_step<kMask, Lanes>(x, y, mask, source, i, bounds_);
    flush(output, y, count);
    if constexpr (kBits) writer_.push(bits & ((1u << count) - 1), count);
  }

  const FakeQuantizeForward& job_;
  const FakeQuantizeTables& tables_;
  Bounds<Lanes> bounds_;
  BitWriter writer_;
  E x_buffer_[kStep], y_buffer_[kStep];
  uint8_t mask_buffer_[kStep] = {};
};

template <class Lanes, class Storage, template <class> class Source>
void forward(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin, int64_t end) {
  const FakeQuantizeParams& p = job.params;
  const bool bits = job.in_range != nullptr;
  const int64_t row_length = tables.used() ? p.view.channels * p.view.inner : p.view.inner;
  ForwardRun<Lanes, Storage, Source> run(job, tables, begin);
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / row_length, column = at % row_length;
    const int64_t length = std::min(row_length - column, end - at);
    if (p.mask == nullptr) {
      bits ? run.template piece<false, true>(at, length, row, column)
           : run.template piece<false, false>(at, length, row, column);
    } else {
      bits ? run.template piece<true, true>(at, length, row, column)
           : run.template piece<true, false>(at, length, row, column);
    }
    at += length;
  }
  if (bits) run.finish();
}

template <class Lanes>
struct Sums {
  typename Lanes::V scale[kStep / Lanes::kWidth];
  typename Lanes::V zero_point[kStep / Lanes::kWidth];
  Sums() {
    for (auto& v : scale) v = Lanes::set(0);
    for (auto& v : zero_point) v = Lanes::set(0);
  }
  static double lane(const typename Lanes::V* lanes, int64_t index) {
    typename Lanes::Element value;
    memcpy(&value, reinterpret_cast<const char*>(lanes) + index * sizeof value, sizeof value);
    return value;
  }
  // A fixed tree, in double.
  static double total(const typename Lanes::V* lanes) {
    typename Lanes::Element values[kStep];
    for (int i = 0; i < kStep; i += Lanes::kWidth) Lanes::store(values + i, lanes[i / Lanes::kWidth]);
    double sums[kStep];
    for (int i = 0; i < kStep; ++i) sums[i] = values[i];
    for (int width = kStep / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0];
  }
};

// Padding elements have grad_output 0 and input 0, which adds 0 to the sums.
template <bool kMask, class Lanes, class Source>
PQK_INLINE void backward_step(const typename Lanes::Element* x, const typename Lanes::Element* dy,
                              typename Lanes::Element* dx, const uint8_t* mask, const Source& source,
                              int64_t at, const Bounds<Lanes>& bounds, Sums<Lanes>& sums) {
  for (int i = 0; i < kStep; i += Lanes::kWidth) {
    const auto zero_point = source.zero_point(at + i);
    const auto scaled = Lanes::load(x + i) * source.inv_scale(at + i);
    const auto rounded = Lanes::rint(scaled);
    const auto shifted = rounded + zero_point;
    const auto grad = Lanes::load(dy + i);
    auto in_range = bounds.contain(shifted);
    auto counts = Lanes::ordered(shifted);
    if constexpr (kMask) {
      const auto keep = Lanes::from_bytes(mask + i);
      in_range = Lanes::both(in_range, keep);
      counts = Lanes::both(counts, keep);
    }
    Lanes::store(dx + i, Lanes::zero_unless(in_range, grad));
    const auto clamped = Lanes::clamp(shifted, bounds.low, bounds.high) - zero_point;
    const auto slope = Lanes::select(in_range, rounded - scaled, clamped);
    const int lane = i / Lanes::kWidth;
    sums.scale[lane] = sums.scale[lane] + Lanes::zero_unless(counts, grad * slope);
    sums.zero_point[lane] = sums.zero_point[lane] + Lanes::zero_unless(Lanes::not_and(in_range, counts), grad);
  }
}

template <class Lanes, class Storage>
class BackwardRun {
 public:
  using E = typename Lanes::Element;
  explicit BackwardRun(const FakeQuantizeBackward& job) : job_(job), bounds_(job.params) {}

  // Elements [at, at + count) with count <= 16; their parameters start at `offset` of `source`.
  template <bool kMask, class Source>
  PQK_INLINE void step(int64_t at, int count, const Source& source, int64_t offset, Sums<Lanes>& sums) {
    Storage* out = static_cast<Storage*>(job_.grad_input) + at;
    const E* x = fetch<E>(static_cast<const Storage*>(job_.input) + at, x_buffer_, count);
    const E* dy = fetch<E>(static_cast<const Storage*>(job_.grad_output) + at, dy_buffer_, count);
    E* dx = target<E>(out, dx_buffer_, count);
    const uint8_t* mask = nullptr;
    if constexpr (kMask) mask = fetch(job_.params.mask + at, mask_buffer_, count);
    backward_step<kMask, Lanes>(x, dy, dx, mask, source, offset, bounds_, sums);
    flush(out, dx, count);
  }

 private:
  const FakeQuantizeBackward& job_;
  Bounds<Lanes> bounds_;
  E x_buffer_[kStep], dy_buffer_[kStep], dx_buffer_[kStep];
  uint8_t mask_buffer_[kStep] = {};
};

template <class Lanes, class Storage, bool kMask>
void backward_by_row(const FakeQuantizeBackward& job, double* partial, int64_t begin, int64_t end) {
  const ChannelView& view = job.params.view;
  const int64_t pieces = (view.inner + kSumChunk - 1) / kSumChunk;
  BackwardRun<Lanes, Storage> run(job);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item / pieces, first = item % pieces * kSumChunk;
    const int64_t length = std::min(kSumChunk, view.inner - first), at = row * view.inner + first;
    const Constants<Lanes> source(job.params, {}, row, 0);
    Sums<Lanes> sums;
    int64_t i = 0;
    for (; i + kStep <= length; i += kStep) run.template step<kMask>(at + i, kStep, source, 0, sums);
    if (i < length) run.template step<kMask>(at + i, static_cast<int>(length - i), source, 0, sums);
    partial[2 * item] = Sums<Lanes>::total(sums.scale);
    partial[2 * item + 1] = Sums<Lanes>::total(sums.zero_point);
  }
}

template <class Lanes, class Storage, bool kMask>
void backward_by_column(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                        int64_t begin, int64_t end) {
  const ChannelView& view = job.params.view;
  const int64_t row_length = view.channels * view.inner;
  const int64_t block = columns_per_block(view), blocks = (row_length + block - 1) / block;
  BackwardRun<Lanes, Storage> run(job);
  Sums<Lanes> sums[kColumnBlock / kStep];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / blocks, first = item % blocks * block;
    const int64_t length = std::min(block, row_length - first);
    const int64_t last_row = std::min(view.outer, (group + 1) * kSumRows);
    const Tables<Lanes> source(job.params, tables, 0, first);
    for (auto& s : sums) s = Sums<Lanes>();
    for (int64_t row = group * kSumRows; row < last_row; ++row) {
      for (int64_t i = 0; i < length; i += kStep) {
        const int count = static_cast<int>(std::min<int64_t>(kStep, length - i));
        run.template step<kMask>(row * row_length + first + i, count, source, i, sums[i / kStep]);
      }
    }
    double* out = partial + 2 * (group * view.channels + first / view.inner);
    for (int64_t i = 0; i < length; out += 2) {
      double scale_sum = 0, zero_point_sum = 0;
      for (const int64_t last = i + view.inner; i < last; ++i) {
        scale_sum += Sums<Lanes>::lane(sums[i / kStep].scale, i % kStep);
        zero_point_sum += Sums<Lanes>::lane(sums[i / kStep].zero_point, i % kStep);
      }
      out[0] = scale_sum;
      out[1] = zero_point_sum;
    }
  }
}

template <class Lanes, class Storage>
void forward_any(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin, int64_t end) {
  tables.used() ? forward<Lanes, Storage, Tables>(job, tables, begin, end)
                : forward<Lanes, Storage, Constants>(job, tables, begin, end);
}

template <class Lanes, class Storage>
void backward_any(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables, double* partial,
                  int64_t begin, int64_t end) {
  if (job.params.mask == nullptr) {
    tables.used() ? backward_by_column<Lanes, Storage, false>(job, tables, partial, begin, end)
                  : backward_by_row<Lanes, Storage, false>(job, partial, begin, end);
  } else {
    tables.used() ? backward_by_column<Lanes, Storage, true>(job, tables, partial, begin, end)
                  : backward_by_row<Lanes, Storage, true>(job, partial, begin, end);
  }
}

// Elements as unsigned integers of their size. The mask arithmetic leaves no branch to mispredict.
template <class Bits>
void straight_through_range(const StraightThrough& job, int64_t begin, int64_t end) {
  const Bits* __restrict in = static_cast<const Bits*>(job.grad_output);
  Bits* __restrict out = static_cast<Bits*>(job.grad_input);
  int64_t at = begin;
#if PQK_ISA_LEVEL == 1
  if constexpr (sizeof(Bits) == 4) {
    const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (; at + 8 <= end; at += 8) {
      const __m256i byte = _mm256_set1_epi32(job.in_range[at / 8]);
      const __m256i keep = _mm256_cmpeq_epi32(_mm256_and_si256(byte, lane_bits), lane_bits);
      const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + at));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), _mm256_and_si256(keep, value));
    }
  }
#elif PQK_ISA_LEVEL >= 2
  if constexpr (sizeof(Bits) == 4) {
    for (; at + kStep <= end; at += kStep) {
      uint16_t word;
      memcpy(&word, job.in_range + at / 8, sizeof word);
      _mm512_storeu_si512(out + at, _mm512_maskz_loadu_epi32(word, in + at));
    }
  }
#endif
  for (; at + 8 <= end; at += 8) {
    const uint32_t byte = job.in_range[at / 8];
    for (int i = 0; i < 8; ++i) out[at + i] = in[at + i] & (Bits(0) - static_cast<Bits>((byte >> i) & 1));
  }
  for (; at < end; ++at)
    out[at] = in[at] & (Bits(0) - static_cast<Bits>((job.in_range[at / 8] >> (at % 8)) & 1));
}

}  // namespace

void fake_quantize_forward_kernel(const FakeQuantizeForward& job, const FakeQuantizeTables& tables,
                                  int64_t begin, int64_t end) {
  switch (job.params.type) {
    case FloatType::kFloat32:
      return forward_any<FloatLanes, float>(job, tables, begin, end);
    case FloatType::kFloat64:
      return forward_any<ScalarLanes<double>, double>(job, tables, begin, end);
    case FloatType::kBFloat16:
      return forward_any<FloatLanes, BFloat16>(job, tables, begin, end);
  }
}

void fake_quantize_backward_kernel(const FakeQuantizeBackward& job, const FakeQuantizeTables& tables,
                                   double* partial, int64_t begin, int64_t end) {
  switch (job.params.type) {
    case FloatType::kFloat32:
      return backward_any<FloatLanes, float>(job, tables, partial, begin, end);
    case FloatType::kFloat64:
      return backward_any<ScalarLanes<double>, double>(job, tables, partial, begin, end);
    case FloatType::kBFloat16:
      return backward_any<FloatLanes, BFloat16>(job, tables, partial, begin, end);
  }
}

void straight_through_kernel(const StraightThrough& job, int64_t begin, int64_t end) {
  switch (job.element_size) {
    case 2:
      return straight_through_range<uint16_t>(job, begin, end);
    case 4:
      return straight_through_range<uint32_t>(job, begin, end);
    case 8:
      return straight_through_range<uint64_t>(job, begin, end);
  }
}

#include "core/isa_end.h"
