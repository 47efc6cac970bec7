#include "core/cuda/int8_matrix.h"

namespace pqk::cuda {

// Small tiles fill the device where there are few outputs; the last splits the depth over its warps.
const char* launch_int8_matrix(const Int8MatrixTask& task, int device, void* stream) {
  using Large = MatrixTile<128, 128, 64, 2, 4, 1, 4>;
  using Medium = MatrixTile<128, 64, 64, 2, 2, 1, 4>;
  using Small = MatrixTile<64, 32, 64, 2, 2, 1, 4>;
  using Narrow = MatrixTile<128, 16, 64, 4, 1, 1, 4>;
  using Deep = MatrixTile<16, 32, 128, 1, 1, 4, 4>;
  const int64_t enough = num_multiprocessors(device);
  if (task.group_out > 64 && matrix_blocks<Large>(task) >= enough) {
    return launch_matrix<Large, VectorLoader>(task, stream);
  }
  if (task.group_out > 32 && matrix_blocks<Medium>(task) >= enough) {
    return launch_matrix<Medium, VectorLoader>(task, stream);
  }
  if (task.group_out <= 16 && matrix_blocks<Narrow>(task) >= enough) {
    return launch_matrix<Narrow, VectorLoader>(task, stream);
  }
  if (matrix_blocks<Small>(task) >= enough) return launch_matrix<Small, VectorLoader>(task, stream);
  return launch_matrix<Deep, VectorLoader>(task, stream);
}

}  // namespace pqk::cuda
