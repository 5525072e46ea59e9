#!/usr/bin/env bash
# build.sh PRESET JOBS [TARGET]: configures once, then builds; ninja shows the progress.
. "$(dirname "$0")/common.sh"
[ $# -le 3 ] || die "build.sh takes one target, not: ${*:3}"
preset=$1 jobs=$2 target=${3:-all}
if [ ! -f "build/$preset/build.ninja" ]; then
  say "configuring build/$preset"
  cmake --preset "$preset" > "/tmp/capstan-configure.$$" 2>&1 \
    || { cat "/tmp/capstan-configure.$$" >&2; rm -f "/tmp/capstan-configure.$$"; die "cmake failed; \`make deps\` installs what a build needs"; }
  rm -f "/tmp/capstan-configure.$$"
fi
say "building $target (preset $preset, $jobs jobs)"
cmake --build "build/$preset" --target "$target" -j "$jobs"
