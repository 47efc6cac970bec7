# pqk_add_isa_objects(target SOURCES...): compiles each *_cpu.cpp once per instruction set and adds the objects to
# `target`. The files switch their code generation with a pragma (core/isa_begin.h), never with a compile flag: a
# flag would let AVX code leak into inline functions that every CPU runs.
function(pqk_add_isa_objects target)
  set(isas baseline)
  if(PQK_X86_64)
    list(APPEND isas avx2 avx512vnni)
  endif()
  set(level 0)
  foreach(isa IN LISTS isas)
    add_library(pqk_${isa} OBJECT ${ARGN})
    target_compile_definitions(pqk_${isa} PRIVATE PQK_ISA=${isa} PQK_ISA_LEVEL=${level})
    target_link_libraries(pqk_${isa} PRIVATE pqk_options)
    # gcc 12's own AVX-512 intrinsics trip these warnings.
    target_compile_options(pqk_${isa} PRIVATE "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>")
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:pqk_${isa}>)
    math(EXPR level "${level} + 1")
  endforeach()
endfunction()
