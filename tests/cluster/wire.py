"""A cable that can be made long, lossy or one-way: carries Ethernet frames between two interfaces.

    wire.py NAMESPACE INTERFACE BRIDGE

takes INTERFACE (a node's end in the bridge's namespace) off the bridge and puts itself between, through a veth
pair INTERFACE.w, INTERFACE.b. Commands on stdin, one a line: `delay SECONDS` (each way), `loss SHARE` (of frames
to the node), `drop to|from|none`, all at once in force. Prints `ready`. Needs nothing of the kernel but veth and
packet sockets, hence works where netem does not exist.
"""

import ctypes
import heapq
import os
import random
import select
import socket
import subprocess
import sys
import time

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
LARGEST = 70000


def enter(namespace):
    with open(f"/run/netns/{namespace}") as f:
        if ctypes.CDLL(None, use_errno=True).setns(f.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def packet_socket(interface):
    """Frames with their virtio header, so that what the stack has not segmented or summed yet passes as it is."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    s.bind((interface, ETH_P_ALL))
    s.setblocking(False)
    return s


class Wire:
    def __init__(self, node, bridge):
        self.way = {node: bridge, bridge: node}
        self.node = node
        self.delay, self.loss, self.drop = 0.0, 0.0, "none"
        self.queue = []  # (due, number, socket, frame)
        self.number = 0
        self.random = random.Random(1)

    def command(self, line):
        what, value = line.split()
        if what == "delay":
            self.delay = float(value)
        elif what == "loss":
            self.loss = float(value)
        elif what == "drop" and value in ("to", "from", "none"):
            self.drop = value
        else:
            raise ValueError(line)

    def receive(self, source):
        for _ in range(64):
            try:
                frame = source.recv(LARGEST)
            except OSError:  # nothing more, or the interface is down for now
                return
            from_node = source is self.node
            if self.drop == ("from" if from_node else "to"):
                continue
            if not from_node and self.loss > 0 and self.random.random() < self.loss:
                continue
            self.number += 1
            heapq.heappush(self.queue, (time.monotonic() + self.delay, self.number, self.way[source], frame))

    def send_due(self):
        while self.queue and self.queue[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(self.queue)
            try:
                target.send(frame)
            except OSError:  # full or down: lost, as on a cable
                pass

    def patience(self):
        return max(0.0, self.queue[0][0] - time.monotonic()) if self.queue else None


def main(namespace, interface, bridge):
    enter(namespace)
    outer, inner = interface + ".b", interface + ".w"
    ip("link", "add", outer, "type", "veth", "peer", "name", inner)
    ip("link", "set", interface, "nomaster")
    ip("link", "set", interface, "promisc", "on")
    ip("link", "set", inner, "promisc", "on")
    ip("link", "set", outer, "master", bridge, "up")
    ip("link", "set", inner, "up")
    node, other = packet_socket(interface), packet_socket(inner)
    wire = Wire(node, other)
    print("ready", flush=True)
    pending = b""
    while True:
        readable, _, _ = select.select([node, other, sys.stdin.fileno()], [], [], wire.patience())
        for source in readable:
            if source in (node, other):
                wire.receive(source)
                continue
            data = os.read(sys.stdin.fileno(), 4096)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                wire.command(line.decode())
                print("ok", flush=True)
        wire.send_due()


if __name__ == "__main__":
    main(*sys.argv[1:4])
