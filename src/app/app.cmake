# What only the program itself needs. Exported symbols give the watchdog's stack dump names.
find_package(yaml-cpp REQUIRED)
target_link_libraries(capstan_app PUBLIC yaml-cpp Boost::json)
target_compile_definitions(capstan_app PUBLIC CAPSTAN_VERSION="${PROJECT_VERSION}")
set_target_properties(capstan PROPERTIES ENABLE_EXPORTS ON)
