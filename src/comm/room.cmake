# HMAC-SHA256 of the group's secret.
find_package(OpenSSL REQUIRED)
target_link_libraries(${ROOM_TARGET} ${ROOM_VISIBILITY} OpenSSL::Crypto)
if(NOT ROOM_VISIBILITY STREQUAL "INTERFACE")
  target_compile_definitions(${ROOM_TARGET} PRIVATE CAPSTAN_VERSION="${PROJECT_VERSION}")
endif()
