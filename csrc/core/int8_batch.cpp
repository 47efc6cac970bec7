#include "core/int8_batch.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/int8_packing.h"

namespace pqk {
namespace {

constexpr int64_t kReadable = 64;                // bytes around an image, as Int8Image asks
constexpr int64_t kProductsPerThread = 1 << 20;  // below this a second thread costs more than it saves

// Memory for one bordered image, whose border is written once.
class BorderedImage {
 public:
  BorderedImage(int64_t channels, int64_t height, int64_t width, const Conv2dShape* padding, int32_t zero_point)
      : channels_(channels), height_(height), width_(width) {
    const Conv2dShape none{};
    const Conv2dShape& pad = padding != nullptr ? *padding : none;
    const int64_t pixel = int8_pixel_stride(channels), row = pixel * (width + pad.pad_left + pad.pad_right);
    memory_.assign(row * (height + pad.pad_top + pad.pad_bottom) + 2 * kReadable,
                   static_cast<uint8_t>(zero_point));
    image_ = {memory_.data() + kReadable + pad.pad_top * row + pad.pad_left * pixel, row, pixel};
  }

  const Int8Image& image() const { return image_; }

  void copy(const StridedCodes& source, int64_t index) {
    const uint8_t* first = source.data + index * source.image;
    for (int64_t y = 0; y < height_; ++y) {
      const uint8_t* from = first + y * source.row;
      uint8_t* to = image_.data + y * image_.row_stride;
      if (source.channel == 1 || channels_ == 1) {
        for (int64_t x = 0; x < width_; ++x) {
          memcpy(to + x * image_.pixel_stride, from + x * source.column, channels_);
        }
      } else {
        for (int64_t x = 0; x < width_; ++x) {
          for (int64_t c = 0; c < channels_; ++c) {
            to[x * image_.pixel_stride + c] = from[c * source.channel + x * source.column];
          }
        }
      }
    }
  }

 private:
  int64_t channels_, height_, width_;
  std::vector<uint8_t> memory_;
  Int8Image image_;
};

// One thread's images.
struct Scratch {
  BorderedImage input, residual;
};

}  // namespace

void int8_conv2d_batch(const Conv2dShape& shape, const Conv2dConstants& constants, int64_t images,
                       const StridedCodes& input, const StridedCodes* residual, void* output,
                       const Parallel& parallel) {
  const int64_t outputs = shape.out_channels * shape.out_height * shape.out_width;
  if (images == 0 || outputs == 0) return;
  Conv2dShape packed_shape = shape;
  Conv2dConstants packed_constants = constants;
  const std::vector<int8_t> reordered = taps_to_channels(constants.weight, packed_shape);
  if (!reordered.empty()) packed_constants.weight = reordered.data();
  const std::unique_ptr<PackedConv2d> packed = pack_conv2d(packed_shape, packed_constants);
  const int64_t workers = std::min<int64_t>(images, parallel.num_threads());
  std::vector<Scratch> scratch;
  for (int64_t i = 0; i < workers; ++i) {
    scratch.push_back(
        {BorderedImage(shape.in_channels, shape.in_height, shape.in_width, &shape, constants.input_zero_point),
         residual != nullptr ? BorderedImage(shape.out_channels, shape.out_height, shape.out_width, nullptr, 0)
                             : BorderedImage(0, 0, 0, nullptr, 0)});
  }
  const auto load = [&](Scratch& own, int64_t image) {
    own.input.copy(input, image);
    if (residual != nullptr) own.residual.copy(*residual, image);
  };
  const auto run_rows = [&](const Scratch& own, int64_t image, int64_t begin, int64_t end) {
    Int8Image codes{nullptr, shape.out_width * shape.out_channels, shape.out_channels};
    float* floats = nullptr;
    if (constants.float_output) {
      floats = static_cast<float*>(output) + image * outputs;
    } else {
      codes.data = static_cast<uint8_t*>(output) + image * outputs;
    }
    Int8ConvImages one{own.input.image(), residual != nullptr ? &own.residual.image() : nullptr, codes, floats};
    AlignedArray<uint8_t> work;
    if (packed->scratch_bytes() > 0) work = AlignedArray<uint8_t>(packed->scratch_bytes());
    one.scratch = work.data();
    packed->run(one, begin, end);
  };
  const int64_t row_products = shape.out_width * shape.out_channels * (shape.in_channels / shape.groups) *
                               shape.kernel_height * shape.kernel_width;
  const int64_t rows = std::max<int64_t>(1, kProductsPerThread / std::max<int64_t>(1, row_products));
  if (images < parallel.num_threads()) {
    for (int64_t image = 0; image < images; ++image) {
      load(scratch[0], image);
      parallel(shape.out_height, rows,
               [&](int64_t begin, int64_t end) { run_rows(scratch[0], image, begin, end); });
    }
    return;
  }
  parallel(workers, std::max<int64_t>(1, rows * workers / (shape.out_height * images)),
           [&](int64_t begin, int64_t end) {
             for (int64_t worker = begin; worker < end; ++worker) {
               for (int64_t image = worker; image < images; image += workers) {
                 load(scratch[worker], image);
                 run_rows(scratch[worker], image, 0, shape.out_height);
               }
             }
           });
}

}  // namespace pqk
