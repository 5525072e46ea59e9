#!/bin/sh
# build.sh TARGET_DIR: compiles the crate and copies the archive to $CAPSTAN_ARCHIVE.
# Several build trees may share TARGET_DIR, hence the lock.
set -e
mkdir -p "$1"
exec 9>"$1/.capstan.lock"
flock 9
cargo=${CAPSTAN_CARGO:-cargo}
advice() {
  echo "error: cargo could not build src/text/rust; its message is above. If it could not fetch crates: is there a" \
       "network, and does cargo reach crates.io (or the mirror in its config.toml)?" >&2
  exit 1
}
if [ -n "$CAPSTAN_RUSTFLAGS" ]; then
  # Optimised less, because these objects are made for one tool and should not take minutes.
  export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
  # With a target named, the flags do not reach build scripts, which could not be linked with them.
  host=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')
  RUSTFLAGS=$CAPSTAN_RUSTFLAGS "$cargo" build --release --locked --target-dir "$1" --target "$host" || advice
  cp "$1/$host/release/libcapstan_text.a" "$CAPSTAN_ARCHIVE"
else
  "$cargo" build --release --locked --target-dir "$1" || advice
  cp "$1/release/libcapstan_text.a" "$CAPSTAN_ARCHIVE"
fi
