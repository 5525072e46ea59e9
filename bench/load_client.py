#!/usr/bin/env python3
"""A streaming load client for OpenAI-compatible servers, standard library only.

    python3 bench/load_client.py --port 30000 decode --clients 8

It sends POST /v1/completions with token-id prompts and notes when every piece of text arrives. The
client shares the machine with the server it measures, so it does little per event: one time stamp,
and JSON only where a field is needed.

What is measured, per request:
    TTFT  from sending the request to the first token
    ITL   from one event to the next (an event is one token, unless the server joins some: a token that
          ends inside a UTF-8 character is held back until the character is whole)
and, over all of them, output tokens per second. Prompts are random ids, the same for every server and
run with the same seed, and never repeated unless a scenario shares prefixes on purpose, so that no
prefix cache answers a question about speed.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field

# Ids that are ordinary text in every vocabulary the benchmarks use.
TOKEN_RANGE = (1000, 40000)


@dataclass
class Result:
    """One request: times in seconds of time.perf_counter()."""

    start: float = 0.0
    events: list = field(default_factory=list)  # arrival of every event that carries a token
    end: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    timings: dict = field(default_factory=dict)  # llama.cpp's own figures
    error: str = ""

    @property
    def ttft(self):
        return self.events[0] - self.start

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.events, self.events[1:])]


def percentile(values, p):
    """Linear interpolation between closest ranks; 0 for no values."""
    if not values:
        return 0.0
    values = sorted(values)
    position = (len(values) - 1) * p / 100
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


class Client:
    def __init__(self, host, port, model="default"):
        self.host, self.port, self.model = host, port, model

    async def completion(self, prompt, max_tokens, **extra):
        """One streamed request of exactly `max_tokens` tokens, greedy."""
        body = json.dumps({"model": self.model, "prompt": prompt, "max_tokens": max_tokens,
                           "temperature": 0, "ignore_eos": True, "stream": True,
                           "stream_options": {"include_usage": True}, **extra}).encode()
        head = (f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n").encode()
        result = Result()
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        try:
            result.start = time.perf_counter()
            writer.write(head + body)
            await writer.drain()
            status = await reader.readline()
            if b" 200 " not in status:
                rest = await reader.read(2000)
                result.error = f"{status.decode().strip()}: {rest.decode(errors='replace')[-500:]}"
                return result
            while (await reader.readline()) not in (b"\r\n", b""):
                pass
            # Chunk lengths and blank lines fall through: only lines that start with "data: " count.
            while line := await reader.readline():
                if not line.startswith(b"data: "):
                    continue
                now = time.perf_counter()
                if line.startswith(b"data: [DONE]"):
                    break
                self._event(result, now, line)
            result.end = time.perf_counter()
            if not result.output_tokens:
                result.error = "the stream ended without a usage field"
        except (OSError, asyncio.IncompleteReadError, ValueError) as e:
            result.error = f"{type(e).__name__}: {e}"
        finally:
            writer.close()
        return result

    def _event(self, result, now, line):
        if b'"error"' in line:
            result.error = line.decode(errors="replace").strip()
            return
        token = b'"text":"' in line and b'"text":""' not in line
        if token:
            result.events.append(now)
        if b'"usage":{' in line or b'"usage": {' in line or b'"timings"' in line:
            data = json.loads(line[6:])
            usage = data.get("usage")
            if usage:
                result.prompt_tokens = usage.get("prompt_tokens", 0)
                result.output_tokens = usage.get("completion_tokens", 0)
                details = usage.get("prompt_tokens_details") or {}
                result.cached_tokens = details.get("cached_tokens") or 0
            result.timings = data.get("timings") or result.timings

    async def get(self, path, timeout=2.0):
        """(status, body) of a GET; raises OSError when nobody listens."""
        reader, writer = await asyncio.wait_for(asyncio.open_connection(self.host, self.port), timeout)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n".encode())
            data = await asyncio.wait_for(reader.read(), timeout)
        finally:
            writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        fields = head.split(b" ", 2)
        return (int(fields[1]) if len(fields) > 1 else 0), body


def prompt(rng, length):
    return [rng.randrange(*TOKEN_RANGE) for _ in range(length)]


def check(results):
    for r in results:
        if r.error:
            raise RuntimeError(r.error)
        if not r.events:
            raise RuntimeError("a request ended without a token")
    return results


def latency(results):
    gaps = [g for r in results for g in r.gaps]
    ttft = [r.ttft for r in results]
    return {"ttft_p50_ms": 1e3 * percentile(ttft, 50), "ttft_p99_ms": 1e3 * percentile(ttft, 99),
            "itl_p50_ms": 1e3 * percentile(gaps, 50), "itl_p99_ms": 1e3 * percentile(gaps, 99),
            "itl_max_ms": 1e3 * max(gaps, default=0.0)}


def server_timings(results):
    """Medians of what llama.cpp says of itself; empty for servers without such a field."""
    timings = [r.timings for r in results if r.timings]
    if not timings:
        return {}
    return {"server_" + key: statistics.median(t[key] for t in timings)
            for key in ("prompt_per_second", "predicted_per_second") if all(key in t for t in timings)}


# --- scenarios: each returns a flat dict of figures -------------------------------------------


async def decode(client, clients=1, prompt_len=16, output_len=64, seed=1):
    """`clients` requests at once. Tokens per second while all of them decode."""
    rng = random.Random(seed)
    results = check(await asyncio.gather(*[client.completion(prompt(rng, prompt_len), output_len)
                                           for _ in range(clients)]))
    begin = max(r.events[0] for r in results)
    finish = min(r.events[-1] for r in results)
    if finish <= begin:  # the first was done before the last began: no common window to speak of
        begin, finish = min(r.events[0] for r in results), max(r.events[-1] for r in results)
    inside = sum(sum(begin < t <= finish for t in r.events) * r.output_tokens / len(r.events) for r in results)
    return {"decode_tok_s": inside / (finish - begin), **latency(results), **server_timings(results)}


async def prefill(client, prompt_len=512, repeats=3, seed=2):
    """One prompt after the other, one token each. Prompt tokens over the median TTFT."""
    rng = random.Random(seed)
    results = []
    for _ in range(repeats):
        results.append(await client.completion(prompt(rng, prompt_len), 1))
    check(results)
    ttft = statistics.median(r.ttft for r in results)
    return {"prefill_tok_s": prompt_len / ttft, "ttft_p50_ms": 1e3 * ttft, **server_timings(results)}


async def shared_prefix(client, clients=32, prompt_len=512, shared=384, outputs=(64, 128), seed=3):
    """`clients` requests at once whose prompts begin alike, as with one system prompt for all."""
    rng = random.Random(seed)
    head = prompt(rng, shared)
    # One request alone first: a server that has been up for a minute has seen its system prompt.
    check([await client.completion(head + prompt(rng, 8), 1)])
    jobs = [(head + prompt(rng, prompt_len - shared), rng.randint(*outputs)) for _ in range(clients)]
    start = time.perf_counter()
    results = check(await asyncio.gather(*[client.completion(p, n) for p, n in jobs]))
    elapsed = max(r.end for r in results) - start
    prompts = sum(len(p) for p, _ in jobs)
    return {"output_tok_s": sum(r.output_tokens for r in results) / elapsed,
            "total_tok_s": (prompts + sum(r.output_tokens for r in results)) / elapsed,
            "seconds": elapsed, "cached_share": sum(r.cached_tokens for r in results) / prompts,
            **latency(results)}


async def interference(client, streams=4, prompt_len=4096, stream_tokens=400, seed=4):
    """ITL of running streams, before and while somebody else's long prompt is prefilled."""
    rng = random.Random(seed)
    # Streams end early when the long prompt is done: what follows says nothing more.
    tasks = [asyncio.create_task(client.completion(prompt(rng, 16), stream_tokens)) for _ in range(streams)]
    await asyncio.sleep(2.0)
    begin = time.perf_counter()
    long = check([await client.completion(prompt(rng, prompt_len), 1)])[0]
    finish = time.perf_counter()
    results = check(await asyncio.gather(*tasks))
    quiet, busy = [], []
    for r in results:
        for a, b in zip(r.events, r.events[1:]):
            if b < begin:
                quiet.append(b - a)
            elif a < finish:
                busy.append(b - a)
    return {"quiet_itl_p50_ms": 1e3 * percentile(quiet, 50), "busy_itl_p50_ms": 1e3 * percentile(busy, 50),
            "busy_itl_p99_ms": 1e3 * percentile(busy, 99), "busy_itl_max_ms": 1e3 * max(busy, default=0.0),
            "busy_tokens": len(busy), "long_ttft_ms": 1e3 * long.ttft}


