"""Groups of nodes under test; see run.sh. Prints the table of faults at the end."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cluster  # noqa: E402

RESULTS = []  # (fault, phase, seconds to the end, what the client saw, verdict)


def pytest_addoption(parser):
    parser.addoption("--all-faults", action="store_true", help="the whole matrix, not its quick part")
    parser.addoption("--faults", default="", help="only these, comma separated, in all their phases")
    parser.addoption("--heartbeat-timeout", default="", help="seconds; default: each case's own")


def pytest_collection_modifyitems(items):
    for item in items:
        if not os.environ.get("CAPSTAN_BINARY"):
            item.add_marker(pytest.mark.skip(reason="needs CAPSTAN_BINARY; see tests/cluster/run.sh"))


@pytest.fixture(scope="session")
def namespaces():
    if not cluster.namespaces_possible():
        pytest.skip("needs root and network namespaces")


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def pytest_terminal_summary(terminalreporter):
    if not RESULTS:
        return
    rows = [("fault", "phase", "end", "the client saw", "the log says"), *RESULTS]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    terminalreporter.section("faults")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        terminalreporter.write_line("  ".join([*cells, row[4][:150]]))
