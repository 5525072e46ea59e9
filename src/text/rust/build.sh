#!/bin/sh
# build.sh TARGET_DIR: compiles the crate and copies the archive to $CAPSTAN_ARCHIVE.
# Several build trees may share TARGET_DIR, hence the lock.
set -e
mkdir -p "$1"
exec 9>"$1/.capstan.lock"
flock 9
"${CAPSTAN_CARGO:-cargo}" build --release --locked --target-dir "$1"
cp "$1/release/libcapstan_text.a" "$CAPSTAN_ARCHIVE"
