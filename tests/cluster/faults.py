"""The table of faults: what is done to which node in which phase, who is to blame, what may come of it."""

import dataclasses
import os
import signal
import struct
import time
from typing import Callable, Optional

from cluster import MemoryLimit, SlowCpu, Stream

PHASES = ("loading", "idle", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    inject: Callable  # (Scene)
    victim: int = 1
    phases: tuple = PHASES
    quick: tuple = ()       # phases of the quick part
    ends: Optional[bool] = True  # the group must end; False: must go on; None: either, but in order
    silent: bool = False    # nothing but the heartbeat's limit tells the others
    split: bool = False     # a cut: each side may blame the other
    codes: tuple = ()       # exit codes of the victim; () any but 0
    heal: Optional[Callable] = None  # (Scene), after a while or when the others have ended
    hold: float = 2.0       # seconds until then, for those that go on
    report: str = ""        # what the log must say meanwhile
    last_words: str = ""    # what the victim's log must say if it ends
    prepare: Optional[Callable] = None  # (Scene), before the group starts
    setup: Optional[Callable] = None    # (Scene), once its processes exist
    heartbeat: float = 4.0
    namespaces: bool = True
    ucx: tuple = ()         # phases that are also gone through with UCX between the nodes
    quick_ucx: tuple = ()


def send(number):
    return lambda scene: scene.group.signal(scene.fault.victim, number)


def unless_gone(function):
    def call(scene):
        try:
            function(scene)
        except ProcessLookupError:
            pass
    return call


# Links.

def pull_cable(scene):
    scene.group.link(scene.fault.victim, "down")


def plug_cable(scene):
    scene.group.link(scene.fault.victim, "up")


def lay_wire(scene):
    scene.wire = scene.group.wire(scene.fault.victim)
    scene.at_end.append(scene.wire.close)


def wire(what, value):
    return lambda scene: scene.wire.set(what, value)


# Memory.

def fence_memory(scene):
    scene.memory = MemoryLimit()
    scene.at_end.append(scene.memory.close)
    scene.memory.add(scene.group.pid(scene.fault.victim))


def take_memory(scene):
    scene.memory.tighten(256 << 10)
    if scene.phase == "loading":
        scene.open_gate()
    elif scene.phase == "decode":  # a token a step needs next to nothing: somebody else comes with a long prompt
        scene.company = Stream(scene.group.url, 24000)


# Disk.

def own_checkpoint(scene):
    scene.own_model(scene.fault.victim)


def truncate(scene):
    """Under the mapping: the pages behind the end are gone, touching them is SIGBUS."""
    for file in scene.model.glob("*.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    if scene.phase == "loading":
        scene.open_gate()


# Time.

def own_clock(scene):
    scene.clock = scene.folder / "clock"
    scene.clock.write_bytes(struct.pack("q", 0))
    scene.shim(scene.fault.victim, f"CAPSTAN_TEST_CLOCK={scene.clock}")


def jump(seconds):
    def inject(scene):
        with open(scene.clock, "r+b") as f:  # in place: the node has it mapped
            f.write(struct.pack("q", seconds))
    return inject


def stop_for_a_while(scene):
    scene.group.signal(scene.fault.victim, signal.SIGSTOP)
    time.sleep(scene.fault.heartbeat * 0.6)
    scene.group.signal(scene.fault.victim, signal.SIGCONT)


def slow_cpu(scene):
    scene.slow = SlowCpu(scene.group.pid(scene.fault.victim))
    scene.at_end.append(scene.slow.close)


FAULTS = [
    Fault("sigkill-worker", send(signal.SIGKILL), codes=(137,), quick=("decode",), ucx=("idle", "prefill", "decode"),
          quick_ucx=("decode",)),
    Fault("sigkill-leader", send(signal.SIGKILL), victim=0, codes=(137,), quick=("prefill",),
          ucx=("prefill", "decode"), quick_ucx=("decode",)),
    Fault("sigsegv-worker", send(signal.SIGSEGV), phases=("decode",)),
    Fault("sigstop-worker", send(signal.SIGSTOP), silent=True, heal=unless_gone(send(signal.SIGCONT)),
          quick=("decode",), split=True, ucx=("decode",)),
    Fault("sigstop-leader", send(signal.SIGSTOP), victim=0, silent=True, split=True,
          heal=unless_gone(send(signal.SIGCONT))),
    Fault("link-down", pull_cable, silent=True, split=True, heal=plug_cable, quick=("idle",),
          ucx=("idle", "decode")),
    Fault("half-open-to", wire("drop", "to"), setup=lay_wire, silent=True, split=True, heal=wire("drop", "none")),
    Fault("half-open-from", wire("drop", "from"), setup=lay_wire, silent=True, split=True,
          heal=wire("drop", "none")),
    Fault("loss-30%", wire("loss", 0.3), setup=lay_wire, ends=None, split=True, heal=wire("loss", 0),
          heartbeat=15, hold=6),
    Fault("delay-200ms", wire("delay", 0.1), setup=lay_wire, ends=False, heal=wire("delay", 0),
          quick=("decode",)),  # 0.1 s each way
    Fault("out-of-memory", take_memory, setup=fence_memory, phases=("loading", "prefill", "decode")),
    Fault("truncated-file", truncate, prepare=own_checkpoint, ends=None,
          last_words="model.safetensors' can not be read at byte"),
    Fault("clock+1h-worker", jump(3600), prepare=own_clock, ends=False),
    Fault("clock-1h-leader", jump(-3600), victim=0, prepare=own_clock, ends=False),
    Fault("stopped-briefly", stop_for_a_while, ends=False, report="did not run for", hold=0.5,
          phases=("idle", "prefill", "decode")),
    Fault("cpu-10%", slow_cpu, ends=False, heal=lambda scene: scene.slow.close(), hold=3,
          phases=("idle", "prefill", "decode")),
]
