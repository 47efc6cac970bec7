#include "core/ans.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/ans_decode.h"

namespace pqk {
namespace {

void fill_table(const AnsShares& shares, uint8_t flip, AnsDecodeTable& table) {
  uint32_t* slot = table.data();
  for (uint32_t s = 0; s < kHuffmanSymbols; ++s) {
    for (uint32_t i = 0; i < shares[s]; ++i) *slot++ = (s ^ flip) | uint32_t{shares[s]} << 8 | i << 20;
  }
}

int only_symbol(const AnsShares& shares) {
  const auto found = std::find(shares.begin(), shares.end(), kAnsTotal);
  return found == shares.end() ? -1 : static_cast<int>(found - shares.begin());
}

inline uint32_t advance(uint32_t state, uint32_t entry) {
  return (entry >> 8 & (kAnsTotal - 1)) * (state >> kAnsShareBits) + (entry >> 20);
}

inline uint32_t load_word(const uint8_t* data) { return data[0] | uint32_t{data[1]} << 8; }

void encode_run(const AnsRun& run, uint32_t* states, int states_log2, std::vector<uint16_t>& words) {
  if (only_symbol(run.shares) >= 0) return;
  std::array<uint32_t, kHuffmanSymbols> starts{};
  uint32_t start = 0;
  for (int s = 0; s < kHuffmanSymbols; ++s) {
    starts[s] = start;
    start += run.shares[s];
  }
  const int64_t mask = (int64_t{1} << states_log2) - 1;
  for (int64_t i = run.count - 1; i >= 0; --i) {
    const uint8_t symbol = run.symbols[i] ^ run.flip;
    const uint32_t share = run.shares[symbol];
    uint32_t& x = states[i & mask];
    if (x >= share << (32 - kAnsShareBits)) {
      words.push_back(static_cast<uint16_t>(x));
      x >>= 16;
    }
    x = (x / share << kAnsShareBits) + starts[symbol] + x % share;
  }
}

}  // namespace

int ans_states_log2(double bits) {
  int log2 = 0;
  while (log2 < kAnsMaxStatesLog2 && 16'000.0 * (2 << log2) <= bits) ++log2;
  return log2;
}

int read_ans_states_log2(ByteReader& reader) {
  const int log2 = reader.u8("states");
  if (log2 <= kAnsMaxStatesLog2) return log2;
  throw FormatError("E_ANS_STREAM", reader.field() + ".states", reader.offset() - 1,
                    "0..5, log2 of their number", std::to_string(log2));
}

void ans_encode(const std::vector<AnsRun>& runs, int states_log2, std::vector<uint8_t>& out) {
  std::array<uint32_t, 1 << kAnsMaxStatesLog2> states;
  states.fill(kAnsLow);
  std::vector<uint16_t> words;
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) encode_run(*run, states.data(), states_log2, words);
  const auto put = [&](uint32_t value, int width) {
    for (int i = 0; i < width; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
  };
  for (int i = 0; i < 1 << states_log2; ++i) put(states[i], 4);
  out.reserve(out.size() + 2 * words.size());
  for (auto word = words.rbegin(); word != words.rend(); ++word) put(*word, 2);
}

AnsDecoder::AnsDecoder(ByteReader& reader, int states_log2)
    : field_(reader.field() + ".stream"), states_log2_(states_log2) {
  const int64_t start = reader.offset();
  const ByteSpan states = reader.take(int64_t{4} << states_log2, "states");
  for (int i = 0; i < 1 << states_log2; ++i) {
    states_[i] = load_le(states.data + 4 * i, 4);
    if (states_[i] >= kAnsLow) continue;
    throw FormatError("E_ANS_STREAM", field_, start + 4 * i, "a state of at least 65536",
                      std::to_string(states_[i]));
  }
  const ByteSpan words = reader.take(reader.remaining(), "stream");
  begin_ = next_ = words.data;
  end_ = words.data + words.size;
}

void AnsDecoder::check_count(const AnsShares& shares, int64_t count) const {
  const double share = *std::max_element(shares.begin(), shares.end());
  // What a symbol takes depends on the state a little: never less than 15/16 of this.
  const double least = 0.9 * (kAnsShareBits - std::log2(share)) * static_cast<double>(count);
  const double bits = 8.0 * static_cast<double>(remaining()) + 16.0 * (1 << states_log2_);
  if (least <= bits) return;
  throw FormatError("E_BOMB", field_, -1,
                    "at least " + std::to_string(least) + " bits for " + std::to_string(count) + " symbols",
                    std::to_string(bits) + " bits");
}

void AnsDecoder::decode(const AnsShares& shares, uint8_t flip, uint8_t* output, int64_t count) {
  const int only = only_symbol(shares);
  if (only >= 0) {
    std::fill(output, output + count, static_cast<uint8_t>(only ^ flip));
    return;
  }
  const auto table = std::make_unique<AnsDecodeTable>();
  fill_table(shares, flip, *table);
  const int states = 1 << states_log2_;
  int64_t done = 0;
  if (states_log2_ == kAnsMaxStatesLog2) {
    AnsLanes lanes{states_.data(), next_, end_};
    done = active_ans_groups_kernel()(*table, lanes, output, count);
    next_ = lanes.next;
  }
  for (; done < count; ++done) {
    uint32_t& x = states_[done & (states - 1)];
    const uint32_t entry = (*table)[x & (kAnsTotal - 1)];
    output[done] = static_cast<uint8_t>(entry);
    x = advance(x, entry);
    if (x >= kAnsLow) continue;
    if (end_ - next_ < 2) {
      throw FormatError("E_ANS_STREAM", field_, next_ - begin_,
                        "a word for symbol " + std::to_string(done) + " of " + std::to_string(count),
                        std::to_string(remaining()) + " bytes");
    }
    x = x << 16 | load_word(next_);
    next_ += 2;
  }
}

void AnsDecoder::finish() const {
  const auto moved = [](uint32_t state) { return state != kAnsLow; };
  const auto wrong = std::find_if(states_.begin(), states_.begin() + (1 << states_log2_), moved);
  if (next_ == end_ && wrong == states_.begin() + (1 << states_log2_)) return;
  const std::string got = next_ != end_ ? std::to_string(remaining()) + " bytes left" : std::to_string(*wrong);
  throw FormatError("E_ANS_STREAM", field_, next_ - begin_, "no byte left and every state at 65536", got);
}

}  // namespace pqk
