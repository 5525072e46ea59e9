#!/usr/bin/env bash
# Builds the fuzz targets with clang (libFuzzer, ASan, UBSan) and runs each for SECONDS_EACH seconds
# (default 60), keeping corpora in build/fuzz/corpus. A finding ends it with the reproducer's path.
. "$(dirname "$0")/common.sh"
seconds=${SECONDS_EACH:-60}
command -v clang++-16 >/dev/null || scripts/install_deps.sh lint
scripts/build.sh fuzz "$(nproc)" fuzz_targets
for target in build/fuzz/tests/fuzz/*_fuzz; do
  name=$(basename "$target")
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus" build/fuzz/artifacts
  seeds=tests/fuzz/seeds/$name
  say "$name for $seconds s"
  "$target" -max_total_time="$seconds" -rss_limit_mb=3000 -timeout=20 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="build/fuzz/artifacts/$name-" "$corpus" $([ -d "$seeds" ] && echo "$seeds") 2> "build/fuzz/$name.log" \
    || { tail -n 40 "build/fuzz/$name.log" >&2; die "$name found something; the input is in build/fuzz/artifacts"; }
  grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "build/fuzz/$name.log" || true
done
