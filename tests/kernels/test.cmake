# The AVX-512 row and attention kernels a second time, on SIMDe, for CPUs without AVX-512. Other
# names, because the native ones are in the library: the linker must not take one for the other.
target_sources(kernels_test PRIVATE ${CMAKE_SOURCE_DIR}/src/kernels/avx512/ops_avx512.cpp)
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernels/avx512/ops_avx512.cpp PROPERTIES
  COMPILE_OPTIONS "-O2;-mavx2;-mfma;-mf16c;-Wno-psabi;-Wno-pedantic;-include;${CMAKE_SOURCE_DIR}/tests/kernels/simde_avx512.h"
  COMPILE_DEFINITIONS "CAPSTAN_SIMDE=1;VecAvx512=VecSimde512;avx512_kernels=simde_avx512_kernels")
