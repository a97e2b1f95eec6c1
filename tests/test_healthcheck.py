from pathlib import Path

import pytest

from ltx2.healthcheck import is_healthy, main, server_port
from ltx2.settings import Settings
from processes import Server, free_port


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("python server.py", 8000),
        ("python /app/server.py --host 0.0.0.0 --port 9000", 9000),
        ("python server.py --port=9001", 9001),
        ("sh -c exec python server.py --port 9002", 9002),
        ("python -u handler.py", None),
        ("sleep 1", None),
    ],
)
def test_the_port_is_the_servers_if_there_is_one(command: str, port: int | None) -> None:
    assert server_port(command.split(), Settings()) == port


def test_a_running_server_is_healthy_and_an_empty_port_is_not(server: Server, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    assert is_healthy(port)
    assert not is_healthy(free_port())
    command = tmp_path / "cmdline"
    for line, code in ((f"server.py --port {port}", 0), (f"server.py --port {free_port()}", 1), ("handler.py", 0)):
        command.write_text("\0".join(["python", *line.split()]) + "\0")
        assert main(command) == code
