# Some tests start the program itself.
add_dependencies(app_test capstan)
target_compile_definitions(app_test PRIVATE CAPSTAN_PROGRAM="$<TARGET_FILE:capstan>")
