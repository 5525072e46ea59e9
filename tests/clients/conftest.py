"""Servers under test, started once per set of flags from the binary and model that run.sh names."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import openai
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

BINARY = os.environ.get("CAPSTAN_BINARY", "")
MODEL = os.environ.get("CAPSTAN_MODEL", "")
NAME = "test/model"
CONTEXT = 384
START_TIMEOUT = 180


def pytest_collection_modifyitems(items):
    if BINARY and MODEL:
        return
    skip = pytest.mark.skip(reason="needs CAPSTAN_BINARY and CAPSTAN_MODEL; see tests/clients/run.sh")
    for item in items:
        item.add_marker(skip)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One `capstan serve` process."""

    def __init__(self, *flags, wait=True, port=None, model=MODEL):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = tempfile.NamedTemporaryFile("w+", suffix=".log")
        argv = [BINARY, "serve", "--model-path", str(model), "--host", "127.0.0.1", "--port", str(self.port),
                "--served-model-name", NAME, "--context-length", str(CONTEXT), *flags]
        self.process = subprocess.Popen(argv, stdout=self.log_file, stderr=subprocess.STDOUT)
        if wait:
            self.wait_ready()

    def log(self):
        return pathlib.Path(self.log_file.name).read_text(errors="replace")

    def wait_ready(self):
        deadline = time.monotonic() + START_TIMEOUT
        while "The server is fired up and ready to roll!" not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, "not ready in time\n" + self.log()
            time.sleep(0.05)

    def client(self, **options):
        return openai.OpenAI(base_url=self.url + "/v1", **{"api_key": "none", "max_retries": 0, **options})

    def http(self, **options):
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def stop(self, expect=0):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        if expect is not None:
            assert code == expect, self.log()


@pytest.fixture(scope="session")
def servers():
    """servers("--flag", ...) gives a running server with those flags, shared by all tests."""
    running = {}

    def get(*flags):
        if flags not in running:
            running[flags] = Server(*flags)
        return running[flags]

    yield get
    for server in running.values():
        server.stop()


@pytest.fixture(scope="session")
def server(servers):
    return servers("--enable-metrics", "--enable-cache-report", "--random-seed", "7")


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def http(server):
    with server.http() as http:
        yield http
