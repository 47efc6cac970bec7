# _engine_cuda: the inference engine on NVIDIA GPUs, without torch; built whenever a CUDA compiler is found and loaded
# for device="cuda" only. _engine_cuda_emulated: its twin over the kernels that run on the CPU, for tests.
file(GLOB engine_cuda_sources CONFIGURE_DEPENDS csrc/core/cuda/engine/*.cpp)
list(FILTER engine_cuda_sources EXCLUDE REGEX "_emulated\\.cpp$")
list(APPEND engine_cuda_sources csrc/python/engine_cuda.cpp csrc/python/raw_graph.cpp csrc/python/samples.cpp)

if(PQK_WITH_NVCC)
  pybind11_add_module(_engine_cuda NO_EXTRAS ${engine_cuda_sources} csrc/core/cuda/engine/host.cu
                      csrc/core/cuda/engine_kernels.cu)
  set_target_properties(_engine_cuda PROPERTIES CUDA_STANDARD 20 CUDA_VISIBILITY_PRESET hidden)
  target_compile_options(
    _engine_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --expt-relaxed-constexpr -O3
                         -Xcompiler=-ffile-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=>)
  target_link_libraries(_engine_cuda PRIVATE pqk_options pqk_core)
endif()

if(PQK_CUDA_EMULATION)
  pybind11_add_module(_engine_cuda_emulated NO_EXTRAS ${engine_cuda_sources}
                      csrc/core/cuda/engine/host_emulated.cpp)
  target_link_libraries(_engine_cuda_emulated PRIVATE pqk_options pqk_core pqk_cuda_emulated)
endif()
