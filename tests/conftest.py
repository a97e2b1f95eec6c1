"""What several tests share: where the data is, and the tiny models, built once."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from processes import ROOT, Server, running_server, wait_until_warm


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real media files."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of the official code's numbers: ``LTX2_GOLDENS``, or the project's copy."""
    return Path(os.environ.get("LTX2_GOLDENS") or Path(__file__).parent / "goldens")


NO_CHECKPOINT = "no data"


@pytest.fixture(scope="session")
def checkpoints() -> Callable[[str], Path]:
    """Finds a file of the test checkpoints by name: in ``LTX2_CHECKPOINT_GOLDENS``, or in the project's copy.

    The copy lacks the largest files. A test that asks for one that is nowhere is skipped.
    """
    folders = [Path(__file__).parent / "goldens" / "checkpoints"]
    if named := os.environ.get("LTX2_CHECKPOINT_GOLDENS"):
        folders.insert(0, Path(named).resolve())

    def find(name: str) -> Path:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"{NO_CHECKPOINT}: {name} is not here")

    return find


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of checkpoints did not run, so that nobody takes them for passed."""
    reasons = [report.longrepr[2] for report in terminalreporter.getreports("skipped") if report.longrepr]
    if count := sum(NO_CHECKPOINT in reason for reason in reasons):
        terminalreporter.line(f"{count} checkpoint tests had no data: set LTX2_CHECKPOINT_GOLDENS", yellow=True)


@pytest.fixture(scope="session")
def client_python() -> Callable[[str], Path]:
    """Finds the Python of the environment that has a client library and nothing else: ``make clients`` makes them."""

    def find(name: str) -> Path:
        python = ROOT / ".clients" / name / "bin" / "python"
        assert (python.parents[1] / ".complete").is_file(), f"there is no {name} here: make clients"
        return python

    return find


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """The URL of a server with the buckets ours and theirs."""
    import httpx
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name in ("ours", "theirs"):
        assert httpx.put(f"{url}/{name}").status_code == 200
    yield url
    server.stop()


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], object]:
    """Builds an embedded model by name, once a session."""
    import torch

    from ltx2.model.tiny import build_tiny

    return cache(lambda name: build_tiny(name, torch.device("cpu"), torch.float32))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the tiny model for all tests that do not need their own."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, {"LTX2_LORAS_DIR": str(folder / "loras")}) as running:
        wait_until_warm(running)
        yield running


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that makes test cards, for all tests that do not need a model of their own."""
    with running_server(tmp_path_factory.mktemp("fake"), engine="fake") as running:
        wait_until_warm(running)
        yield running
