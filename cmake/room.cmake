# capstan_room(NAME [DEPENDS room...] [LIBS target...])
#
# Makes the static library capstan_NAME from src/NAME/**/*.cpp and the test program NAME_test from
# tests/NAME/*_test.cpp. A room adds what only it needs (flags, generated sources, libraries) in
# src/NAME/room.cmake, which is included with ROOM and ROOM_TARGET set.
function(capstan_room NAME)
  cmake_parse_arguments(ARG "" "" "DEPENDS;LIBS" ${ARGN})
  set(ROOM ${NAME})
  set(ROOM_TARGET capstan_${NAME})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${NAME}/*.cpp)
  if(sources)
    add_library(${ROOM_TARGET} STATIC ${sources})
    set(ROOM_VISIBILITY PUBLIC)
  else()
    add_library(${ROOM_TARGET} INTERFACE)
    set(ROOM_VISIBILITY INTERFACE)
  endif()
  target_include_directories(${ROOM_TARGET} ${ROOM_VISIBILITY} ${CMAKE_SOURCE_DIR}/src)
  foreach(dep ${ARG_DEPENDS})
    target_link_libraries(${ROOM_TARGET} ${ROOM_VISIBILITY} capstan_${dep})
  endforeach()
  target_link_libraries(${ROOM_TARGET} ${ROOM_VISIBILITY} ${ARG_LIBS})
  if(EXISTS ${CMAKE_SOURCE_DIR}/src/${NAME}/room.cmake)
    include(${CMAKE_SOURCE_DIR}/src/${NAME}/room.cmake)
  endif()
endfunction()

# capstan_test(NAME ROOM... ) : tests/NAME/*_test.cpp linked with the rooms named.
function(capstan_test NAME)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${NAME}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${NAME}_test ${sources})
  foreach(room ${ARGN})
    target_link_libraries(${NAME}_test PRIVATE capstan_${room})
  endforeach()
  target_link_libraries(${NAME}_test PRIVATE GTest::gtest GTest::gtest_main)
  target_include_directories(${NAME}_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(${NAME}_test PRIVATE
    CAPSTAN_TESTDATA="${CMAKE_SOURCE_DIR}/tests/testdata")
  if(EXISTS ${CMAKE_SOURCE_DIR}/tests/${NAME}/test.cmake)
    include(${CMAKE_SOURCE_DIR}/tests/${NAME}/test.cmake)
  endif()
  if(CAPSTAN_SANITIZE MATCHES "undefined")
    # What is tested is compiled with -O1. Optimising the sanitizers' checks of the tests themselves takes
    # half of the time (split_test.cpp: 23.6 s with all checks and -O1, 11.4 s so).
    target_compile_options(${NAME}_test PRIVATE -O0)
  endif()
  # UCX connects over every network it sees, and other tests' come and go.
  gtest_discover_tests(${NAME}_test DISCOVERY_MODE PRE_TEST
    PROPERTIES LABELS ${NAME} ENVIRONMENT UCX_NET_DEVICES=lo)
endfunction()
