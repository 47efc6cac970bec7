# Compile options of the fuzz build (PQK_FUZZ), on top of those of pqk_options.
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang" OR NOT PQK_SANITIZE)
  return()
endif()
target_compile_options(pqk_options INTERFACE -O1 -gline-tables-only -fsanitize=fuzzer-no-link
                                             -fno-sanitize-recover=undefined,float-cast-overflow)
target_link_options(pqk_options INTERFACE -fsanitize=fuzzer-no-link -fprofile-instr-generate)

foreach(source IN LISTS core_sources isa_sources)
  set(options)
  if(source MATCHES "_cpu\\.cpp$")
    # Checks of every pointer in unrolled kernels take minutes to compile; AddressSanitizer sees what they would.
    list(APPEND options -fno-sanitize=alignment,null,object-size,pointer-overflow)
  else()
    list(APPEND options -O2)
  endif()
  if(source MATCHES "core/(codec|csr|huffman|interleaved|packed|engine/(graph|check|schema))[a-z0-9_]*\\.cpp$")
    # Parsers and decoders: tests/fuzz/run reports which of their lines the corpus reaches.
    list(APPEND options -fprofile-instr-generate -fcoverage-mapping)
  endif()
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${options}")
endforeach()
