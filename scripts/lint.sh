#!/usr/bin/env bash
# lint.sh [--all]: clang-tidy over the sources changed since origin/main (or the last commit), or all.
. "$(dirname "$0")/common.sh"
command -v clang-tidy-16 >/dev/null || scripts/install_deps.sh lint
[ -f build/release/compile_commands.json ] || die "build first: make build"
if [ "${1:-}" = --all ]; then files=$(git ls-files 'src/*.cpp')
else
  base=$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD~1)
  files=$(git diff --name-only --diff-filter=d "$base" -- 'src/*.cpp')
fi
[ -n "$files" ] || exit 0
# shellcheck disable=SC2086
clang-tidy-16 -p build/release --quiet $files
