#include "core/fake_quantize_lanes.h"

#include "core/isa_begin.h"

namespace {

// Elements a turn of the inner loop, where there are so many: their in-range bits make one word.
constexpr int kTurn = 64;

// Appends bits to a byte stream, 64 at a time.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}
  void push(uint64_t bits, int count) {
    word_ |= bits << fill_;
    fill_ += count;
    if (fill_ < 64) return;
    memcpy(out_, &word_, sizeof word_);
    out_ += sizeof word_;
    fill_ -= 64;
    word_ = fill_ == 0 ? 0 : bits >> (count - fill_);
  }
  void finish() { memcpy(out_, &word_, (fill_ + 7) / 8); }

 private:
  uint8_t* out_;
  uint64_t word_ = 0;
  int fill_ = 0;
};

// Sixteen elements; returns which are in range (and kept by the mask).
template <bool kMask, bool kStream, class Lanes, class Source>
PQK_INLINE uint32_t forward_step(const typename Lanes::Element* x, typename Lanes::Element* y,
                                 const uint8_t* mask, const Source& source, int64_t at) {
  uint32_t bits = 0;
  for (int i = 0; i < kStep; i += Lanes::kWidth) {
    const auto rounded = Lanes::rint(Lanes::load(x + i) * source.inv_scale(at + i));
    const auto clamped = Lanes::clamp(rounded, source.low(at + i), source.high(at + i));
    // Adding 0 makes -0 the 0 that a sum with the zero point would have made it.
    auto out = (clamped + Lanes::set(0)) * source.scale(at + i);
    typename Lanes::M in_range;
    if constexpr (kMask) {
      const auto keep = Lanes::from_bytes(mask + i);
      in_range = Lanes::equal(keep, clamped, rounded);
      out = Lanes::zero_unless(keep, out);
    } else {
      in_range = Lanes::equal(clamped, rounded);
    }
    put<kStream, Lanes>(y + i, out);
    bits |= Lanes::bits(in_range) << i;
  }
  return bits;
}

template <class Lanes, class Storage, template <class> class Source>
class ForwardRun {
 public:
  using E = typename Lanes::Element;
  static constexpr bool kInPlace = std::is_same_v<E, Storage>;
  ForwardRun(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin)
      : job_(job),
        tables_(tables),
        bounds_(job.params),
        writer_(job.in_range == nullptr ? nullptr : job.in_range + begin / 8) {}

  // Elements [at, at + length) of one row.
  template <bool kMask, bool kBits, bool kStream>
  void piece(int64_t at, int64_t length, int64_t row, int64_t column) {
    const Source<Lanes> source(job_.params, bounds_, tables_, row, column);
    int64_t i = 0;
    if constexpr (kInPlace) {
      for (; i + kTurn <= length; i += kTurn) turn<kMask, kBits, kStream>(at + i, i, source);
    }
    for (; i + kStep <= length; i += kStep) step<kMask, kBits>(at, i, kStep, source);
    if (i < length) step<kMask, kBits>(at, i, static_cast<int>(length - i), source);
  }
  void finish() { writer_.finish(); }

 private:
  template <bool kMask, bool kBits, bool kStream>
  PQK_INLINE void turn(int64_t at, int64_t offset, const Source<Lanes>& source) {
    const E* x = static_cast<const E*>(job_.input) + at;
    E* y = static_cast<E*>(job_.output) + at;
    const uint8_t* mask = kMask ? job_.params.mask + at : nullptr;
    uint64_t word = 0;
#pragma GCC unroll 4
    for (int i = 0; i < kTurn; i += kStep) {
      const uint64_t bits = forward_step<kMask, kStream, Lanes>(x + i, y + i, mask + i, source, offset + i);
      word |= bits << i;
    }
    if constexpr (kBits) writer_.push(word, kTurn);
  }

