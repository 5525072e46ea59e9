#!/bin/bash
# tests/clients/run.sh BINARY MODEL [pytest arguments]: the OpenAI client tests against a running server.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 BINARY MODEL [pytest arguments]" >&2; exit 2; }
CAPSTAN_BINARY=$(realpath "$1")
CAPSTAN_MODEL=$(realpath "$2")
export CAPSTAN_BINARY CAPSTAN_MODEL
shift 2
exec "${PYTHON:-python3}" -m pytest -q "$(dirname "$0")" "$@"
