# One node of a group as a process, for tests that kill and stop it.
add_executable(group_node ${CMAKE_CURRENT_SOURCE_DIR}/comm/group_node.cpp)
target_link_libraries(group_node PRIVATE capstan_comm)
add_dependencies(comm_test group_node)
target_compile_definitions(comm_test PRIVATE CAPSTAN_GROUP_NODE="$<TARGET_FILE:group_node>")
# Some play a peer that UCX itself connects.
if(CAPSTAN_UCX AND UCX_FOUND)
  target_compile_definitions(comm_test PRIVATE CAPSTAN_UCX_BUILT=1)
  target_include_directories(comm_test SYSTEM PRIVATE ${UCX_INCLUDE_DIRS})
endif()
