#include "core/cuda/int8_conv2d.h"

#include <algorithm>

#include "core/cuda/int8_conv2d_task.h"
#include "core/cuda/int8_pack.h"

namespace pqk::cuda {
namespace {

constexpr int64_t kVector = 16;

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// Whether pixels of dense channels begin at multiples of `bytes`.
bool dense_channels(const Conv2dShape& s, const StridedCodes& input, int64_t images, int64_t bytes) {
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride % bytes == 0; };
  return (input.channel == 1 || s.in_channels == 1) && fits(images, input.image) &&
         fits(s.in_height, input.row) && fits(s.in_width, input.column) && aligned(input.data, bytes);
}

// How a layer is computed, and where things lie in the working memory. -1: not there.
struct Plan : WorkingMemory {
  enum class Kernel { kNothing, kVector, kCsrVector, kDepthwise, kMatrix, kGathered };

  explicit Plan(const Int8Conv2d& job);

  Kernel kernel = Kernel::kNothing;
  StridedWeight weight{};  // where sparse weights are expanded to, `data` is null here
  bool direct = false;     // kernels read the weight as it is
  bool offsets = false;    // the zero point adds to the sums
  int64_t channels = 0;    // of a group of the input, with those that padding adds
  int64_t depth = 0, pitch = 0;
  int64_t expanded_at = -1, packed_at = -1, offset_at = -1, image_at = -1;

 private:
  void choose(const Int8Conv2d& job, bool few_rows);
};

// A linear layer: each input row is one output row.
bool pointwise(const Int8Conv2d& job) {
  const Conv2dShape& s = job.shape;
  return job.images == 1 && s.groups == 1 && s.kernel_height == 1 && s.kernel_width == 1 && s.in_width == 1 &&
         s.out_width == 1 && s.out_height == s.in_height && s.stride_height == 1 && s.pad_top == 0 &&
         s.pad_left == 0;
}

Plan::Plan(const Int8Conv2d& job) {
  const Conv2dShape& s = job.shape;
  if (job.images == 0 || s.out_channels == 0 || s.out_height == 0 || s.out_width == 0) return;
  const int64_t fan_in = s.in_channels / s.groups * s.kernel_height * s.kernel_width;
  weight = job.weight;
  const bool few_rows = pointwise(job) && s.in_height <= kMaxVectorRows;
  if (few_rows && job.csr.crow_indices != nullptr) {
    kernel = Kernel::kCsrVector;
    return;
  }
  if (job.csr.crow_indices != nullptr) {
    expanded_at = take(s.out_channels * fan_in);
    const int64_t area = s.kernel_height * s.kernel_width;
    weight = {nullptr, fan_in, area, s.kernel_width, 1};
  }
  choose(job, few_rows);
}

void Plan::choose(const Int8Conv2d& job, bool few_rows) {
  const Conv2dShape& s = job.shape;
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  const int64_t taps = s.kernel_height * s.kernel_width;
  offsets = job.input_zero_point != 0;
  channels = in;
  if (s.groups > 1 && in == 1 && out == 1) {
    kernel = Kernel::kDepthwise;
    offsets = true;
    packed_at =
        take(ceil_div<int64_t, int64_t>(s.out_channels, 4) * ceil_div<int64_t, int64_t>(taps, 4) * kVector);
    offset_at = take(s.out_channels * 4);
    if (s.in_channels % 4 != 0 || !dense_channels(s, job.input, job.images, 4)) {
      image_at = take(job.images * s.in_height * s.in_width * round_up(s.in_channels, kVector));
    }
    return;
  }
  kernel = in < kVector ? Kernel::kGathered : Kernel::kMatrix;
  if (kernel == Kernel::kMatrix && (in % kVector != 0 || !dense_channels(s, job.input, job.images, kVector))) {
    channels = round_up(in, kVector);
    image_at = take(job.images * s.in_height * s.in_width * s.groups * channels);
  }
  depth = taps * channels;
  direct = channels == in && in % kVector == 0 && weight.in == 1 && aligned(weight.data, kVector) &&
           (s.kernel_width == 1 || weight.column == in) &&
           (s.kernel_height == 1 || weight.row == s.kernel_width * in) &&
           (s.out_channels == 1 || weight.out % kVector == 0);
  pitch = direct ? (s.out_channels == 1 ? depth : weight.out) : round_up(depth, kVector);
  if (direct && few_rows && image_at < 0) {
    kernel = Kernel::kVector;
    offsets = false;  // found on the way
    return;
  }
  if (!direct) packed_at = take(s.out_channels * pitch);
  if (!direct || offsets) offset_at = take(s.out_channels * 4);
}

// The working memory of a job, and what is put there before the kernel runs.
class Preparation {
 public:
  Preparation(const Int8Conv2d& job, const Plan& plan, void* workspace)
      : job_(job), plan_(plan), memory_(static_cast<uint8_t*>(workspace)), weight_(plan.weight) {}

