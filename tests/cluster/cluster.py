"""A group of nodes under `capstan up`, and clients that say what they saw."""

import ctypes
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import httpx

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BINARY = os.environ.get("CAPSTAN_BINARY", "")
MODEL = ROOT / "tests/testdata/model/tiny-llama3-f32"
PATIENCE = 90  # seconds: nothing is measured by it, a hang must only not last for ever
CONTEXT = 1 << 20  # so that a request outlasts the test
END = re.compile(r"rank (\d+) \(node (\d+), host ([^)]*)\) failed at step (\d+): (.*)")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def namespaces_possible():
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    inside = ["ip", "-n", "capstan-probe", "link", "add"]
    made = all(subprocess.run(command, capture_output=True).returncode == 0 for command in (
        ["ip", "netns", "add", "capstan-probe"],
        inside + ["probe0", "type", "veth", "peer", "name", "probe1"],
        inside + ["probe2", "type", "bridge"]))
    subprocess.run(["ip", "netns", "del", "capstan-probe"], capture_output=True)
    return made


@functools.cache
def ucx_possible():
    """Whether the program can use UCX here; nodes of one machine have no better transport of it than TCP."""
    probe = [BINARY, "bench", "comm", "--nnodes", "2", "--comm-transport", "ucx", "--op", "barrier", "--elements", "1",
             "--seconds", "0.001"]
    return subprocess.run(probe, capture_output=True, timeout=PATIENCE).returncode == 0


# Serve flags and environment of nodes that use it.
UCX_FLAGS = ("--comm-transport", "ucx")
UCX_ENVIRONMENT = {"UCX_TLS": "tcp"}


def shim(folder):
    """The library of shim.c, built where the tests run."""
    library = pathlib.Path(folder) / "shim.so"
    if not library.exists():
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


class Cluster:
    """One `capstan up`. Times are time.monotonic()."""

    def __init__(self, nodes=2, tp=None, model=MODEL, up=(), serve=(), env=None, port=None):
        self.nodes_wanted = nodes
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines = []  # (time, text) of stderr: every node's log and what `up` says
        self.info = None
        self.ended_at = {}  # node: time
        self._lock = threading.Condition()
        argv = [BINARY, "up", "--nodes", str(nodes), "--print-nodes", "json", "--grace", "60", *up,
                "--model-path", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--threads", "1",
                "--served-model-name", "tiny", "--context-length", str(CONTEXT), "--max-total-tokens", str(CONTEXT),
                *(["--tp", str(tp)] if tp else []), *serve]
        environment = {**os.environ, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1", **(env or {})}
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
                                        preexec_fn=die_with_parent)
        self._threads = [threading.Thread(target=self._read, args=(self.process.stderr, self._line), daemon=True),
                         threading.Thread(target=self._read, args=(self.process.stdout, self._nodes), daemon=True)]
        for thread in self._threads:
            thread.start()

    def _read(self, stream, use):
        for line in stream:
            with self._lock:
                use(line.decode(errors="replace").rstrip("\n"))
                self._lock.notify_all()

    def _line(self, text):
        self.lines.append((time.monotonic(), text))
        match = re.match(r"up     \| node (\d+) (ended|was killed)", text)
        if match:
            self.ended_at[int(match[1])] = time.monotonic()

    def _nodes(self, text):
        self.info = json.loads(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGTERM)  # the second one ends all at once
                try:
                    self.process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    self.process.kill()  # the kernel takes the nodes along
                    self.process.wait()

    def wait_for(self, condition, what, patience=PATIENCE):
        """Until condition() is true; its value."""
        deadline = time.monotonic() + patience
        with self._lock:
            while True:
                value = condition()
                if value:
                    return value
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"no {what} in {patience} s\n" + self.log())
                if self.process.poll() is not None and not condition():
                    self._lock.wait(0.3)  # what it said last may still come
                    value = condition()
                    if value:
                        return value
                    raise AssertionError(f"ended with {self.process.returncode} before {what}\n" + self.log())
                self._lock.wait(min(left, 0.05))

    def wait_line(self, text, node=None, since=0.0, patience=PATIENCE):
        prefix = "" if node is None else f"node {node} |"
        return self.wait_for(lambda: next((line for at, line in self.lines
                                           if at >= since and text in line and line.startswith(prefix)), None),
                             repr(text), patience)

    def wait_started(self, nodes=None):
        wanted = range(self.nodes_wanted) if nodes is None else nodes
        self.wait_for(lambda: self.info and all(self.info["nodes"][n]["pid"] for n in wanted), "node pids")
        return self

    def wait_ready(self, patience=PATIENCE):
        self.wait_line("up     | API at", patience=patience)
        return self.wait_started()

    def wait_end(self, patience=PATIENCE):
        self.process.wait(timeout=patience)
        for thread in self._threads:
            thread.join(timeout=5)
        return self.process.returncode

    def log(self, node=None):
        prefix = "" if node is None else f"node {node} |"
        return "\n".join(line for _, line in self.lines if line.startswith(prefix))

    def pid(self, node):
        return self.info["nodes"][node]["pid"]

    def signal(self, node, number):
        os.kill(self.pid(node), number)

    def link(self, node, state):
        ns = self.info["bridge"]["namespace"]
        subprocess.run(["ip", "-n", ns, "link", "set", self.info["nodes"][node]["link"], state], check=True)

    def exit_codes(self):
        codes = {}
        for _, line in self.lines:
            if match := re.match(r"up     \| node (\d+) ended with code (\d+)", line):
                codes[int(match[1])] = int(match[2])
            elif match := re.match(r"up     \| node (\d+) was killed by signal (\d+)", line):
                codes[int(match[1])] = 128 + int(match[2])
        return codes

    def verdicts(self, node):
        """What a node says of the group's end: [(rank, node, host, step, text)]."""
        return [(int(m[1]), int(m[2]), m[3], int(m[4]), m[5])
                for _, line in self.lines if line.startswith(f"node {node} |") and (m := END.search(line))]

    def wire(self, node):
        return WireProcess(self.info["bridge"]["namespace"], self.info["nodes"][node]["link"],
                           self.info["bridge"]["name"])


