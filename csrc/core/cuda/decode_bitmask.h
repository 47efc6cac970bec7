// Decoding of weights whose non-zero ones are marked by a bit each (codec `bitmask`) on CUDA. Payloads are
// trusted no more than on the CPU: as coded_plan.h says.
#pragma once

#include <cstdint>

namespace pqk::cuda {

struct BitmaskPayload {
  int device;
  void* stream;
  const uint8_t* data;
  int64_t size;
  int64_t count;  // of weights

  int64_t mask_bytes() const { return count / 8 + (count % 8 != 0); }
};

// Of the device memory, 16-byte aligned, that decoding works in. It begins with an int, the status of
// coded_plan.h.
int64_t bitmask_workspace(const BitmaskPayload& payload);

// `output` is 16-byte aligned, and the payload has mask_bytes() at least. Returns nullptr or what went wrong
// with a launch.
const char* decode_bitmask(const BitmaskPayload& payload, void* workspace, int8_t* output);

}  // namespace pqk::cuda
