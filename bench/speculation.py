#!/usr/bin/env python3
"""What speculative decoding gains: the same requests with and without, alternating.

    cmake --build --preset release --target capstan
    python3 bench/speculation.py --model model.gguf

Two servers are started; one idles (it takes no CPU then) while the other is driven. For every number
of clients the two take turns `--repeat` times, the one first and then the other, and the ratio is the
median of the turns'. `--control` adds a third server, plain like the first: its ratio says what chance
does. Two kinds of text:

    edit    a program is to be written out again with a small change: most of the answer is a quotation
    story   free prose at temperature 0.8: hardly anything repeats, so there is nothing to gain and the
            question is what is lost

A figure below 1.00 would be a loss. Output of both servers must be the same; that is checked as well.
Latent attention (DeepSeek) rounds a prompt by how it was cut in chunks, which depends on who came first:
there two plain servers may differ too, as the control says, unless all get
--serve-args=--enable-deterministic-inference.
Standard library only.
"""

import argparse
import concurrent.futures
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

PROGRAM = '''class Account{n}:
    """An account of customer {n} with a history of its movements."""

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance = self.balance + amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("insufficient funds")
        self.balance = self.balance - amount
        self.history.append(("withdraw", amount))

    def transfer(self, other, amount):
        self.withdraw(amount)
        other.deposit(amount)
        self.history.append(("transfer", other.owner, amount))

    def report(self):
        for entry in self.history:
            print(entry)
        print("balance:", self.balance)
'''


def edit_request(n, tokens):
    program = PROGRAM.format(n=n)
    head = program[: program.index("    def __init__")]
    text = f"```python\n{program}```\n\nThe same class again, with a comment at its top:\n\n```python\n# bank.py\n{head}"
    return {"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}}


def story_request(n, tokens):
    return {"text": f"Chapter {n}. It was a cold morning in the harbour, and the old captain",
            "sampling_params": {"temperature": 0.8, "sampling_seed": n, "max_new_tokens": tokens, "ignore_eos": True}}


KINDS = {"edit": edit_request, "story": story_request}


class Server:
    def __init__(self, args, name, extra):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = open(f"{args.log}.{name}", "w", encoding="utf-8")
        command = [args.capstan, "serve", "--model-path", args.model, "--port", str(self.port),
                   "--threads", str(args.threads), "--max-running-requests", "32", "--enable-metrics"] + args.serve_args.split() + extra
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + args.start_timeout
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{name} did not start, see {self.log.name}")
                time.sleep(0.1)

    def generate(self, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/generate", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def together(self, bodies):
        """Output tokens per second, texts, tokens per step."""
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(self.generate, bodies))
        seconds = time.perf_counter() - begin
        meta = [a["meta_info"] for a in answers]
        tokens = sum(m["completion_tokens"] for m in meta)
        steps = sum(m.get("spec_verify_ct", m["completion_tokens"]) for m in meta)
        return tokens / seconds, [a["text"] for a in answers], tokens / max(steps, 1)

    def counter(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(f"sglang:{name}"):
                    return float(line.split()[-1])
        return 0.0

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--capstan", default=os.path.join(ROOT, "build", "release", "capstan"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clients", default="1,4,16", help="numbers of requests at once")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--tokens", type=int, default=160, help="output tokens of a request")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--control", action="store_true", help="a second plain server, to see the noise")
    parser.add_argument("--spec-args", default="--speculative-algorithm NGRAM")
    parser.add_argument("--serve-args", default="", help="flags for all servers")
    parser.add_argument("--start-timeout", type=float, default=120)
    parser.add_argument("--log", default="/tmp/capstan-speculation.log", help="server output goes to LOG.SIDE")
    args = parser.parse_args()

    servers = []
    differ = [0, 0, 0]  # rounds whose texts are not the plain server's, by server
    try:
        servers.append(Server(args, "plain", []))
        servers.append(Server(args, "drafted", args.spec_args.split()))
        if args.control:
            servers.append(Server(args, "control", []))
        print(f"{'text':6} {'clients':>7} {'plain tok/s':>12} {'drafted tok/s':>14} {'ratio':>6} {'quartiles':>11} "
              f"{'tokens/step':>12}" + (f" {'control':>8}" if args.control else ""))
        for kind in args.kinds.split(","):
            for clients in map(int, args.clients.split(",")):
                bodies = [KINDS[kind](n, args.tokens) for n in range(clients)]
                warm = [dict(b, sampling_params=dict(b["sampling_params"], max_new_tokens=1)) for b in bodies]
                runs = [[] for _ in servers]
                layer, verified, busy = 0.0, 0.0, 0.0
                for server in servers:
                    server.together(warm)  # the prompt is in the cache: decoding is what is compared
                layer -= servers[1].counter("spec_draft_seconds_total")
                verified -= servers[1].counter("spec_verified_drafts_total")
                for turn in range(args.repeat):
                    order = range(len(servers)) if turn % 2 == 0 else reversed(range(len(servers)))
                    for i in order:
                        runs[i].append(servers[i].together(bodies))
                    busy += clients * args.tokens / runs[1][-1][0]
                    for i, run in enumerate(runs):
                        differ[i] += run[-1][1] != runs[0][-1][1]
                plain, drafted = (statistics.median(r[0] for r in run) for run in runs[:2])
                ratios = [[r[0] / p[0] for r, p in zip(run, runs[0])] for run in runs]
                low, middle, high = statistics.quantiles(ratios[1], n=4) if args.repeat > 1 else ratios[1] * 3
                length = statistics.median(r[2] for r in runs[1])
                layer += servers[1].counter("spec_draft_seconds_total")
                verified += servers[1].counter("spec_verified_drafts_total")
                print(f"{kind:6} {clients:7} {plain:12.1f} {drafted:14.1f} {middle:6.2f} {low:5.2f}-{high:.2f} {length:12.2f}"
                      + (f" {statistics.median(ratios[2]):8.2f}" if args.control else "")
                      + f"  layer {layer / busy:.1%}, {verified / (clients * args.tokens * args.repeat):.3f} drafts a token",
                      flush=True)
    finally:
        for server in servers:
            server.stop()
    if args.control and any(differ):
        print(f"texts other than the plain server's: drafted {differ[1]} rounds, control {differ[2]}")
    if differ[1] > 0 and differ[2] == 0:
        sys.exit(f"{differ[1]} rounds differed in their texts")


if __name__ == "__main__":
    main()