  template <class T>
  T* at(int64_t offset) const {
    return offset < 0 ? nullptr : reinterpret_cast<T*>(memory_ + offset);
  }

  const char* run() {
    const Conv2dShape& s = job_.shape;
    const char* error = nullptr;
    if (plan_.expanded_at >= 0) {
      weight_.data = at<int8_t>(plan_.expanded_at);
      error =
          launch_csr_expand(job_.csr, s.out_channels, weight_.out, at<int8_t>(plan_.expanded_at), job_.stream);
    }
    if (error == nullptr) error = pack();
    if (error == nullptr && plan_.image_at >= 0) error = rearrange();
    return error;
  }

  StridedCodes input() const { return plan_.image_at < 0 ? job_.input : rearranged_; }
  const int8_t* weight() const { return plan_.direct ? weight_.data : at<const int8_t>(plan_.packed_at); }
  Int8Epilogue epilogue() const {
    return {plan_.offsets ? at<const int32_t>(plan_.offset_at) : nullptr,
            job_.multiplier,
            job_.bias,
            job_.residual,
            job_.output,
            job_.residual_multiplier,
            job_.residual_zero_point,
            static_cast<float>(job_.quant_min),
            static_cast<float>(job_.quant_max),
            job_.float_output};
  }

 private:
  const char* pack() const {
    const Conv2dShape& s = job_.shape;
    const auto height = static_cast<int32_t>(s.kernel_height), width = static_cast<int32_t>(s.kernel_width);
    int32_t* const offset = at<int32_t>(plan_.offset_at);
    if (plan_.kernel == Plan::Kernel::kDepthwise) {
      return launch_pack_depthwise(weight_, s.out_channels, height, width, job_.input_zero_point,
                                   at<uint4>(plan_.packed_at), offset, job_.stream);
    }
    if (plan_.direct) {
      if (offset == nullptr) return nullptr;
      return launch_weight_offset(weight_.data, s.out_channels, plan_.depth, plan_.pitch, job_.input_zero_point,
                                  offset, job_.stream);
    }
    return launch_pack_weight({weight_, s.out_channels, static_cast<int32_t>(s.in_channels / s.groups), height,
                               width, static_cast<int32_t>(std::max<int64_t>(plan_.channels, 1)), plan_.pitch,
                               at<int8_t>(plan_.packed_at), offset, job_.input_zero_point},
                              job_.stream);
  }

  const char* rearrange() {
    const Conv2dShape& s = job_.shape;
    // A depthwise layer's channels are padded together.
    const bool depthwise = plan_.kernel == Plan::Kernel::kDepthwise;
    const int64_t groups = depthwise ? 1 : s.groups, channels = s.in_channels / groups;
    const int64_t padded = round_up(channels, kVector), pixel = groups * padded;
    rearranged_ = {at<uint8_t>(plan_.image_at), s.in_height * s.in_width * pixel, 1, s.in_width * pixel, pixel};
    return launch_rearrange({job_.input, job_.images, s.in_height, s.in_width, groups, channels, padded,
                             at<uint8_t>(plan_.image_at)},
                            job_.stream);
  }

