# Each instruction set has its own folder and its own flags; nothing else is built with them, so the
# program starts on any x86-64 and chooses at run time.
file(GLOB CAPSTAN_AVX2_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/avx2/*.cpp)
set_source_files_properties(${CAPSTAN_AVX2_SOURCES} PROPERTIES COMPILE_OPTIONS
  "-O3;-mavx2;-mfma;-mf16c;-mtune=znver3")
file(GLOB CAPSTAN_AVX512_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/avx512/*.cpp)
set_source_files_properties(${CAPSTAN_AVX512_SOURCES} PROPERTIES COMPILE_OPTIONS
  "-O3;-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-Wno-uninitialized;-Wno-maybe-uninitialized")
file(GLOB CAPSTAN_AVX512BF16_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/avx512bf16/*.cpp)
set_source_files_properties(${CAPSTAN_AVX512BF16_SOURCES} PROPERTIES COMPILE_OPTIONS
  "-O3;-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx512vbmi;-mavx512bf16;-Wno-uninitialized;-Wno-maybe-uninitialized")
file(GLOB CAPSTAN_AVX512AMX_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/avx512amx/*.cpp)
# The tile instructions are assembly: the flags are avx512's, whose headers are shared.
set_source_files_properties(${CAPSTAN_AVX512AMX_SOURCES} PROPERTIES COMPILE_OPTIONS
  "-O3;-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-Wno-uninitialized;-Wno-maybe-uninitialized")

# Fuzzing is about files and requests: instrumented kernels would be slow to build and to run.
if(CAPSTAN_FUZZ)
  target_compile_options(${ROOM_TARGET} PRIVATE -fno-sanitize=all)
endif()
