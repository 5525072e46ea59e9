# Sanitizers double what SIMDe's generic code takes to build and find nothing in it that the AVX2 run does not.
set(CAPSTAN_SIMDE_PLAIN "")
if(CAPSTAN_SANITIZE)
  set(CAPSTAN_SIMDE_PLAIN "-fno-sanitize=all")
endif()

# The AVX-512 row and attention kernels a second time, on SIMDe, for CPUs without AVX-512. Other
# names, because the native ones are in the library: the linker must not take one for the other.
target_sources(kernels_test PRIVATE ${CMAKE_SOURCE_DIR}/src/kernels/avx512/ops_avx512.cpp)
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernels/avx512/ops_avx512.cpp PROPERTIES
  COMPILE_OPTIONS "-O1;-mavx2;-mfma;-mf16c;-Wno-psabi;${CAPSTAN_SIMDE_PLAIN};-Wno-pedantic;-include;${CMAKE_SOURCE_DIR}/tests/kernels/simde_avx512.h"
  COMPILE_DEFINITIONS "CAPSTAN_SIMDE=1;VecAvx512=VecSimde512;avx512_kernels=simde_avx512_kernels")

# Latent attention likewise.
target_sources(kernels_test PRIVATE ${CMAKE_SOURCE_DIR}/src/kernels/avx512/mla_avx512.cpp)
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernels/avx512/mla_avx512.cpp PROPERTIES
  COMPILE_OPTIONS "-O1;-mavx2;-mfma;-mf16c;-Wno-psabi;${CAPSTAN_SIMDE_PLAIN};-Wno-pedantic;-include;${CMAKE_SOURCE_DIR}/tests/kernels/simde_avx512.h"
  COMPILE_DEFINITIONS "CAPSTAN_SIMDE=1;VecAvx512=VecSimde512;avx512_mla_kernels=simde_avx512_mla_kernels")

# And linear()'s: the table's name and the namespace are replaced for the same reason. -O1, because
# SIMDe's generic code for the unrolled kernels takes minutes and a gigabyte at -O2.
set(CAPSTAN_LINEAR_AVX512 ${CMAKE_SOURCE_DIR}/src/kernels/avx512/linear_quantised.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512/linear_super.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512/linear_float.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512/linear_fp8.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512bf16/linear_fp8.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512amx/linear_quantised.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512amx/linear_super.cpp
                          ${CMAKE_SOURCE_DIR}/src/kernels/avx512amx/tables.cpp)
target_sources(kernels_test PRIVATE ${CAPSTAN_LINEAR_AVX512})
set_source_files_properties(${CAPSTAN_LINEAR_AVX512} PROPERTIES
  COMPILE_OPTIONS "-O1;-mavx2;-mfma;-mf16c;-Wno-psabi;${CAPSTAN_SIMDE_PLAIN};-Wno-pedantic;-include;${CMAKE_SOURCE_DIR}/tests/kernels/simde_avx512.h"
  COMPILE_DEFINITIONS "CAPSTAN_SIMDE=1;avx512=avx512_on_simde;avx512bf16=avx512bf16_on_simde;amx=amx_on_simde;avx512_linear_kernels=simde_avx512_linear_kernels;amx_linear_kernels=simde_amx_linear_kernels")
