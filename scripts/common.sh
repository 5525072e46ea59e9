# Shared by the scripts beside this file: messages, and the project's root as working directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root, by sudo if need be.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "root is needed, and there is no sudo; as root: $*"
  fi
}

cache_dir() { printf '%s/capstan' "${XDG_CACHE_HOME:-$HOME/.cache}"; }
