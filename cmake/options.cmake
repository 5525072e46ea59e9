# Compiler and linker settings shared by every target.
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # Paths are taken relative to this tree, so that another clone of it finds what this one compiled.
  set(CAPSTAN_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      ${CCACHE_PROGRAM})
  set(CMAKE_C_COMPILER_LAUNCHER ${CAPSTAN_LAUNCHER})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CAPSTAN_LAUNCHER})
endif()

find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_link_options(-fuse-ld=mold)
endif()

add_compile_options(-Wall -Wextra -Wpedantic -Wno-missing-field-initializers)
# Floating-point contraction is written out in the kernels; the compiler must not add its own.
add_compile_options(-ffp-contract=off)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
# Sanitizers and fuzzing: reports need lines, not variables, and -g costs 40% (config_json.cpp under ASan: 11.5 s
# against 8.2 s).
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")

if(CAPSTAN_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
  add_link_options(-fsanitize=address,undefined)
endif()

if(CAPSTAN_SANITIZE)
  add_compile_options(-fsanitize=${CAPSTAN_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  if(CAPSTAN_SANITIZE MATCHES "undefined")
    # ASan stops at null pointers and the ends of objects too, and vptr looks for wrong casts to derived
    # classes, of which there are few. The three take a quarter of the compiler's time (group_watch.cpp:
    # 14.9 s with, 11.1 s without).
    add_compile_options(-fno-sanitize=null,vptr,object-size)
  endif()
  add_link_options(-fsanitize=${CAPSTAN_SANITIZE})
  if(CAPSTAN_SANITIZE MATCHES "thread")
    add_compile_definitions(CAPSTAN_TSAN=1)
  endif()
endif()