async def wait_ready(client, seconds, alive=lambda: True):
    """Polls /health until it says 200. False when time is up or `alive` says the server has gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive():
        try:
            status, _ = await client.get("/health")
            if status == 200:
                return True
        except (OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(0.1)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--model", default="default")
    sub = parser.add_subparsers(dest="scenario", required=True)
    p = sub.add_parser("decode", help=decode.__doc__)
    p.add_argument("--clients", type=int, default=1)
    p.add_argument("--prompt-len", type=int, default=16)
    p.add_argument("--output-len", type=int, default=64)
    p = sub.add_parser("prefill", help=prefill.__doc__)
    p.add_argument("--prompt-len", type=int, default=512)
    p.add_argument("--repeats", type=int, default=3)
    p = sub.add_parser("shared-prefix", help=shared_prefix.__doc__)
    p.add_argument("--clients", type=int, default=32)
    p.add_argument("--prompt-len", type=int, default=512)
    p.add_argument("--shared", type=int, default=384)
    p = sub.add_parser("interference", help=interference.__doc__)
    p.add_argument("--streams", type=int, default=4)
    p.add_argument("--prompt-len", type=int, default=4096)
    p.add_argument("--stream-tokens", type=int, default=400)
    args = vars(parser.parse_args())
    client = Client(args.pop("host"), args.pop("port"), args.pop("model"))
    run = {"decode": decode, "prefill": prefill, "shared-prefix": shared_prefix,
           "interference": interference}[args.pop("scenario")]
    print(json.dumps(asyncio.run(run(client, **args)), indent=1))


if __name__ == "__main__":
    main()
