# HTTP server: Boost.Asio/Beast and prometheus-cpp's registry; the chat page as a generated source.
find_package(prometheus-cpp REQUIRED)
find_package(Threads REQUIRED)
target_link_libraries(${ROOM_TARGET} ${ROOM_VISIBILITY} prometheus-cpp::core Threads::Threads)
# One translation unit would otherwise instantiate asio's internals per file.
target_compile_definitions(${ROOM_TARGET} ${ROOM_VISIBILITY} BOOST_ASIO_NO_DEPRECATED)

# web/files.cmake lists the page's files in CAPSTAN_WEB_FILES; each is served under its own name.
set(CAPSTAN_WEB_FILES "")
if(EXISTS ${CMAKE_SOURCE_DIR}/web/files.cmake)
  include(${CMAKE_SOURCE_DIR}/web/files.cmake)
endif()
set(CAPSTAN_WEB_SOURCE ${CMAKE_BINARY_DIR}/generated/server/embedded_assets.cpp)
string(REPLACE ";" "|" CAPSTAN_WEB_LIST "${CAPSTAN_WEB_FILES}")
add_custom_command(
  OUTPUT ${CAPSTAN_WEB_SOURCE}
  COMMAND ${CMAKE_COMMAND} "-DFILES=${CAPSTAN_WEB_LIST}" -DOUTPUT=${CAPSTAN_WEB_SOURCE}
          -P ${CMAKE_SOURCE_DIR}/src/server/embed_assets.cmake
  DEPENDS ${CAPSTAN_WEB_FILES} ${CMAKE_SOURCE_DIR}/src/server/embed_assets.cmake
  COMMENT "Embedding the chat page"
  VERBATIM)
target_sources(${ROOM_TARGET} PRIVATE ${CAPSTAN_WEB_SOURCE})
# g++ 12 takes asio's coroutine frame allocator for a mismatched pair (GCC bug 109224).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(${ROOM_TARGET} PRIVATE -Wno-mismatched-new-delete)
endif()
