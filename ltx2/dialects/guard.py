"""Websockets as the server reads them: what strangers send costs little, and nothing of it is logged.

For ``ws=`` of :class:`uvicorn.Config`. It reaches into uvicorn 0.54, to which ``pyproject.toml`` keeps it.
"""

import asyncio
import logging
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

MOST_MESSAGE_BYTES: Final = 2**24
"""In one message over a websocket, which is held in memory as a whole."""
STRANGER_BYTES: Final = 2**16
"""The same before it is known whose websocket it is."""
MOST_FRAMES: Final = 2**14
"""In one message."""
MOST_PINGS: Final = 100
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
