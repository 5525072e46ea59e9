"""Faults in every phase: how a group ends, what its log says, what clients see, and that it can start again."""

import pathlib
import time

import httpx
import pytest

from cluster import (UCX_ENVIRONMENT, UCX_FLAGS, Cluster, MemoryLimit, Stream, answer, free_port, private_model, shim,
                     ucx_possible)
from conftest import RESULTS
from faults import FAULTS

LIMIT = 10  # seconds from a fault to the end of all, beside the heartbeat's
START = 60
LONG_PROMPT = 24000  # tokens: seconds of prefill
SHORT_STREAM = 300   # tokens, for those that must finish
# What clients may see of a group that ends: with a leader that can still speak, an error; else a broken
# connection. Never a hang, never an end that looks like success.
SPOKEN = {"error event", "status 500", "status 503", "cut"}


class Scene:
    """A group, the fault it is to meet, and what to put away afterwards."""

    def __init__(self, fault, phase, folder, request, ucx):
        self.serve = list(UCX_FLAGS) if ucx else []
        self.env = UCX_ENVIRONMENT if ucx else {}
        self.fault, self.phase, self.folder = fault, phase, pathlib.Path(folder)
        self.label = fault.name + (" (ucx)" if ucx else "")
        timeout = request.config.getoption("--heartbeat-timeout")
        self.heartbeat = float(timeout) if timeout else fault.heartbeat
        self.group = self.wire = self.model = None
        self.at_end, self.up = [], []
        self.gate = self.folder / "gate"
        self.preloaded = set()
        self.stream = None

    def shim(self, node, *variables):
        if node not in self.preloaded:
            self.preloaded.add(node)
            self.up += ["--node-env", f"{node}:LD_PRELOAD={shim(self.folder)}"]
        for variable in variables:
            self.up += ["--node-env", f"{node}:{variable}"]

    def own_model(self, node):
        self.model = private_model(self.folder)
        self.up += ["--node-flag", f"{node}:--model-path={self.model}"]

    def open_gate(self):
        self.gate.unlink(missing_ok=True)

    def start(self):
        if self.fault.prepare:
            self.fault.prepare(self)
        if self.phase == "loading":  # the victim's disk stops until told to go on
            self.gate.touch()
            self.shim(self.fault.victim, f"CAPSTAN_TEST_GATE={self.gate}")
        self.group = Cluster(nodes=2, tp=2, up=self.up, env=self.env,
                             serve=["--heartbeat-timeout", str(self.heartbeat), *self.serve])
        self.group.wait_started()
        if self.fault.setup:
            self.fault.setup(self)

    def reach_phase(self):
        if self.phase == "loading":
            self.group.wait_for(lambda: pathlib.Path(f"{self.gate}.reached").exists() or None, "a held disk", START)
            return
        self.group.wait_ready(START)
        since = time.monotonic()
        if self.phase == "prefill":
            self.stream = Stream(self.group.url, LONG_PROMPT, max_tokens=4 if self.fault.ends is not True else 100000)
            self.group.wait_line("Prefill batch.", node=0, since=since)
        elif self.phase == "decode":
            self.stream = Stream(self.group.url, max_tokens=SHORT_STREAM if self.fault.ends is not True else 100000)
            self.stream.wait_events(5)

    def close(self):
        self.open_gate()
        if self.fault.heal and self.wire is None:
            try:
                self.fault.heal(self)
            except Exception:  # the node or its link are gone, which is as good
                pass
        self.group.__exit__()
        for action in self.at_end:
            action()


@pytest.fixture(scope="session")
def reference():
    """What one process answers."""
    with Cluster(nodes=1, up=["--no-namespaces"]) as group:
        group.wait_ready()
        return answer(group.url)


def nodes_ended(group, nodes):
    return lambda: all(n in group.ended_at for n in nodes)


def check_verdicts(scene, witnesses):
    """One line per node, all with the same culprit; the sides of a cut may blame each other."""
    blamed = set()
    for node in witnesses:
        verdicts = scene.group.verdicts(node)
        assert verdicts, f"node {node} does not say why it ended\n" + scene.group.log()
        assert len({v[:4] for v in verdicts}) == 1, f"node {node} blames several\n{verdicts}"
        blamed.add(verdicts[0][:3])
    if not scene.fault.split:
        assert {b[1] for b in blamed} == {scene.fault.victim}, scene.group.log()
        assert len(blamed) == 1, blamed
    victim_side = [v for n in witnesses if n != scene.fault.victim for v in scene.group.verdicts(n)]
    assert all(v[1] == scene.fault.victim for v in victim_side) or scene.fault.split, scene.group.log()
    return (victim_side or scene.group.verdicts(scene.fault.victim))[0]


