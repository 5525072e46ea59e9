# The program's own sources are no room of their own; all but main() are linked into the test.
file(GLOB app_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/app/*.cpp)
list(FILTER app_sources EXCLUDE REGEX "/main\\.cpp$")
target_sources(app_test PRIVATE ${app_sources})
target_link_libraries(app_test PRIVATE yaml-cpp Boost::json)
target_compile_definitions(app_test PRIVATE CAPSTAN_VERSION="${PROJECT_VERSION}")
# Some tests start the program itself.
add_dependencies(app_test capstan)
target_compile_definitions(app_test PRIVATE CAPSTAN_PROGRAM="$<TARGET_FILE:capstan>")
