#!/usr/bin/env bash
# run_tests.sh PRESET: the C++ tests, then the Python ones (structure, OpenAI client, groups of nodes, chat page).
. "$(dirname "$0")/common.sh"
preset=$1
say "C++ tests"
ctest --test-dir "build/$preset" --output-on-failure -j "$(nproc)"
say "Python tests: structure, clients, groups of nodes, chat page"
model=${CAPSTAN_MODEL_DIR:-$(cache_dir)/models}/SmolLM2-135M-Instruct
export CAPSTAN_BINARY=$PWD/build/$preset/capstan
CAPSTAN_MODEL=$(ls "$model"/*.gguf)
export CAPSTAN_MODEL
for suite in structure clients cluster web; do  # each has a conftest of its own
  build/venv/bin/python -m pytest -q "tests/$suite"
done