def check_end(scene, injected):
    group, fault = scene.group, scene.fault
    limit = LIMIT + (scene.heartbeat if fault.silent else 0)
    others = [n for n in range(2) if n != fault.victim]
    group.wait_for(nodes_ended(group, others), "end of the others", limit)
    seconds = max(group.ended_at[n] for n in others) - injected
    if fault.heal:  # who was stopped or cut off learns now that the others are gone
        fault.heal(scene)
    group.wait_for(nodes_ended(group, [fault.victim]), "end of the victim", limit)
    assert group.wait_end(30) != 0, group.log()
    codes = group.exit_codes()
    assert all(codes[n] != 0 for n in range(2)), codes
    if fault.codes:
        assert codes[fault.victim] in fault.codes, codes
    assert fault.last_words in group.log(fault.victim), group.log()
    killed = codes[fault.victim] > 128
    verdict = check_verdicts(scene, others if killed else [0, 1])
    saw = "refused"
    if scene.stream:
        scene.stream.join(30)
        saw = scene.stream.saw
        expected = {"cut"} if fault.victim == 0 and not fault.heal else SPOKEN  # the dead say nothing
        assert saw in expected, f"{saw}: {scene.stream.detail}\n{group.log()}"
    with pytest.raises(httpx.TransportError):
        httpx.get(group.url + "/health", timeout=2)
    RESULTS.append((scene.label, scene.phase, f"{seconds:.1f} s", saw,
                    f"rank {verdict[0]} (node {verdict[1]}) at step {verdict[3]}: {verdict[4]}"))


def check_life(scene, injected, reference):
    group, fault = scene.group, scene.fault
    time.sleep(fault.hold)
    if fault.heal:
        fault.heal(scene)
    scene.open_gate()
    group.wait_ready(START)
    saw = "complete"
    if scene.stream:
        scene.stream.join(90)
        saw = scene.stream.saw
        assert saw == "complete", f"{saw}: {scene.stream.detail}\n{group.log()}"
    assert answer(group.url) == reference
    assert not group.ended_at, group.log()
    if fault.report:
        assert fault.report in group.log(), group.log()
    RESULTS.append((scene.label, scene.phase, "goes on", saw, next(
        (line.split("] ")[-1] for _, line in group.lines if fault.report and fault.report in line), "")))


CASES = [pytest.param(fault, phase, False, id=f"{fault.name}-{phase}") for fault in FAULTS for phase in fault.phases]
CASES += [pytest.param(fault, phase, True, id=f"{fault.name}-{phase}-ucx") for fault in FAULTS for phase in fault.ucx]


@pytest.mark.parametrize("fault, phase, ucx", CASES)
def test_fault(fault, phase, ucx, request, tmp_path, namespaces, reference):
    chosen = request.config.getoption("--faults")
    if chosen and fault.name not in chosen.split(","):
        pytest.skip("not chosen")
    quick = fault.quick_ucx if ucx else fault.quick
    if not chosen and not request.config.getoption("--all-faults") and phase not in quick:
        pytest.skip("not in the quick part; --all-faults")
    if ucx and not ucx_possible():
        pytest.skip("built without UCX")
    if fault.name == "out-of-memory" and not MemoryLimit.possible():
        pytest.skip("needs a memory cgroup")
    scene = Scene(fault, phase, tmp_path, request, ucx)
    scene.start()
    try:
        scene.reach_phase()
        fault.inject(scene)
        injected = time.monotonic()
        ends = fault.ends
        if ends is None:  # within the time that an end may take, or not at all
            time.sleep(fault.hold)
            ends = bool(scene.group.ended_at)
        if ends:
            check_end(scene, injected)
        else:
            check_life(scene, injected, reference)
    finally:
        scene.close()
    if ends:  # the same port, at once
        with Cluster(nodes=2, tp=2, port=scene.group.port, serve=scene.serve, env=scene.env) as again:
            again.wait_ready(START)
            assert answer(again.url) == reference


