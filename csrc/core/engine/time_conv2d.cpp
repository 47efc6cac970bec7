#include "core/engine/time_conv2d.h"

#include <algorithm>
#include <chrono>

#include "core/int8_packing.h"

namespace pqk::engine {
namespace {

constexpr int64_t kReadable = 64;         // bytes around an image, as Int8Image asks
constexpr double kSecondsARound = 20e-6;  // long beside the clock's own time
constexpr int kRounds = 10;

// Whether a candidate whose least time so far is `seconds` need not be timed again: long runs differ little
// from round to round, and one that is much slower than the best will not win. The first round is cold, which
// weighs most with short runs.
bool is_settled(int rounds, double seconds, double best) {
  if (rounds == 0) return false;
  if (seconds <= kSecondsARound) return rounds >= 4 && seconds > 1.5 * best;
  const double hopeless = rounds == 1 ? 4.0 : rounds == 2 ? 2.0 : 1.5;
  return seconds > hopeless * best || (rounds >= 5 && seconds > 5 * kSecondsARound);
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Codes that are neither constant nor zero, and the memory that a run writes to.
class Images {
 public:
  Images(const Conv2dShape& s, const Conv2dConstants& constants, int64_t count, int64_t scratch)
      : scratch_(scratch) {
    images_.scratch = scratch_.data();
    const int64_t in_pixel = constants.input_pixel_stride, out_pixel = int8_pixel_stride(s.out_channels);
    const int64_t in_row = in_pixel * (s.in_width + s.pad_left + s.pad_right),
                  out_row = out_pixel * s.out_width;
    const int64_t before = round_up(kReadable + s.pad_top * in_row + s.pad_left * in_pixel);
    const int64_t residual = before + round_up((s.in_height + s.pad_bottom) * in_row + kReadable);
    const int64_t output = residual + round_up(s.out_height * out_row + kReadable);
    images_.step = output + round_up(s.out_height * out_row + kReadable);
    images_.count = count;
    codes_ = AlignedArray<uint8_t>(images_.step * count);
    for (int64_t i = 0; i < codes_.size(); ++i) codes_.data()[i] = static_cast<uint8_t>(i * 37 >> 2);
    images_.input = {codes_.data() + before, in_row, in_pixel};
    residual_ = {codes_.data() + residual, out_row, out_pixel};
    if (constants.has_residual) images_.residual = &residual_;
    if (constants.float_output) {
      images_.float_step = s.out_height * s.out_width * s.out_channels;
      floats_ = AlignedArray<float>(images_.float_step * count);
      images_.float_output = floats_.data();
    } else {
      images_.output = {codes_.data() + output, out_row, out_pixel};
    }
  }
  Images(const Images&) = delete;
  Images& operator=(const Images&) = delete;

  const Int8ConvImages& get() const { return images_; }

 private:
  AlignedArray<uint8_t> codes_, scratch_;
  AlignedArray<float> floats_;
  Int8Image residual_{};
  Int8ConvImages images_{};
};

double seconds_of(const PackedConv2d& packed, const Int8ConvImages& images, int64_t rows, int64_t calls) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < calls; ++i) packed.run(images, 0, rows);
  return std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(calls);
}

}  // namespace

std::map<std::string, double> time_conv2d(const Conv2dCandidates& candidates, const Conv2dShape& shape,
                                          const Conv2dConstants& constants, int64_t images) {
  int64_t scratch = 0;
  for (const auto& candidate : candidates) scratch = std::max(scratch, candidate.second->scratch_bytes());
  const Images memory(shape, constants, images, scratch);
  std::map<std::string, double> least;
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& [name, packed] : candidates) {
      const auto known = least.find(name);
      if (is_settled(round, known == least.end() ? 0.0 : known->second, best)) continue;
      // The first run of each warms the caches and says how many make a round.
      const int64_t calls = round == 0 ? 1 : 1 + static_cast<int64_t>(kSecondsARound / known->second);
      const double seconds = seconds_of(*packed, memory.get(), shape.out_height, calls);
      least[name] = known == least.end() ? seconds : std::min(known->second, seconds);
      best = std::min(best, least[name]);
    }
  }
  return least;
}

}  // namespace pqk::engine
