"""The HTTP server: ``python server.py --host 0.0.0.0 --port 8000``."""

import argparse
import asyncio
import logging
import os
import sys
from socket import socket as Socket  # noqa: N812
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from ltx2.dialects.app import create_app
from ltx2.errors import LTX2Error
from ltx2.settings import Settings, load_settings
from ltx2.studio.process import ENGINES, ProcessEngine
from ltx2.studio.studio import Studio

MOST_MESSAGE_BYTES = 2**24
"""In one message over a websocket, which is held in memory as a whole."""
STRANGER_BYTES = 2**16
"""The same before it is known whose websocket it is."""
MOST_FRAMES = 2**14
"""In one message."""
MOST_PINGS = 100
"""In one second."""


class GuardedSockets(WebSocketsSansIOProtocol):
    """Websockets of strangers, which cost little, and are not logged: there are keys in them.

    A message is given as its bytes, also where it was sent as text: it is read as JSON, which looks at them itself.
    """

    unread_seconds = 60.0
    """How long a client may leave unread what it was sent."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logger = self.conn.logger = logging.getLogger("ltx2.websockets")
        self.logger.setLevel(logging.WARNING)
        self.conn.debug = False
        self._most_bytes = self.conn.max_message_size
        self._patience: asyncio.TimerHandle | None = None
        self._second = 0
        self._pings = 0

    def data_received(self, data: bytes) -> None:
        state: dict[str, Any] = getattr(self, "scope", {}).get("state", {})
        is_known = state.get("owner") is not None
        self.conn.max_message_size = self._most_bytes if is_known else STRANGER_BYTES
        super().data_received(data)
        if self.conn.handshake_exc is not None:
            # Nobody would answer. Remove once uvicorn (0.54) does.
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def handle_text(self, event: Frame) -> None:
        self.handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        if len(self.frames) > MOST_FRAMES:
            self.transport.abort()

    def handle_ping(self) -> None:
        second = int(self.loop.time())
        self._pings = self._pings + 1 if second == self._second else 1
        self._second = second
        if self._pings > MOST_PINGS:
            self.transport.abort()
        elif self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # who reads no pongs gets none

    def pause_writing(self) -> None:
        super().pause_writing()
        self._patience = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forgive()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forgive()

    def _forgive(self) -> None:
        if self._patience is not None:
            self._patience.cancel()


class Server(uvicorn.Server):
    """Tells the studio at once when it is told to end, so that those who only watch leave."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[Socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._studio.drain)


def main() -> int:
    try:
        settings = load_settings()
        options = _options(settings)
        settings = settings.model_copy(update=vars(options))
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        config = uvicorn.Config(
            "",
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level.lower(),
            # the other parser loses the body of a request that would change to HTTP/2, as Java's client offers to
            http="h11",
            access_log=False,  # the application logs each request with its id
            ws=GuardedSockets,
            ws_max_size=min(settings.max_body_bytes, MOST_MESSAGE_BYTES),
            ws_ping_timeout=None,  # while a message waits nothing is read, not even that a client is there
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        # what is in the data folder is nobody else's business
        os.umask(0o077)
        for noisy in ("python_multipart", "PIL"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # first the port, then the model: a second server must not push the first one out of the GPU
        listening = config.bind_socket()
        studio = Studio(settings, ProcessEngine(settings, ENGINES[settings.engine]))
    except LTX2Error as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    config.app = create_app(studio)
    # threads that read and write for jobs must not make /health wait: by default each may keep Python for 5 ms
    sys.setswitchinterval(0.0005)
    Server(config, studio).run(sockets=[listening])
    return 0


def _options(settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=settings.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=settings.port, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=settings.engine,
        help="fake makes test cards in milliseconds, for those who write clients (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
