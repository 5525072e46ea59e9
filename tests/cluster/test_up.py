"""`capstan up` as its users see it: ports, signals, exit codes, what is left behind."""

import os
import pathlib
import pty
import select
import signal
import socket
import subprocess
import time

import httpx
import pytest

from cluster import (BINARY, MODEL, Cluster, Stream, answer, die_with_parent, free_port, shim)

KINDS = ["namespaces", "processes"]


@pytest.fixture(params=KINDS)
def one_node(request):
    """Flags for a single node, in a namespace or not."""
    if request.param == "namespaces":
        request.getfixturevalue("namespaces")
    return ["--namespaces" if request.param == "namespaces" else "--no-namespaces"]


def own_namespaces(info):
    return [n["namespace"] for n in info["nodes"] if "namespace" in n] + \
        ([info["bridge"]["namespace"]] if "bridge" in info else [])


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, patience=30):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def reachable(url):
    try:
        return httpx.get(url + "/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_serves_drains_and_leaves_nothing(one_node):
    with Cluster(nodes=1, up=one_node) as group:
        group.wait_ready()
        assert len(answer(group.url)) > 0
        info = group.info
        for name in own_namespaces(info):
            assert os.path.exists(f"/run/netns/{name}")
        stream = Stream(group.url, max_tokens=400)
        stream.wait_events(2)
        group.process.send_signal(signal.SIGINT)
        assert group.wait_end() == 0
        stream.join(30)
        assert stream.saw == "complete", stream.detail
        assert group.exit_codes() == {0: 0}
        for name in own_namespaces(info):
            assert not os.path.exists(f"/run/netns/{name}")
        if "bridge" in info:
            assert not os.path.exists(f"/sys/class/net/{info['bridge']['interface']}")


def test_second_signal_ends_at_once(one_node):
    with Cluster(nodes=1, up=one_node) as group:
        group.wait_ready()
        stream = Stream(group.url)
        stream.wait_events(2)
        group.process.send_signal(signal.SIGINT)
        group.wait_line("a second one ends them at once")
        group.process.send_signal(signal.SIGINT)
        assert group.wait_end() == 128 + signal.SIGINT
        stream.join(30)
        assert stream.saw == "cut", f"{stream.saw} {stream.detail}"
        assert gone(group.pid(0))


def test_a_killed_node_gives_its_exit_code_and_one_line(one_node):
    with Cluster(nodes=1, up=one_node) as group:
        group.wait_ready()
        stream = Stream(group.url)
        stream.wait_events(2)
        group.signal(0, signal.SIGKILL)
        assert group.wait_end() == 128 + signal.SIGKILL
        lines = [line for _, line in group.lines if line.startswith("capstan up: ")]
        assert len(lines) == 1 and "node 0" in lines[0] and "signal 9" in lines[0], lines
        stream.join(30)
        assert stream.saw == "cut", f"{stream.saw} {stream.detail}"


def test_port_refuses_until_the_group_is_ready(one_node, folder):
    gate = folder / "gate"
    gate.touch()
    with Cluster(nodes=1, up=[*one_node, "--node-env", f"0:LD_PRELOAD={shim(folder)}",
                              "--node-env", f"0:CAPSTAN_TEST_GATE={gate}"]) as group:
        wait_until(lambda: os.path.exists(f"{gate}.reached"))
        with pytest.raises(httpx.ConnectError):
            httpx.get(group.url + "/health")
        gate.unlink()
        group.wait_ready()
        assert httpx.get(group.url + "/health").status_code == 200


def test_port_in_use_is_an_error_before_anything_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Cluster(nodes=2, port=port) as group:
            assert group.wait_end() == 1
            assert str(port) in group.log() and "--port" in group.log()
            assert group.info is None


def test_a_node_that_can_not_start_ends_all(one_node):
    with Cluster(nodes=1, up=one_node, model="/nonexistent/model") as group:
        assert group.wait_end() == 1
        assert "/nonexistent/model" in group.log(0)


def test_killed_up_takes_its_nodes_along_and_the_next_one_cleans(namespaces):
    with Cluster(nodes=1, up=["--namespaces"]) as group:
        group.wait_ready()
        names = own_namespaces(group.info)
        pid = group.pid(0)
        group.process.kill()
        group.process.wait()
        wait_until(lambda: gone(pid))
        assert all(os.path.exists(f"/run/netns/{name}") for name in names)
    with Cluster(nodes=1, up=["--namespaces"]) as group:
        group.wait_started()
        for name in names:
            group.wait_line(f"removed {name}")


def test_groups_live_side_by_side(namespaces):
    with Cluster(nodes=1, up=["--namespaces"]) as one, Cluster(nodes=1, up=["--namespaces"]) as other:
        one.wait_ready()
        other.wait_ready()
        assert set(own_namespaces(one.info)).isdisjoint(own_namespaces(other.info))
        assert answer(one.url) == answer(other.url)


def test_api_is_reachable_at_the_bridge_address(namespaces):
    with Cluster(nodes=1, up=["--namespaces"]) as group:
        group.wait_ready()
        node = group.info["nodes"][0]
        assert answer(f"http://{node['address']}:{node['port']}") == answer(group.url)


def test_a_wire_carries_loses_and_cuts(namespaces):
    """The tests' own cable: what passes is intact, what is dropped does not come."""
    with Cluster(nodes=1, up=["--namespaces"]) as group:
        group.wait_ready()
        node = group.info["nodes"][0]
        url = f"http://{node['address']}:{node['port']}"
        wanted = answer(group.url, 400)
        wire = group.wire(0)
        try:
            assert answer(url, 400) == wanted
            wire.set("delay", 0.05)
            assert answer(url, 400) == wanted
            wire.set("delay", 0)
            for way in ("to", "from"):
                wire.set("drop", way)
                with pytest.raises((httpx.ConnectTimeout, httpx.ConnectError)):  # without and with a stale neighbour
                    httpx.get(url + "/health", timeout=1)
            wire.set("drop", "none")
            wait_until(lambda: reachable(url))
            wire.set("loss", 0.3)
            assert answer(url, 400) == wanted
        finally:
            wire.close()


def test_without_root_there_are_plain_processes():
    if os.geteuid() != 0:
        pytest.skip("is run as root to become somebody else")

    def nobody():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    port = free_port()
    argv = [BINARY, "up", "--nodes", "2", "--model-path", "/nonexistent/model", "--port", str(port)]
    if subprocess.run([BINARY, "version"], preexec_fn=nobody, capture_output=True).returncode != 0:
        pytest.skip("the program is out of another user's reach")
    run = subprocess.run(argv, preexec_fn=nobody, capture_output=True, text=True, timeout=60)
    assert "plain processes instead: network namespaces need root" in run.stdout
    assert run.returncode == 1
    run = subprocess.run([*argv, "--namespaces"], preexec_fn=nobody, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "need root" in run.stderr and run.stdout == ""


def test_a_terminal_gets_a_table_beneath_the_lines():
    master, slave = pty.openpty()
    argv = [BINARY, "up", "--nodes", "1", "--model-path", str(MODEL), "--threads", "1", "--port", str(free_port())]
    process = subprocess.Popen(argv, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"},
                               preexec_fn=die_with_parent)
    os.close(slave)
    seen = b""
    deadline = time.monotonic() + 60
    try:
        while not (b"API at" in seen and b"NODE  RANKS  HOST" in seen and b"\x1b[J" in seen and b"MiB" in seen):
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen += os.read(master, 65536)
                except OSError:  # the other side is closed
                    process.wait(timeout=30)
        assert process.returncode == 0
        while select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
        assert b"ended 0" in seen.split(b"\x1b[J")[-1], seen  # the table that stays
    finally:
        process.kill()
        process.wait()
        os.close(master)
