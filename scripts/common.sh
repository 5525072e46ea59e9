# Shared by the scripts beside this file: messages, and the project's root as working directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# apt_install PACKAGE...: as root or by sudo; without either it says what to run.
apt_install() {
  local root=()
  command -v apt-get >/dev/null || die "missing: $*; install them, or their counterparts, by your system's package manager"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "these Debian packages are missing, and only root may install them (there is no sudo);
  as root: apt-get install $*"
    root=(sudo)
  fi
  say "installing $# Debian packages: $*"
  "${root[@]}" apt-get update -qq -o APT::Update::Error-Mode=any \
    || die "apt-get update failed: is there a network, and does /etc/apt/sources.list name a mirror?"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    -o Dpkg::Progress-Fancy=1 -o Dpkg::Use-Pty=0 "$@" > build-deps.log 2>&1 \
    || { tail -n 15 build-deps.log >&2; die "apt-get install failed; the whole log is in build-deps.log"; }
  rm -f build-deps.log
}

cache_dir() { printf '%s/capstan' "${XDG_CACHE_HOME:-$HOME/.cache}"; }
