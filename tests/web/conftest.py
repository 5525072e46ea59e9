"""A running server and a headless Chromium for the tests of the chat page.

CAPSTAN_BINARY names the program (default build/release/capstan); the default model must be in its place
(`make model`).
"""

import os
import pathlib
import re
import socket
import subprocess
import tempfile
import time
import urllib.request

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CAPSTAN_BINARY", ROOT / "build/release/capstan"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def server():
    """Base URL of a server with the default model."""
    port = free_port()
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")
    process = subprocess.Popen([BINARY, "serve", "--port", str(port), "--enable-metrics", "--enable-cache-report",
                                "--context-length", "2048"], stdout=log, stderr=subprocess.STDOUT)
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


@pytest.fixture
def page(server, chromium):
    """The page, fresh: nothing remembered from an earlier test."""
    chromium.get(server + "/")
    chromium.execute_script("localStorage.clear()")
    chromium.get_log("browser")
    chromium.get(server + "/")
    yield chromium
    severe = [entry for entry in chromium.get_log("browser")
              if entry["level"] == "SEVERE" and not re.search(r"status of (400|401)", entry["message"])]
    assert severe == [], "errors in the browser's console"
