#!/usr/bin/env python3
"""What it costs to split a model: one process with two threads against two ranks of one thread each.

The ranks are threads of one process, or two processes that talk through shared memory or TCP over
loopback, each bound to a CPU of its own. Prints decode speed at batch 1 and 8, and of split models what
each rank computed of a step. Standard library only; have nothing else running.
"""

import argparse
import json
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

WAYS = ["one", "ranks", "shm", "tcp"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One server, of one process or two, ready when the constructor returns."""

    def __init__(self, args, way):
        common = [args.capstan, "serve", "--model-path", args.model, "--context-length", "2048",
                  "--max-total-tokens", "16384", "--enable-metrics"]
        self.port = free_port()
        self.logs = []
        if way in ("one", "ranks"):
            more = ["--threads", "2", "--port", str(self.port)] + (["--tp-size", "2"] if way == "ranks" else [])
            self.processes = [self.start(common + more)]
        else:
            group = ["--threads", "1", "--tp-size", "2", "--nnodes", "2", "--comm-transport", way,
                     "--dist-init-addr", f"127.0.0.1:{free_port()}"]
            self.processes = [
                self.start(["taskset", "-c", str(node)] + common + group +
                           ["--node-rank", str(node), "--port", str(port)])
                for node, port in [(1, free_port()), (0, self.port)]]
        deadline = time.time() + 120
        while True:
            try:
                self.get("/readyz")
                return
            except (urllib.error.URLError, ConnectionError):
                if time.time() > deadline or any(p.poll() is not None for p in self.processes):
                    log = "".join(open(f.name).read() for f in self.logs)
                    self.stop()
                    raise SystemExit(f"{way}: the server did not start\n{log}")
                time.sleep(0.1)

    def start(self, command):
        log = tempfile.NamedTemporaryFile("w", prefix="capstan_group_")
        self.logs.append(log)
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def get(self, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}").read().decode()

    def stop(self):
        for p in self.processes:
            p.send_signal(signal.SIGTERM)
        for p in self.processes:
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                p.kill()

    def stream(self, seed, tokens, times):
        prompt = [random.Random(seed).randrange(1000, 20000) for _ in range(16)]
        body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, "max_tokens": tokens, "stream": True}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        for line in urllib.request.urlopen(request):
            if line.startswith(b"data: {"):
                times.append(time.time())

    def tokens_per_second(self, clients, tokens):
        """While all streams run."""
        times = [[] for _ in range(clients)]
        threads = [threading.Thread(target=self.stream, args=(i, tokens, times[i])) for i in range(clients)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        first, last = max(t[0] for t in times), min(t[-1] for t in times)
        return sum(sum(first < x <= last for x in t) for t in times) / (last - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--capstan", default="build/release/capstan")
    parser.add_argument("--tokens", type=int, default=80, help="per stream")
    parser.add_argument("--ways", default=",".join(WAYS))
    args = parser.parse_args()
    for way in args.ways.split(","):
        server = Server(args, way)
        try:
            speeds = [f"batch {n}: {server.tokens_per_second(n, args.tokens):.2f} tok/s" for n in (1, 8)]
            ranks = re.findall(r'group_rank_compute_seconds\{.*?rank="(\d+)".*\} (\S+)', server.get("/metrics"))
        finally:
            server.stop()
        computed = ", ".join(f"rank {r} computes {float(s) * 1e3:.2f} ms" for r, s in ranks)
        print(f"{way:6} {', '.join(speeds)}{'; of a step ' + computed if computed else ''}", flush=True)


if __name__ == "__main__":
    main()
