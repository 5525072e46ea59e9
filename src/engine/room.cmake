# The loops of row_math.cpp are written in lanes for the vectoriser, which -O2 only half switches on.
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/engine/row_math.cpp PROPERTIES
  COMPILE_OPTIONS "-O3;-fno-math-errno;-fno-trapping-math")
