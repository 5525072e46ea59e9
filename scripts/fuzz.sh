#!/usr/bin/env bash
# fuzz.sh [TARGET...]: builds the fuzz targets with clang (libFuzzer, ASan, UBSan), replays the inputs
# that once found something (tests/fuzz/regressions) and runs each target, all by default, for
# SECONDS_EACH seconds (default 60), as many at once as there are CPUs. Corpora grow in
# build/fuzz/corpus from run to run. A finding ends it with the path of the input. SEED=N repeats the
# same random choices (default: others each time).
. "$(dirname "$0")/common.sh"
seconds=${SECONDS_EACH:-60}
command -v clang++-16 >/dev/null || scripts/install_deps.sh lint
scripts/build.sh fuzz "$(nproc)" fuzz_targets
work=build/fuzz
rm -rf "$work/seeds"
python3 tests/fuzz/make_seeds.py "$work/seeds"
mkdir -p "$work/artifacts"

# fuzz_one TARGET: its output is in $work/TARGET.log
fuzz_one() {
  local name=$1 corpus=$work/corpus/$1 log=$work/$1.log inputs=() status=0
  mkdir -p "$corpus"
  [ -x "$work/tests/fuzz/$name" ] || die "there is no fuzz target $name"
  for folder in "tests/fuzz/seeds/$name" "tests/fuzz/regressions/$name"; do
    [ -d "$folder" ] && inputs+=("$folder")
  done
  # Time limits are of the wall clock: generous, for machines that do other work as well.
  "$work/tests/fuzz/$name" -max_total_time="$seconds" -seed="${SEED:-0}" -rss_limit_mb=3000 -timeout=60 -report_slow_units=60 \
    -print_final_stats=1 -dict="$work/seeds/$name.dict" -artifact_prefix="$work/artifacts/$name-" \
    "$corpus" "$work/seeds/$name" "${inputs[@]}" > "$log" 2>&1 || status=$?
  if [ "$status" != 0 ]; then
    tail -n 40 "$log" >&2
    die "$name found something; the input is in $work/artifacts, the report in $log"
  fi
  # The share of the code that the seeds alone reached, and what was found on top.
  say "$name: $(sed -n 's/^#[0-9]*[[:space:]]*INITED cov: \([0-9]*\).*/from \1 edges/p' "$log")" \
    "$(sed -n 's/^#\([0-9]*\)[[:space:]]*DONE *cov: \([0-9]*\) .*/to \2, \1 inputs/p' "$log")"
}

if [ $# -gt 0 ]; then targets=("$@")
else
  targets=()
  for source in tests/fuzz/*_fuzz.cpp; do targets+=("$(basename "$source" .cpp)"); done
fi
say "fuzzing ${targets[*]} for $seconds s each"
failed=0 running=0
for name in "${targets[@]}"; do
  fuzz_one "$name" &
  running=$((running + 1))
  if [ "$running" -ge "$(nproc)" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
done
while [ "$running" -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit "$failed"