def test_the_same_ports_serve_again_after_a_kill(reference):
    """Without namespaces, so that the ports really are the same ones."""
    port, rendezvous = free_port(), free_port()
    flags = [f for n in range(2) for f in ("--node-flag", f"{n}:--dist-init-addr=127.0.0.1:{rendezvous}")]
    for victim in (0, 1, None):
        with Cluster(nodes=2, tp=2, port=port, up=["--no-namespaces", *flags]) as group:
            group.wait_ready(START)
            assert answer(group.url) == reference
            if victim is not None:
                stream = Stream(group.url)
                stream.wait_events(3)
                group.signal(victim, 9)
                assert group.wait_end(30) == 137, group.log()
                stream.join(30)
                assert stream.saw in SPOKEN, f"{stream.saw} {stream.detail}"


def test_ranks_over_nodes_answer_as_one_process(namespaces, reference):
    with Cluster(nodes=2, tp=4) as group:
        group.wait_ready(START)
        assert answer(group.url) == reference


def test_ranks_over_ucx_answer_as_one_process(namespaces, reference):
    if not ucx_possible():
        pytest.skip("built without UCX")
    with Cluster(nodes=2, tp=4, serve=UCX_FLAGS, env=UCX_ENVIRONMENT) as group:
        group.wait_ready(START)
        assert "over shared memory + ucx" in group.log(0) and "over shared memory + ucx" in group.log(1), group.log()
        assert answer(group.url) == reference


@pytest.mark.parametrize("ucx", [False, True], ids=["tcp", "ucx"])
def test_drain_lets_streams_finish_on_all_nodes(namespaces, ucx):
    if ucx and not ucx_possible():
        pytest.skip("built without UCX")
    with Cluster(nodes=2, tp=2, serve=UCX_FLAGS if ucx else (), env=UCX_ENVIRONMENT if ucx else None) as group:
        group.wait_ready(START)
        stream = Stream(group.url, max_tokens=300)
        stream.wait_events(5)
        group.process.send_signal(15)
        group.wait_line("draining")
        assert group.wait_end(60) == 0, group.log()
        assert group.exit_codes() == {0: 0, 1: 0}
        assert stream.saw == "complete", f"{stream.saw} {stream.detail}"


def test_nodes_that_differ_are_refused_with_both_values(namespaces):
    with Cluster(nodes=2, tp=2, up=["--node-flag", "1:--context-length=100"]) as group:
        assert group.wait_end(START) != 0
        for node in range(2):
            assert "100" in group.log(node) and str(1 << 20) in group.log(node), group.log()


def test_a_damaged_checkpoint_is_named_by_its_node(namespaces, folder):
    model = private_model(folder)
    for file in model.glob("*.safetensors"):
        with open(file, "r+b") as f:
            f.truncate(file.stat().st_size // 2)
    with Cluster(nodes=2, tp=2, up=["--node-flag", f"1:--model-path={model}"]) as group:
        assert group.wait_end(START) == 1, group.log()
        line = next(line for line in group.log(1).splitlines() if "error" in line)
        assert "model.safetensors" in line, line


def test_a_stranger_is_kept_out(namespaces):
    with Cluster(nodes=2, tp=2, up=["--node-env", "1:CAPSTAN_GROUP_TOKEN=wrong", "--grace", "5"]) as group:
        line = group.wait_line("CAPSTAN_GROUP_TOKEN", node=1)
        assert "wrong" not in line.split("CAPSTAN_GROUP_TOKEN")[1], "a secret in the log"
        assert "API at" not in group.log()


def test_nodes_may_start_in_any_order(namespaces, reference):
    with Cluster(nodes=2, tp=2, up=["--node-delay", "0:3"]) as group:
        group.wait_ready(START)
        assert answer(group.url) == reference


def test_killed_while_others_are_awaited(namespaces):
    """A group that is not complete has nobody to end: the rest waits, and `up` ends it after its grace."""
    with Cluster(nodes=4, tp=4, up=["--node-delay", "3:3600", "--grace", "2"]) as group:
        group.wait_started(range(3))
        group.wait_line("3 of 4 nodes are here", node=0)
        group.signal(1, 9)
        group.wait_line("left before the group was complete", node=0)
        assert group.wait_end(30) == 137, group.log()
        assert group.exit_codes() == {0: 0, 1: 137, 2: 0}, group.log()
