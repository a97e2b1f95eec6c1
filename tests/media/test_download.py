"""Files that are fetched to disk: all of them, or the reason why not."""

import asyncio
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ltx2.errors import MediaTooLarge, StorageFull
from ltx2.media.fetch import download

CONTENT = bytes(range(256)) * 8000
"""Some parts of it, and more than Python keeps before it writes."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The ``host:port`` of a server that gives so many bytes of ``CONTENT`` as the path says."""

    class Giving(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = CONTENT[: int(self.path[1:])]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Giving)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch_to(target: Path, site: str, size: int, *, limit: int = len(CONTENT)) -> None:
    url, allow = f"http://{site}/{size}", frozenset({site})
    asyncio.run(download(url, target, field="video_url", limit=limit, allow=allow, seconds=30))


@pytest.mark.parametrize("size", [1, len(CONTENT)])
def test_a_file_is_written_as_it_is(tmp_path: Path, site: str, size: int) -> None:
    fetch_to(tmp_path / "clip", site, size)
    assert (tmp_path / "clip").read_bytes() == CONTENT[:size]


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(MediaTooLarge):
        fetch_to(tmp_path / "clip", site, 101, limit=100)


@pytest.mark.parametrize("size", [1, len(CONTENT)])
def test_a_full_disk_is_told_however_little_it_was(site: str, size: int) -> None:
    with pytest.raises(StorageFull):
        fetch_to(Path("/dev/full"), site, size)


def test_a_file_that_cannot_be_made_is_told_in_the_same_way(tmp_path: Path, site: str) -> None:
    with pytest.raises(StorageFull):
        fetch_to(tmp_path, site, 1)