  const Int8Conv2d& job_;
  const Plan& plan_;
  uint8_t* memory_;
  StridedWeight weight_;
  StridedCodes rearranged_{};
};

uint32_t border_of(const Int8Conv2d& job) { return static_cast<uint32_t>(job.input_zero_point) * 0x01010101u; }

// Whether `channels` channels of a pixel of the output can be written, and of the residual read, at once.
bool output_vectors(const Int8Conv2d& job, int64_t channels) {
  return job.shape.out_channels / job.shape.groups % channels == 0 && aligned(job.output, channels) &&
         aligned(job.residual, channels);
}

const char* run_matrix(const Int8Conv2d& job, const Plan& plan, const Preparation& ready) {
  const Conv2dShape& s = job.shape;
  const StridedCodes input = ready.input();
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  Int8MatrixTask task{};
  task.input = input.data;
  task.image_stride = input.image, task.channel_stride = input.channel;
  task.row_stride = input.row, task.pixel_stride = input.column;
  task.weight = ready.weight();
  task.weight_pitch = plan.pitch;
  task.pixels = job.images * s.out_height * s.out_width;
  task.out_channels = s.out_channels;
  task.in_height = narrow(s.in_height), task.in_width = narrow(s.in_width);
  task.out_width = narrow(s.out_width), task.out_area = narrow(s.out_height * s.out_width);
  task.kernel_height = narrow(s.kernel_height), task.kernel_width = narrow(s.kernel_width);
  task.stride_height = narrow(s.stride_height), task.stride_width = narrow(s.stride_width);
  task.dilation_height = narrow(s.dilation_height), task.dilation_width = narrow(s.dilation_width);
  task.pad_top = narrow(s.pad_top), task.pad_left = narrow(s.pad_left);
  task.groups = narrow(s.groups);
  task.group_in = narrow(std::max<int64_t>(plan.channels, 1));
  task.group_out = narrow(s.out_channels / s.groups);
  task.depth = narrow(plan.depth);
  task.border = border_of(job);
  task.words = plan.channels % 4 == 0 && dense_channels(s, input, job.images, 4);
  task.vector_output = !job.float_output && output_vectors(job, kVector);
  task.epilogue = ready.epilogue();
  return plan.kernel == Plan::Kernel::kMatrix ? launch_int8_matrix(task, job.device, job.stream)
                                              : launch_int8_matrix_gathered(task, job.device, job.stream);
}

const char* run_depthwise(const Int8Conv2d& job, const Plan& plan, const Preparation& ready) {
  const Conv2dShape& s = job.shape;
  const StridedCodes input = ready.input();
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  Int8DepthwiseTask task{};
  task.input = input.data;
  task.image_stride = input.image, task.row_stride = input.row, task.pixel_stride = input.column;
  task.weight = ready.at<const uint4>(plan.packed_at);
  task.images = job.images, task.channels = s.out_channels;
  task.in_height = narrow(s.in_height), task.in_width = narrow(s.in_width);
  task.out_height = narrow(s.out_height), task.out_width = narrow(s.out_width);
  task.kernel_height = narrow(s.kernel_height), task.kernel_width = narrow(s.kernel_width);
  task.stride_height = narrow(s.stride_height), task.stride_width = narrow(s.stride_width);
  task.dilation_height = narrow(s.dilation_height), task.dilation_width = narrow(s.dilation_width);
  task.pad_top = narrow(s.pad_top), task.pad_left = narrow(s.pad_left);
  task.border = border_of(job);
  task.word_output = s.out_channels % 4 == 0 && aligned(job.output, 4) && aligned(job.residual, 4);
  task.epilogue = ready.epilogue();
  return launch_int8_depthwise(task, job.stream);
}

// Kernels count pixels of an image and positions of the depth in 32 bits, with room for what padding adds.
bool fits(const Conv2dShape& s) {
  constexpr int64_t kLargest = INT32_MAX / 4;
  const int64_t height = s.in_height + s.pad_top + s.pad_bottom, width = s.in_width + s.pad_left + s.pad_right;
  return height <= kLargest && width <= kLargest && s.out_height * s.out_width <= kLargest &&
         s.out_channels <= kLargest && s.stride_height <= kLargest && s.stride_width <= kLargest;
}

}  // namespace

int64_t int8_conv2d_workspace(const Int8Conv2d& job) { return Plan(job).bytes; }

const char* int8_conv2d(const Int8Conv2d& job, void* workspace) {
  if (!fits(job.shape)) return "the layer is too large for the CUDA kernels";
  const Plan plan(job);
  if (plan.kernel == Plan::Kernel::kNothing) return nullptr;
  const DeviceGuard guard(job.device);
  Preparation ready(job, plan, workspace);
  if (plan.kernel != Plan::Kernel::kCsrVector) {
    if (const char* error = ready.run()) return error;
  }
  switch (plan.kernel) {
    case Plan::Kernel::kDepthwise:
      return run_depthwise(job, plan, ready);
    case Plan::Kernel::kCsrVector:
      return launch_int8_csr_vector(
          {job.input.data, job.input.row, nullptr, 0, job.shape.in_height, job.shape.in_channels,
           job.shape.out_channels, job.input_zero_point, ready.epilogue()},
          job.csr, job.input.channel, job.stream);
    case Plan::Kernel::kVector:
      return launch_int8_vector({job.input.data, job.input.row, ready.weight(), plan.pitch, job.shape.in_height,
                                 plan.depth, job.shape.out_channels, job.input_zero_point, ready.epilogue()},
                                job.stream);
    default:
      return run_matrix(job, plan, ready);
  }
}

}  // namespace pqk::cuda
