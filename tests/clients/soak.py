"""Soak: streams with random disconnects against a running server; nothing may be left behind.

    soak.py URL [--streams 1000] [--rounds 3] [--pid PID]

Every round opens the streams at once; each client reads a random share and then leaves by FIN, by RST, or stays to the
end. After each round running and waiting requests and used KV tokens must return to zero, and with --pid the server's
open files to their number at the start. Its resident memory is printed and may grow by 64 MB at most after round one.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import struct
import sys
import time
import urllib.parse
import urllib.request


def load(url):
    with urllib.request.urlopen(url + "/v1/loads", timeout=30) as response:
        return json.load(response)["loads"][0]


def files_and_memory(pid):
    with open(f"/proc/{pid}/status") as status:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    return len(os.listdir(f"/proc/{pid}/fd")), rss


async def one(host, port, rng):
    tokens = rng.randint(1, 60)
    stream = rng.random() < 0.7
    body = json.dumps({"model": "m", "prompt": "Soak " + str(rng.random()), "max_tokens": tokens, "ignore_eos": True,
                       "n": rng.choice([1, 1, 1, 2]), "stream": stream}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body) + body)
    fate = rng.choice(["stay", "stay", "fin", "rst", "at once"])
    data = b""
    if fate == "stay":
        data = await reader.read()
        writer.close()
        ok = data.startswith(b"HTTP/1.1 200") and (not stream or data.rstrip().endswith(b"0") and b"data: [DONE]" in data)
        return "complete" if ok else "FAILED " + data[:200].decode(errors="replace")
    if fate != "at once":
        await reader.read(rng.randint(1, 2000))
    if fate == "rst":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if fate == "rst" else writer.close()
    return "left"


async def a_round(host, port, streams, rng):
    return await asyncio.gather(*(one(host, port, rng) for _ in range(streams)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pid", type=int)
    options = parser.parse_args()
    address = urllib.parse.urlparse(options.url)
    rng = random.Random(1)
    before = files_and_memory(options.pid) if options.pid else None
    settled = None
    for number in range(1, options.rounds + 1):
        begin = time.monotonic()
        results = asyncio.run(a_round(address.hostname, address.port, options.streams, rng))
        failed = [r for r in results if r.startswith("FAILED")]
        deadline = time.monotonic() + 30
        while True:
            now = load(options.url)
            left = now["num_running_reqs"], now["num_waiting_reqs"], now["num_used_tokens"]
            if left == (0, 0, 0) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        line = (f"round {number}: {results.count('complete')} complete, {results.count('left')} left, {len(failed)} failed, "
                f"{time.monotonic() - begin:.1f} s; running, waiting, used tokens: {left}")
        if options.pid:
            time.sleep(0.5)
            files, rss = files_and_memory(options.pid)
            line += f"; files {files} (start {before[0]}), resident {rss:.0f} MB (start {before[1]:.0f})"
            settled = settled or rss
            if files > before[0] + 1 or rss > settled + 64:
                sys.exit(line + "\nfiles or memory were left behind")
        print(line, flush=True)
        if failed or left != (0, 0, 0):
            sys.exit("failed: " + "; ".join(failed[:3]))


if __name__ == "__main__":
    main()
