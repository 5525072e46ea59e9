#!/usr/bin/env bash
# format.sh [--fix]: checks (or mends) the layout of all C++ sources with clang-format 16.
. "$(dirname "$0")/common.sh"
command -v clang-format-16 >/dev/null || scripts/install_deps.sh lint
mode=(--dry-run --Werror)
[ "${1:-}" = --fix ] && mode=(-i)
git ls-files '*.cpp' '*.h' | xargs clang-format-16 "${mode[@]}" || die "not formatted; run: make format"