  template <bool kMask, bool kBits>
  PQK_INLINE void step(int64_t at, int64_t i, int count, const Source<Lanes>& source) {
    Storage* output = static_cast<Storage*>(job_.output) + at + i;
    const E* x = fetch<E>(static_cast<const Storage*>(job_.input) + at + i, x_buffer_, count);
    E* y = target<E>(output, y_buffer_, count);
    const uint8_t* mask = nullptr;
    if constexpr (kMask) mask = fetch(job_.params.mask + at + i, mask_buffer_, count);
    const uint32_t bits = forward_step<kMask, false, Lanes>(x, y, mask, source, i);
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

template <class Lanes, class Storage, template <class> class Source, bool kMask, bool kBits, bool kStream>
void forward(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin, int64_t end) {
  const FakeQuantizeParams& p = job.params;
  const int64_t row_length = tables.used() ? p.view.channels * p.view.inner : p.view.inner;
  ForwardRun<Lanes, Storage, Source> run(job, tables, begin);
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / row_length, column = at % row_length;
    const int64_t length = std::min(row_length - column, end - at);
    run.template piece<kMask, kBits, kStream>(at, length, row, column);
    at += length;
  }
  if (kBits) run.finish();
  if (kStream) end_of_stream();
}

template <class Lanes, class Storage, template <class> class Source, bool kStream>
void forward_by(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin, int64_t end) {
  if (job.params.mask == nullptr) {
    job.in_range ? forward<Lanes, Storage, Source, false, true, kStream>(job, tables, begin, end)
                 : forward<Lanes, Storage, Source, false, false, kStream>(job, tables, begin, end);
  } else {
    job.in_range ? forward<Lanes, Storage, Source, true, true, kStream>(job, tables, begin, end)
                 : forward<Lanes, Storage, Source, true, false, kStream>(job, tables, begin, end);
  }
}

template <class Lanes, class Storage>
void forward_any(const FakeQuantizeForward& job, const FakeQuantizeTables& tables, int64_t begin, int64_t end) {
  if (tables.used()) return forward_by<Lanes, Storage, Tables, false>(job, tables, begin, end);
  if constexpr (std::is_same_v<Storage, float>) {
    if (job.stream) return forward_by<Lanes, Storage, Constants, true>(job, tables, begin, end);
  }
  forward_by<Lanes, Storage, Constants, false>(job, tables, begin, end);
}

// Elements as unsigned integers of their size. The mask arithmetic leaves no branch to mispredict.
template <class Bits, bool kStream = false>
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
      put<kStream, FloatLanes>(reinterpret_cast<float*>(out + at),
                               _mm256_castsi256_ps(_mm256_and_si256(keep, value)));
    }
  }
#elif PQK_ISA_LEVEL >= 2
  if constexpr (sizeof(Bits) == 4) {
    for (; at + kStep <= end; at += kStep) {
      uint16_t word;
      memcpy(&word, job.in_range + at / 8, sizeof word);
      put<kStream, FloatLanes>(reinterpret_cast<float*>(out + at), _mm512_maskz_loadu_ps(word, in + at));
    }
  }
#endif
  for (; at + 8 <= end; at += 8) {
    const uint32_t byte = job.in_range[at / 8];
    for (int i = 0; i < 8; ++i) out[at + i] = in[at + i] & (Bits(0) - static_cast<Bits>((byte >> i) & 1));
  }
  for (; at < end; ++at)
    out[at] = in[at] & (Bits(0) - static_cast<Bits>((job.in_range[at / 8] >> (at % 8)) & 1));
  if (kStream) end_of_stream();
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

void straight_through_kernel(const StraightThrough& job, int64_t begin, int64_t end) {
  switch (job.element_size) {
    case 2:
      return straight_through_range<uint16_t>(job, begin, end);
    case 4:
      return job.stream ? straight_through_range<uint32_t, true>(job, begin, end)
                        : straight_through_range<uint32_t>(job, begin, end);
    case 8:
      return straight_through_range<uint64_t>(job, begin, end);
  }
}

#include "core/isa_end.h"
