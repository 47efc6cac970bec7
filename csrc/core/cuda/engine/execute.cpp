#include "core/cuda/engine/execute.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace pqk::engine::device {
namespace {

// Beyond so many multiply-adds an image, more multiprocessors for it gain more than the launches cost.
constexpr int64_t kResidentProducts = 64 << 20;
constexpr int64_t kWorkspaceBytes = 256 << 20;  // of all images of a launch
constexpr int64_t kMostImages = 1024;
constexpr int kResidentWarps = kResidentThreads / 32;
constexpr int kBlocksPerMultiprocessor = 16;
constexpr int kWarpsPerMultiprocessor = 8;  // with work, before a warp gets a larger tile of a convolution
constexpr size_t kMostRecordings = 64;

template <class T>
Memory upload(const std::vector<T>& values, const Stream& stream) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  Memory memory(Memory::Place::kDevice, bytes);
  if (bytes > 0) stream.to_device(memory.as<T>(), values.data(), bytes);
  return memory;
}

}  // namespace

// Memory for the images of a launch and what is recorded for them; of one caller at a time.
class Engine::Workspace {
 public:
  explicit Workspace(const Engine& engine) : engine_(engine) {}

  // Images [0, images) of the caller's; returns as Engine::run.
  int64_t run(const float* input, float* output, int images) {
    reserve(images, !engine_.resident_);
    stage(input, images);
    recording(images).launch();
    stream_.wait();
    return unstage(output, images);
  }

  std::vector<double> profile(const float* input, int repeats) {
    reserve(1, true);
    stage(input, 1);
    const Frame frame = frame_of(device_.as<float>(), 1);
    const std::vector<Step> steps = engine_.steps_for(1);
    stream_.to_device(frame.nan, host_frame(1).nan, staged_bytes(1));
    std::vector<double> least(steps.size(), 1e30);
    for (int i = 0; i < repeats; ++i) {
      for (size_t s = 0; s < steps.size(); ++s) {
        least[s] = std::min(least[s], stream_.time([&] { run_step_of(steps[s], frame); }));
      }
    }
    return least;
  }

 private:
  // One block of memory on each side, the caller's outputs first, then what is told of NaN, then the inputs:
  // a copy each way.
  Frame frame_of(float* block, int images) const {
    const Program& program = engine_.program_;
    auto* const nan = reinterpret_cast<uint32_t*>(block + images * program.output_numel);
    return {arenas_.as<uint8_t>(),
            reinterpret_cast<const float*>(nan + images),
            block,
            engine_.constants_.as<uint8_t>(),
            nan,
            program.arena_bytes,
            program.input_numel,
            program.output_numel,
            images};
  }
  Frame host_frame(int images) const { return frame_of(host_.as<float>(), images); }
  int64_t staged_bytes(int images) const { return 4 * images * (1 + engine_.program_.input_numel); }
  int64_t result_bytes(int images) const { return 4 * images * (1 + engine_.program_.output_numel); }

  void reserve(int images, bool arenas) {
    const Program& program = engine_.program_;
    if (images > capacity_) {
      recordings_.clear();
      capacity_ = arenas_capacity_ = 0;
      const int64_t bytes = 4 * images * (program.output_numel + 1 + program.input_numel);
      device_ = Memory(Memory::Place::kDevice, bytes);
      host_ = Memory(Memory::Place::kHost, bytes);
      capacity_ = images;
    }
    if (!arenas || images <= arenas_capacity_) return;
    recordings_.clear();
    arenas_capacity_ = 0;
    arenas_ = Memory(Memory::Place::kDevice, images * program.arena_bytes);
    const Frame frame = frame_of(device_.as<float>(), images);
    stream_.clear(frame.arena, images * program.arena_bytes);
    check_launch(fill_borders(engine_.device_program(), frame, stream_.handle()));
    arenas_capacity_ = images;
  }

  void stage(const float* input, int images) const {
    const Frame host = host_frame(images);
    std::fill_n(host.nan, images, kNoNaN);
    std::memcpy(const_cast<float*>(host.input), input,
                static_cast<size_t>(4 * images * engine_.program_.input_numel));
  }

  int64_t unstage(float* output, int images) const {
    const Frame host = host_frame(images);
    for (int i = 0; i < images; ++i) {
      if (host.nan[i] != kNoNaN) return i * engine_.program_.input_numel + static_cast<int64_t>(~host.nan[i]);
    }
    std::memcpy(output, host.output, static_cast<size_t>(4 * images * engine_.program_.output_numel));
    return -1;
  }