class WireProcess:
    """wire.py between a node and the bridge."""

    def __init__(self, namespace, link, bridge):
        self.process = subprocess.Popen([sys.executable, HERE / "wire.py", namespace, link, bridge],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        preexec_fn=die_with_parent)
        assert self.process.stdout.readline() == "ready\n"

    def set(self, what, value):
        self.process.stdin.write(f"{what} {value}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ok\n"

    def close(self):
        self.process.kill()
        self.process.wait()


class Stream(threading.Thread):
    """A streaming completion. `saw` is, in the end, one of
    complete, error event (+ text), status N, cut (connection broken mid-answer), refused (no connection),
    false end (the stream ends as if all were well, but too early), hang."""

    def __init__(self, url, prompt_tokens=3, max_tokens=100000, timeout=PATIENCE):
        super().__init__(daemon=True)
        self.url, self.max_tokens, self.timeout = url, max_tokens, timeout
        self.prompt = [5 + i % 200 for i in range(prompt_tokens)]
        self.events = 0
        self.saw, self.detail, self.ended_at = "hang", "", None
        self.start()

    def run(self):
        body = {"prompt": self.prompt, "temperature": 0, "ignore_eos": True, "max_tokens": self.max_tokens,
                "stream": True, "model": "tiny"}
        finish, done = None, False
        try:
            with httpx.Client(timeout=self.timeout) as client, \
                    client.stream("POST", self.url + "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    self.saw, self.detail = f"status {response.status_code}", response.text
                    return
                for line in response.iter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        done = True
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.saw, self.detail = "error event", event["error"].get("message", "")
                        return
                    self.events += 1
                    if event["choices"]:
                        finish = event["choices"][0].get("finish_reason") or finish
            if finish == "length" and done:
                self.saw = "complete"
            elif finish == "abort":
                self.saw = "finish abort"
            else:
                self.saw, self.detail = "false end", f"finish_reason {finish}, [DONE] {done}"
        except httpx.ReadTimeout:
            self.saw = "hang"
        except httpx.ConnectError as error:
            self.saw, self.detail = "refused", str(error)
        except httpx.TransportError as error:
            self.saw, self.detail = "cut", str(error)
        finally:
            self.ended_at = time.monotonic()

    def wait_events(self, count, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while self.events < count:
            assert self.is_alive(), f"ended after {self.events} events: {self.saw} {self.detail}"
            assert time.monotonic() < deadline, f"{self.events} events only"
            time.sleep(0.01)


def answer(url, max_tokens=16):
    """The token ids' text of a short greedy completion, to compare servers by."""
    body = {"prompt": [5, 6, 7, 8], "temperature": 0, "ignore_eos": True, "max_tokens": max_tokens, "model": "tiny"}
    response = httpx.post(url + "/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


class MemoryLimit:
    """A memory cgroup (version 1 or 2) for one process."""

    V1 = pathlib.Path("/sys/fs/cgroup/memory")
    V2 = pathlib.Path("/sys/fs/cgroup")

    def __init__(self):
        self.v1 = (self.V1 / "memory.limit_in_bytes").exists()
        self.path = (self.V1 if self.v1 else self.V2) / f"capstan-test-{os.getpid()}-{time.monotonic_ns()}"
        self.path.mkdir()

    @staticmethod
    def possible():
        try:
            limit = MemoryLimit()
            ok = limit.file("limit").exists()
            limit.close()
            return ok
        except OSError:
            return False

    def file(self, what):
        names = {"limit": ("memory.limit_in_bytes", "memory.max"), "usage": ("memory.usage_in_bytes", "memory.current")}
        return self.path / names[what][0 if self.v1 else 1]

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def tighten(self, spare):
        """No more than `spare` bytes beyond what is in use; the kernel kills who needs more."""
        self.file("limit").write_text(str(int(self.file("usage").read_text()) + spare))

    def close(self):
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)


class SlowCpu:
    """A CPU quota for one process, by SIGSTOP and SIGCONT in turn: works with every cgroup version and none."""

    def __init__(self, pid, share=0.1, period=0.2):
        self.pid, self.share, self.period = pid, share, period
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopped.is_set():
            try:
                os.kill(self.pid, signal.SIGSTOP)
                self.stopped.wait(self.period * (1 - self.share))
                os.kill(self.pid, signal.SIGCONT)
            except ProcessLookupError:
                return
            self.stopped.wait(self.period * self.share)

    def close(self):
        self.stopped.set()
        self.thread.join()


def private_model(folder, source=MODEL):
    """A copy of a checkpoint that a test may damage."""
    target = pathlib.Path(folder) / "model"
    shutil.copytree(source, target)
    return target


def scratch():
    return tempfile.TemporaryDirectory(prefix="capstan-cluster-")
