# HTTP server: Boost.Asio/Beast and prometheus-cpp's registry; the chat page as a generated source.
find_package(prometheus-cpp REQUIRED)
find_package(Threads REQUIRED)
target_link_libraries(${ROOM_TARGET} ${ROOM_VISIBILITY} prometheus-cpp::core Threads::Threads)
# One translation unit would otherwise instantiate asio's internals per file.
target_compile_definitions(${ROOM_TARGET} ${ROOM_VISIBILITY} BOOST_ASIO_NO_DEPRECATED)

file(GLOB_RECURSE CAPSTAN_WEB_FILES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/web/*)
set(CAPSTAN_WEB_ROOT ${CMAKE_SOURCE_DIR}/web)
if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/web/dist)
  set(CAPSTAN_WEB_ROOT ${CMAKE_SOURCE_DIR}/web/dist)
endif()
set(CAPSTAN_WEB_SOURCE ${CMAKE_BINARY_DIR}/generated/server/embedded_assets.cpp)
add_custom_command(
  OUTPUT ${CAPSTAN_WEB_SOURCE}
  COMMAND ${CMAKE_COMMAND} -DROOT=${CAPSTAN_WEB_ROOT} -DOUTPUT=${CAPSTAN_WEB_SOURCE}
          -P ${CMAKE_SOURCE_DIR}/src/server/embed_assets.cmake
  DEPENDS ${CAPSTAN_WEB_FILES} ${CMAKE_SOURCE_DIR}/src/server/embed_assets.cmake
  COMMENT "Embedding the chat page"
  VERBATIM)
target_sources(${ROOM_TARGET} PRIVATE ${CAPSTAN_WEB_SOURCE})
