"""A running server and a headless Chromium for the tests of the chat page.

CAPSTAN_BINARY names the program (default build/release/capstan); the default model must be in its place
(`make model`).
"""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
BINARY = pathlib.Path(os.environ.get("CAPSTAN_BINARY", ROOT / "build/release/capstan"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def serving(*flags):
    """Base URL of a server with these flags."""
    port = free_port()
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")
    process = subprocess.Popen([BINARY, "serve", "--port", str(port), "--enable-metrics", "--enable-cache-report",
                                "--context-length", "2048", *flags], stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, pathlib.Path(log.name).read_text()
            try:
                urllib.request.urlopen(url + "/health", timeout=2)
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert process.returncode == 0, pathlib.Path(log.name).read_text()


@pytest.fixture(scope="session")
def server():
    """Base URL of a server with the default model."""
    with serving() as url:
        yield url


@pytest.fixture(scope="session")
def thinker(tmp_path_factory):
    """Base URL of a server whose model thinks before it answers."""
    import scripted_model

    model = scripted_model.write(tmp_path_factory.mktemp("scripted"))
    with serving("--model-path", str(model), "--reasoning-parser", "deepseek-r1") as url:
        yield url


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def fresh(url, chromium):
    """The page, nothing remembered from an earlier test."""
    chromium.get(url + "/")
    chromium.execute_script("localStorage.clear()")
    chromium.get_log("browser")
    chromium.get(url + "/")
    yield chromium
    severe = [entry for entry in chromium.get_log("browser")
              if entry["level"] == "SEVERE" and not re.search(r"status of (400|401)", entry["message"])]
    assert severe == [], "errors in the browser's console"


@pytest.fixture
def page(server, chromium):
    yield from fresh(server, chromium)


@pytest.fixture
def thinking_page(thinker, chromium):
    yield from fresh(thinker, chromium)
