#!/usr/bin/env bash
# Installs what is missing of the Debian packages (scripts/apt-packages*.txt), the Rust toolchain and,
# with `test`, the Python environment of the tests. Does nothing, quickly, when all is there.
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- build

wanted=()
for group in "$@"; do
  case $group in
    build) list=scripts/apt-packages.txt ;;
    test | lint) list=scripts/apt-packages-$group.txt ;;
    *) die "unknown group '$group'; use build, test or lint" ;;
  esac
  mapfile -t -O "${#wanted[@]}" wanted < "$list"
done

command -v dpkg-query >/dev/null || die "this needs Debian's packages (12 or newer, or a derivative); \
on another system install by hand: ${wanted[*]}"
# Rust from Debian only where no toolchain is installed; the plain rustc of Debian 12 is too old.
rust_ok() {
  command -v cargo >/dev/null && [ "$(printf '1.85\n%s\n' \
    "$(cargo --version | awk '{print $2}')" | sort -V | head -n 1)" = 1.85 ]
}
rust_ok || wanted+=(rustc-web cargo-web)

missing=()
for package in "${wanted[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
rust_ok || die "cargo 1.85 or newer is needed, found: $(cargo --version 2>/dev/null || echo none)"

case " $* " in *" test "*)
  venv=build/venv
  stamp=$venv/.requirements
  if ! cmp -s tests/requirements.txt "$stamp"; then
    say "making the Python environment of the tests in $venv"
    python3 -m venv "$venv" || die "python3 -m venv failed; on Debian: apt-get install python3-venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt \
      || die "pip could not install tests/requirements.txt: is there a network?"
    cp tests/requirements.txt "$stamp"
  fi ;;
esac
