find_package(OpenSSL REQUIRED)
target_link_libraries(${ROOM_TARGET} PRIVATE OpenSSL::Crypto)
