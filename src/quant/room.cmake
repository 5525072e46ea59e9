# GCC's -O2 leaves the decoders' loops scalar; -O3 vectorises them (no other effect on the bits:
# contraction is off and nothing is reassociated).
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/quant/codecs.cpp
                            ${CMAKE_SOURCE_DIR}/src/quant/panel.cpp PROPERTIES COMPILE_OPTIONS "-O3")
