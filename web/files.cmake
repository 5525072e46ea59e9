# The files of the chat page that go in the binary, each served under its own name.
set(CAPSTAN_WEB_DIR ${CMAKE_CURRENT_LIST_DIR})
file(GLOB CAPSTAN_WEB_FILES CONFIGURE_DEPENDS ${CAPSTAN_WEB_DIR}/*.html ${CAPSTAN_WEB_DIR}/*.css ${CAPSTAN_WEB_DIR}/*.js)
set(marked /usr/share/nodejs/marked/lib/marked.umd.min.js)
if(NOT EXISTS ${marked})
  message(FATAL_ERROR "${marked} is missing: apt-get install node-marked (or run: make deps)")
endif()
list(APPEND CAPSTAN_WEB_FILES ${marked})
