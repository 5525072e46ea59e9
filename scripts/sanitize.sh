#!/usr/bin/env bash
# sanitize.sh asan|tsan [ROOM...]: builds the C++ tests of the rooms (all by default) with the sanitizer
# and runs them. The million-step property tests run a tenth of their steps here.
. "$(dirname "$0")/common.sh"
preset=$1; shift
rooms=${*:-base platform quant kernels comm cache scheduler text model engine server app}
cmake --preset "$preset" > /dev/null
targets=()
for room in $rooms; do
  [ -n "$(find "tests/$room" -maxdepth 1 -name '*_test.cpp' 2>/dev/null)" ] && targets+=("${room}_test")
done
say "building ${targets[*]} with preset $preset"
cmake --build "build/$preset" -j "$(nproc)" --target "${targets[@]}"
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/tests/tsan.supp
export CAPSTAN_PROPERTY_SCALE=0.1
# tests JOBS ROOM...
tests() {
  local jobs=$1 label; shift
  [ $# -gt 0 ] || return 0
  label=$(printf '^%s$|' "$@")
  ctest --test-dir "build/$preset" -L "${label%|}" --output-on-failure -j "$jobs"
}
# Tests of these rooms have spinning threads: two such tests on two cores only wait for each other. Under
# TSan no two run at once anywhere, for heartbeats are of the wall clock.
alone=() together=()
for room in $rooms; do
  case "$preset $room" in
    tsan*|*kernels|*model|*engine) alone+=("$room") ;;
    *) together+=("$room") ;;
  esac
done
tests "$(nproc)" "${together[@]}"
tests 1 "${alone[@]}"
