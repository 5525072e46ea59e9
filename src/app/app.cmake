# What only the program itself needs. Exported symbols give the watchdog's stack dump names.
find_package(yaml-cpp REQUIRED)
target_link_libraries(capstan PRIVATE yaml-cpp Boost::json)
target_compile_definitions(capstan PRIVATE CAPSTAN_VERSION="${PROJECT_VERSION}")
set_target_properties(capstan PROPERTIES ENABLE_EXPORTS ON)
