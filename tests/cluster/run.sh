#!/bin/bash
# tests/cluster/run.sh BINARY [pytest arguments]: groups of nodes on this machine, and what ends them.
#   tests/cluster/run.sh build/release/capstan                                   the quick part
#   tests/cluster/run.sh build/release/capstan --all-faults                      the whole matrix
#   tests/cluster/run.sh build/release/capstan --faults=sigkill-worker -k decode  one fault
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 BINARY [pytest arguments]" >&2; exit 2; }
CAPSTAN_BINARY=$(realpath "$1")
export CAPSTAN_BINARY
shift
exec "${PYTHON:-python3}" -m pytest -q "$(dirname "$0")" "$@"
