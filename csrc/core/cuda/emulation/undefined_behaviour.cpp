// The kernels of the emulation are compiled with -fsanitize=alignment,bounds: what the compiler's checks find
// ends the launch with an error. (The sanitizers' own library is not linked; it would end the process.)
#include <cstdint>
#include <string>

#include "core/cuda/emulation/grid.h"

namespace {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

struct TypeMismatch {
  SourceLocation location;
  const void* type;
  unsigned char log2_alignment, kind;
};

struct OutOfBounds {
  SourceLocation location;
  const void *array_type, *index_type;
};

std::string text(const SourceLocation& location) {
  std::string result = location.file == nullptr ? "unknown" : location.file;
  return result += ":" + std::to_string(location.line);
}

}  // namespace

#define PQK_HANDLER extern "C" __attribute__((visibility("hidden"))) void

PQK_HANDLER __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, uintptr_t) {
  pqk::cuda::emulation::fail("misaligned address at " + text(data->location) + ": no multiple of " +
                             std::to_string(1u << data->log2_alignment));
}

PQK_HANDLER __ubsan_handle_out_of_bounds(const OutOfBounds* data, uintptr_t index) {
  pqk::cuda::emulation::fail("index " + std::to_string(static_cast<int64_t>(index)) + " out of bounds at " +
                             text(data->location));
}
