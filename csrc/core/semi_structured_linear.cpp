#include "core/semi_structured_linear.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "core/coded_linear.h"

namespace pqk {
namespace {

constexpr int64_t kGroupsPerThread = 1 << 14;
constexpr int64_t kProductsPerThread = 1 << 18;
// Up to so many rows of x the weight is expanded again and again where it is used, and never written to memory;
// more of them pay for packing the dense weight.
constexpr int64_t kFewRows = 32;

int64_t grain(int64_t in_all, int64_t of_one) {
  return std::max<int64_t>(1, in_all / std::max<int64_t>(1, of_one));
}

// The smallest of the places that any thread found.
class First {
 public:
  void found(int64_t at) {
    int64_t known = place_;
    while (at < known && !place_.compare_exchange_weak(known, at)) continue;
  }
  int64_t get() const { return place_ == INT64_MAX ? -1 : place_.load(); }

 private:
  std::atomic<int64_t> place_{INT64_MAX};
};

// Four weights to the two kept and their indices; false if more are not zero.
bool compress_group(const int8_t* weights, int8_t* kept, uint8_t& indices) {
  int count = 0;
  for (int i = 0; i < kGroupSize; ++i) count += weights[i] != 0;
  if (count > kGroupKept) return false;
  int zeros = static_cast<int>(kGroupKept) - count, at = 0;
  indices = 0;
  for (int i = 0; i < kGroupSize; ++i) {
    if (weights[i] == 0 && zeros-- <= 0) continue;
    kept[at] = weights[i];
    indices = static_cast<uint8_t>(indices | i << (2 * at++));
  }
  return true;
}

// A first-level cache's rows at a time, for CodedLinear.
class CodedGroups final : public CodedWeight {
 public:
  explicit CodedGroups(const SemiStructuredWeight& weight) : weight_(weight) {}
  int64_t rows_per_chunk() const override { return kOutTile; }
  std::unique_ptr<RowCursor> open(int64_t chunk) const override {
    return std::make_unique<Cursor>(weight_, chunk * rows_per_chunk());
  }

 private:
  class Cursor final : public RowCursor {
   public:
    Cursor(const SemiStructuredWeight& weight, int64_t row) : weight_(weight), row_(row) {}
    void next(int64_t rows, int8_t* output) override {
      for (const int64_t end = row_ + rows; row_ < end; ++row_, output += weight_.columns) {
        expand_(weight_.values + row_ * weight_.groups() * kGroupKept,
                weight_.indices + row_ * weight_.index_bytes(), weight_.groups(), output);
      }
    }

   private:
    const SemiStructuredWeight weight_;
    ExpandGroupsKernel* const expand_ = active_expand_groups();
    int64_t row_;
  };

  SemiStructuredWeight weight_;
};

void few_rows(const SemiStructuredWeight& weight, const Conv2dConstants& constants, int64_t rows,
              const uint8_t* input, const uint8_t* residual, void* output, const Parallel& parallel) {
  const CodedLinear linear(std::make_shared<CodedGroups>(weight), {weight.rows * weight.columns, weight.rows},
                           constants);
  Int8LinearRows x{};
  x.input = {const_cast<uint8_t*>(input), weight.columns, weight.columns};  // only read
  x.channels = x.input_step = weight.columns;
  x.height = x.width = 1;
  x.residual = residual;
  x.residual_step = x.output_step = x.float_step = weight.rows;
  if (constants.float_output) {
    x.float_output = static_cast<float*>(output);
  } else {
    x.output = static_cast<uint8_t*>(output);
  }
  x.count = rows;
  parallel(linear.panels(), grain(kProductsPerThread, kOutTile * weight.columns * rows),
           [&](int64_t begin, int64_t end) {
             AlignedArray<uint8_t> scratch = AlignedArray<uint8_t>::uninitialized(linear.scratch_bytes(rows));
             linear.run(x, begin, end, scratch.data());
           });
}

// As int8_linear does it, with the weight made dense.
void many_rows(const SemiStructuredWeight& weight, const Conv2dConstants& constants, int64_t rows,
               const uint8_t* input, const uint8_t* residual, void* output, const Parallel& parallel) {
  AlignedArray<int8_t> dense = AlignedArray<int8_t>::uninitialized(weight.rows * weight.columns);
  const CodedGroups groups(weight);
  parallel((weight.rows + kOutTile - 1) / kOutTile, grain(kGroupsPerThread, kOutTile * weight.groups()),
           [&](int64_t begin, int64_t end) {
             const int64_t first = begin * kOutTile, last = std::min(end * kOutTile, weight.rows);
             groups.open(begin)->next(last - first, dense.data() + first * weight.columns);
           });
  Conv2dConstants with_weight = constants;
  with_weight.weight = dense.data();
  const Conv2dShape shape = linear_layer_shape(rows, weight.columns, weight.rows);
  const StridedCodes codes{input, 0, 1, weight.columns, weight.columns};
  const StridedCodes others{residual, 0, 1, weight.rows, weight.rows};
  int8_conv2d_batch(shape, with_weight, 1, codes, residual == nullptr ? nullptr : &others, output, parallel);
}

}  // namespace

int64_t compress_semi_structured(const int8_t* dense, int64_t rows, int64_t columns, int8_t* values,
                                 uint8_t* indices, const Parallel& parallel) {
  const SemiStructuredWeight shape{values, indices, rows, columns};
  const int64_t groups = shape.groups(), index_bytes = shape.index_bytes();
  First wrong;
  parallel(rows, grain(kGroupsPerThread, groups), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* const bytes = indices + row * index_bytes;
      std::fill_n(bytes, index_bytes, uint8_t{0});
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t at = row * groups + group;
        uint8_t of_group;
        if (!compress_group(dense + at * kGroupSize, values + at * kGroupKept, of_group)) {
          return wrong.found(at);
        }
        bytes[group / 2] = static_cast<uint8_t>(bytes[group / 2] | of_group << (4 * (group % 2)));
      }
    }
  });
  return wrong.get();
}

int64_t first_unordered_group(const SemiStructuredWeight& weight, const Parallel& parallel) {
  const int64_t groups = weight.groups(), pairs = groups / 2;
  OrderedGroupsKernel* const ordered = active_ordered_groups();
  First wrong;
  parallel(weight.rows, grain(kGroupsPerThread, groups), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* const bytes = weight.indices + row * weight.index_bytes();
      const auto in_order = [](int indices) { return (indices & 3) < (indices >> 2 & 3); };
      if (ordered(bytes, pairs) && (groups % 2 == 0 || in_order(bytes[pairs]))) continue;
      int64_t group = 0;
      while (in_order(bytes[group / 2] >> (4 * (group % 2)))) ++group;
      return wrong.found(row * groups + group);
    }
  });
  return wrong.get();
}

void semi_structured_linear(const SemiStructuredWeight& weight, const Conv2dConstants& constants, int64_t rows,
                            const uint8_t* input, const uint8_t* residual, void* output,
                            const Parallel& parallel) {
  if (rows == 0 || weight.rows == 0) return;
  (rows <= kFewRows ? few_rows : many_rows)(weight, constants, rows, input, residual, output, parallel);
}

}  // namespace pqk
