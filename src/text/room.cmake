# The Rust crate: built by cargo into the build tree, always optimised and never instrumented.
find_program(CARGO_PROGRAM cargo HINTS $ENV{HOME}/.cargo/bin)
if(NOT CARGO_PROGRAM)
  message(FATAL_ERROR "cargo is not found; install Rust 1.85 or newer (https://rustup.rs)")
endif()

set(TEXT_CRATE ${CMAKE_SOURCE_DIR}/src/text/rust)
# One place for all build trees saves minutes of compiling the same crates again:
# -DCAPSTAN_CARGO_TARGET_DIR=DIR, or the environment variable of that name.
set(CAPSTAN_CARGO_TARGET_DIR "$ENV{CAPSTAN_CARGO_TARGET_DIR}" CACHE PATH
    "Where cargo keeps compiled crates; empty: in the build tree")
if(CAPSTAN_CARGO_TARGET_DIR)
  set(TEXT_CARGO_DIR ${CAPSTAN_CARGO_TARGET_DIR})
else()
  set(TEXT_CARGO_DIR ${CMAKE_BINARY_DIR}/rust)
endif()
set(TEXT_ARCHIVE ${CMAKE_BINARY_DIR}/libcapstan_text_rust.a)
# For fuzzing the crate tells libFuzzer where it has been, as `cargo fuzz` makes it do; such objects
# are of no use to other builds.
set(TEXT_RUSTFLAGS "")
if(CAPSTAN_FUZZ)
  set(TEXT_CARGO_DIR ${CMAKE_BINARY_DIR}/rust)
  string(CONCAT TEXT_RUSTFLAGS "CAPSTAN_RUSTFLAGS=-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3"
         " -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
         " -Cllvm-args=-sanitizer-coverage-trace-compares")
endif()
file(GLOB TEXT_CRATE_SOURCES CONFIGURE_DEPENDS ${TEXT_CRATE}/src/*.rs)

# The compilers of this build do not leak into crates that build C code: no sanitizer, no launcher.
add_custom_command(
  OUTPUT ${TEXT_ARCHIVE}
  COMMAND ${CMAKE_COMMAND} -E env --unset=CFLAGS --unset=CXXFLAGS --unset=RUSTFLAGS
          ${TEXT_RUSTFLAGS} CAPSTAN_CARGO=${CARGO_PROGRAM} CAPSTAN_ARCHIVE=${TEXT_ARCHIVE}
          ${TEXT_CRATE}/build.sh ${TEXT_CARGO_DIR}
  DEPENDS ${TEXT_CRATE_SOURCES} ${TEXT_CRATE}/Cargo.toml ${TEXT_CRATE}/Cargo.lock
          ${TEXT_CRATE}/build.sh
  WORKING_DIRECTORY ${TEXT_CRATE}
  COMMENT "Building the Rust crate of src/text"
  VERBATIM)
add_custom_target(capstan_text_rust DEPENDS ${TEXT_ARCHIVE})
# Ninja knows from the link line that programs need the archive. Were the room to depend on it, the objects
# of every room above would wait for cargo.
if(NOT CMAKE_GENERATOR MATCHES "Ninja")
  add_dependencies(${ROOM_TARGET} capstan_text_rust)
endif()
target_link_libraries(${ROOM_TARGET} PUBLIC ${TEXT_ARCHIVE} Boost::json Threads::Threads
                      ${CMAKE_DL_LIBS} m)
