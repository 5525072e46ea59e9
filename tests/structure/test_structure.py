"""The house rules that a compiler does not check: who may include whom, and what every folder has."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src"

# The picture of docs/architecture.md: each room and the rooms it may include directly.
MAY_USE = {
    "base": set(),
    "platform": {"base"},
    "tensor": {"base"},
    "quant": {"tensor", "platform", "base"},
    "kernels": {"quant", "tensor", "platform", "base"},
    "comm": {"tensor", "platform", "base"},
    "cache": {"base"},
    "scheduler": {"cache", "base"},
    "text": {"base"},
    "model": {"comm", "kernels", "quant", "tensor", "platform", "text", "base"},
    "engine": {"scheduler", "model", "comm", "kernels", "quant", "tensor", "platform", "base"},
    "server": {"engine", "text", "scheduler", "base"},
    "app": None,  # the one place where parts are put together
}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
                         cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in (ROOT / line for line in out.splitlines()) if path.is_file()]


def includes():
    """(including file, room, included room) for every include of a project header."""
    for path in tracked("src/*.h", "src/*.cpp", "src/*.inc"):
        room = path.relative_to(SOURCES).parts[0]
        for target in INCLUDE.findall(path.read_text(encoding="utf-8")):
            top = target.split("/")[0]
            if top in MAY_USE:
                yield path.relative_to(ROOT), room, top


def violations(edges):
    return [f"{path}: {room} may not include {used}" for path, room, used in edges
            if used != room and MAY_USE.get(room) is not None and used not in MAY_USE[room]]


def test_rooms_include_only_what_the_picture_allows():
    edges = list(includes())
    assert len(edges) > 50, "the scan found next to nothing; has src/ moved?"
    assert violations(edges) == []


@pytest.mark.parametrize("room, used", [("cache", "kernels"), ("scheduler", "model"), ("text", "engine"),
                                        ("kernels", "model"), ("server", "app")])
def test_the_check_catches_forbidden_includes(room, used):
    assert violations([("x.cpp", room, used)]) == [f"x.cpp: {room} may not include {used}"]


def test_every_room_is_known():
    rooms = {path.relative_to(SOURCES).parts[0] for path in tracked("src/*.cpp", "src/*.h")}
    assert rooms <= set(MAY_USE), f"add to MAY_USE and docs/architecture.md: {rooms - set(MAY_USE)}"


def test_the_picture_has_no_cycle():
    order = [room for room, used in MAY_USE.items() if used is not None]
    for position, room in enumerate(order):
        later = MAY_USE[room] - set(order[:position])
        assert not later, f"{room} uses {later}, which stand above it"


def test_cmake_agrees_with_the_picture():
    text = (ROOT / "CMakeLists.txt").read_text()
    declared = {name: set(re.sub(r"LIBS.*", "", rest, flags=re.S).replace("DEPENDS", " ").split())
                for name, rest in re.findall(r"^capstan_room\((\w+)([^)]*)\)", text, re.M)}
    assert set(declared) == set(MAY_USE) - {"app"}
    for room, used in declared.items():
        assert used <= MAY_USE[room] | {"tensor"}, f"CMake lets {room} use {used - MAY_USE[room]}"


def test_every_room_has_a_readme():
    rooms = sorted(path for path in SOURCES.iterdir() if path.is_dir())
    assert [str(r.name) for r in rooms if not (r / "README.md").is_file()] == []


def test_headers_are_guarded():
    assert [str(p.relative_to(ROOT)) for p in tracked("src/*.h") if "#pragma once" not in p.read_text()] == []


def test_files_have_one_subject():
    long = {str(p.relative_to(ROOT)): n for p in tracked("src/*.cpp", "src/*.h", "tests/*.cpp", "*.py", "src/*.rs")
            if (n := len(p.read_text(encoding="utf-8").splitlines())) > 560}
    assert long == {}, "split these by subject (about 500 lines at most)"


def test_no_unfinished_words():
    # Spelled in two halves so that this file does not find itself.
    words = re.compile("|".join(["TO" + "DO", "FIX" + "ME", r"\bX" + r"XX\b(?!X)", "not impl" + "emented yet"]))
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in tracked("*.cpp", "*.h", "*.rs", "*.py", "*.sh", "*.md", "web/*")
             if p.suffix in {".cpp", ".h", ".rs", ".py", ".sh", ".md", ".js", ".css", ".html"}
             for m in words.finditer(p.read_text(encoding="utf-8", errors="replace"))]
    assert found == []


def test_no_machine_paths_or_registry_hosts():
    hosts = ["pypi" + r"\.org", "files.python" + "hosted", "registry" + r"\.npmjs", "crates" + r"\.io/",
             "proxy" + r"\.golang", "deb" + r"\.debian", "/wo" + "rk/", "/ro" + "ot/"]
    pattern = re.compile("|".join(hosts))
    found = []
    for path in tracked():
        if path.suffix in {".gguf", ".npy", ".safetensors", ".bin", ".png", ".gz"} or path.name == "Cargo.lock":
            continue
        match = pattern.search(path.read_bytes().decode("utf-8", errors="replace"))
        if match:
            found.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert found == []


def test_flag_page_is_what_the_program_prints():
    binary = os.environ.get("CAPSTAN_BINARY")
    if not binary:
        pytest.skip("CAPSTAN_BINARY names no program")
    printed = subprocess.run([binary, "serve", "--help-markdown"], check=True, capture_output=True, text=True).stdout
    page = (ROOT / "docs/flags.md").read_text(encoding="utf-8")
    assert page.endswith(printed), "write it again: capstan serve --help-markdown, below the page's first lines"