  const Recording& recording(int images) {
    std::unique_ptr<Recording>& found = recordings_[images];
    if (found != nullptr) return *found;
    if (recordings_.size() > kMostRecordings) {
      recordings_.clear();
      return recording(images);
    }
    found = std::make_unique<Recording>(stream_, [this, images, steps = engine_.steps_for(images)] {
      const Frame frame = frame_of(device_.as<float>(), images);
      stream_.to_device(frame.nan, host_frame(images).nan, staged_bytes(images));
      if (engine_.resident_) {
        check_launch(
            run_resident(engine_.device_program(), frame, engine_.device_.multiprocessors, stream_.handle()));
      } else {
        for (const Step& step : steps) run_step_of(step, frame);
      }
      stream_.to_host(host_.as<float>(), frame.output, result_bytes(images));
    });
    return *found;
  }

  void run_step_of(const Step& step, const Frame& frame) const {
    const int blocks = kBlocksPerMultiprocessor * engine_.device_.multiprocessors;
    check_launch(run_step(step, frame, blocks, stream_.handle()));
  }

  const Engine& engine_;
  Stream stream_;
  Memory device_, host_, arenas_;
  int capacity_ = 0, arenas_capacity_ = 0;
  std::map<int, std::unique_ptr<Recording>> recordings_;
};

Engine::Engine(const Graph& graph, int device, Executor executor)
    : program_(make_program(graph)), device_(open_device(device)) {
  const size_t shared_bytes = resident_shared_bytes(program_.arena_bytes);
  const bool fits = static_cast<int64_t>(shared_bytes) <= device_.shared_bytes;
  if (executor == Executor::kResident && !fits) {
    throw std::invalid_argument("the resident executor needs " + std::to_string(shared_bytes) +
                                " bytes of shared memory for this network, " + device_.name + " has " +
                                std::to_string(device_.shared_bytes));
  }
  resident_ = executor == Executor::kResident ||
              (executor == Executor::kAutomatic && fits && program_.products <= kResidentProducts);
  const int64_t image_bytes =
      4 * (program_.input_numel + program_.output_numel) + (resident_ ? 0 : program_.arena_bytes);
  most_images_ = static_cast<int>(std::clamp<int64_t>(
      std::min(kWorkspaceBytes / image_bytes, INT32_MAX / program_.most_items), 1, kMostImages));
  for (Step& step : program_.steps) choose_tiles(step, 1, kResidentWarps, ResidentTeam::kMostPairs);
  const CurrentDevice current(device_.index);
  const Stream stream;
  constants_ = upload(program_.constants, stream);
  steps_ = upload(program_.steps, stream);
  borders_ = upload(program_.borders, stream);
  stream.wait();
  program_.constants = {};
}

Engine::~Engine() {
  try {
    const CurrentDevice current(device_.index);
    idle_.clear();
  } catch (const DeviceError&) {  // the process is about to end
  }
}

DeviceProgram Engine::device_program() const {
  return {steps_.as<Step>(), static_cast<int>(program_.steps.size()), borders_.as<Border>(),
          static_cast<int>(program_.borders.size()), static_cast<int>(program_.arena_bytes)};
}

std::vector<Step> Engine::steps_for(int images) const {
  std::vector<Step> steps = program_.steps;
  for (Step& step : steps)
    choose_tiles(step, images, kWarpsPerMultiprocessor * device_.multiprocessors, Team::kMostPairs);
  return steps;
}

std::unique_ptr<Engine::Workspace> Engine::acquire() const {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<Workspace>(*this);
  std::unique_ptr<Workspace> workspace = std::move(idle_.back());
  idle_.pop_back();
  return workspace;
}

void Engine::release(std::unique_ptr<Workspace> workspace) const {
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(workspace));
}

// A workspace that threw is not used again.
int64_t Engine::run(const float* input, float* output, int64_t batch) const {
  if (batch <= 0) return -1;
  const CurrentDevice current(device_.index);
  std::unique_ptr<Workspace> workspace = acquire();
  for (int64_t first = 0; first < batch; first += most_images_) {
    const int images = static_cast<int>(std::min<int64_t>(most_images_, batch - first));
    const int64_t nan =
        workspace->run(input + first * program_.input_numel, output + first * program_.output_numel, images);
    if (nan < 0) continue;
    release(std::move(workspace));
    return first * program_.input_numel + nan;
  }
  release(std::move(workspace));
  return -1;
}

std::vector<double> Engine::profile(const float* input, int repeats) const {
  const CurrentDevice current(device_.index);
  return Workspace(*this).profile(input, repeats);
}

}  // namespace pqk::engine::device
