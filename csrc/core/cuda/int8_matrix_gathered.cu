#include "core/cuda/int8_matrix.h"

namespace pqk::cuda {

const char* launch_int8_matrix_gathered(const Int8MatrixTask& task, int device, void* stream) {
  using Medium = MatrixTile<128, 64, 64, 2, 2, 1, 2>;
  using Narrow = MatrixTile<128, 16, 64, 4, 1, 1, 2>;
  using Small = MatrixTile<32, 32, 64, 2, 1, 1, 2>;
  const int64_t enough = num_multiprocessors(device);
  if (task.group_out <= 16 && matrix_blocks<Narrow>(task) >= enough) {
    return launch_matrix<Narrow, GatherLoader>(task, stream);
  }
  if (task.group_out > 32 && matrix_blocks<Medium>(task) >= enough) {
    return launch_matrix<Medium, GatherLoader>(task, stream);
  }
  return launch_matrix<Small, GatherLoader>(task, stream);
}

}  // namespace pqk::cuda
