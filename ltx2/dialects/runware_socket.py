"""The Runware dialect over websockets: one session, many tasks, answered in their order."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ltx2.dialects.base import from_http, read_json
from ltx2.dialects.runware_answers import Refused, refusal
from ltx2.dialects.runware_tasks import Desk, Done
from ltx2.errors import Internal, LTX2Error
from ltx2.studio.job import Job
from ltx2.studio.studio import Studio

log = logging.getLogger(__name__)

MOST_STRANGERS: Final = 32
"""Sockets that wait for a key at the same time. One more, and the one that has waited longest goes."""
STRANGER_SECONDS: Final = 10.0
"""How long a socket may be without a key."""
PING_BYTES: Final = 500
MOST_HELD: Final = 64
"""Messages of one socket that are not answered."""
HELD_BYTES: Final = 2**25
MOST_WAITING: Final = 64
"""Tasks that one socket waits for."""
GOING_AWAY, POLICY, TOO_BIG, FAILED = 1001, 1008, 1009, 1011


class Sockets:
    """All websockets of a server."""

    def __init__(self, studio: Studio, desk: Desk, stranger_seconds: float = STRANGER_SECONDS) -> None:
        self._studio = studio
        self._desk = desk
        self._stranger_seconds = stranger_seconds
        self._strangers: dict[Session, None] = {}

    async def serve(self, socket: WebSocket) -> None:
        """One session, until it is over."""
        session = Session(socket, self._studio, self._desk, self._stranger_seconds)
        if not session.is_known:
            if len(self._strangers) >= MOST_STRANGERS:
                next(iter(self._strangers)).dismiss()
            self._strangers[session] = None
            session.recognised.add_done_callback(lambda _: self._strangers.pop(session, None))
        try:
            await session.run()
        finally:
            session.dismiss()


class Session:
    """One websocket. Belongs to the event loop.

    What was made for it is not kept for it: jobs go on when it ends, and are asked for by whoever comes back.
    """

    def __init__(self, socket: WebSocket, studio: Studio, desk: Desk, stranger_seconds: float) -> None:
        self._socket = socket
        self._studio = studio
        self._desk = desk
        self._stranger_seconds = stranger_seconds
        self._held: deque[bytes] = deque()
        self._changed = asyncio.Condition()
        self._sending = asyncio.Lock()
        self._waiting: set[asyncio.Task[None]] = set()
        self.recognised: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Done when it is known whose it is, or when nobody waits for that any more."""

    @property
    def is_known(self) -> bool:
        """Whether it is known whose it is."""
        return self._socket.scope["state"]["owner"] is not None

    def dismiss(self) -> None:
        """Wait no longer for a key."""
        if not self.recognised.done():
            self.recognised.set_result(False)

    async def run(self) -> None:
        """Answer until the client leaves, or has to."""
        began = time.monotonic()
        await self._socket.accept()
        ends = {asyncio.create_task(work()) for work in (self._read, self._answer, self._end)}
        code: int | None = FAILED
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            code = done.pop().result()
        except WebSocketDisconnect:
            code = None
        finally:
            for task in (*ends, *self._waiting):
                task.cancel()
            await asyncio.gather(*ends, *self._waiting, return_exceptions=True)
            await self._close(code)
            state = self._socket.scope["state"]
            what = (state["request_id"], (state["owner"] or "-")[:8], code, time.monotonic() - began)
            log.info("socket=%s owner=%s code=%s seconds=%.3f", *what)

    async def _close(self, code: int | None) -> None:
        states = (self._socket.client_state, self._socket.application_state)
        if code is not None and states == (WebSocketState.CONNECTED, WebSocketState.CONNECTED):
            try:
                await self._socket.close(code)
            except WebSocketDisconnect:
                log.debug("the client was faster")

    async def _end(self) -> int:
        """Return when the session has to end, with the code of it."""
        if not self.is_known:
            await asyncio.wait({self.recognised}, timeout=self._stranger_seconds)
            if not self.is_known:
                return POLICY
        await self._studio.draining.wait()
        return GOING_AWAY

    async def _read(self) -> int | None:
        """Take in messages. Pings are answered at once, whatever is in hand."""
        while True:
            async with self._changed:
                await self._changed.wait_for(self._has_room)
            await asyncio.sleep(0)  # where many messages came at once, it is the others' turn
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            text = message.get("text")
            data: bytes = message["bytes"] if text is None else text.encode(errors="surrogatepass")
            if len(data) < PING_BYTES and _is_ping(data):
                await self._send({"data": [{"taskType": "ping", "pong": True}]})
                continue
            async with self._changed:
                self._held.append(data)
                self._changed.notify_all()

    def _has_room(self) -> bool:
        if not self.is_known:
            return not self._held  # what comes behind a key is not a stranger's
        return len(self._held) < MOST_HELD and sum(map(len, self._held)) < HELD_BYTES

    async def _answer(self) -> int | None:
        """Answer messages in their order."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._held)
            await self._answer_one(self._held[0])
            async with self._changed:
                self._held.popleft()
                self._changed.notify_all()

    async def _answer_one(self, data: bytes) -> None:
        try:
            done = await self._desk.work(read_json(data), self._socket)
        except HTTPException as error:
            done = Done(errors=[refusal(from_http(error))])
        except LTX2Error as error:
            done = Done(errors=[refusal(error)])
        except Exception:
            log.exception("a message could not be answered")
            done = Done(errors=[refusal(Internal("the server failed; its log says why"))])
        if self.is_known and not self.recognised.done():
            self.recognised.set_result(True)
        for jobs, task_uuid in done.waiting:
            self._wait(jobs, task_uuid, done)
        if done.data or done.errors:
            await self._send(done.body)

    def _wait(self, jobs: list[Job], task_uuid: str, done: Done) -> None:
        """Send the clips of a task when all are there.

        At once, since one of the client libraries tells an error of a task that it has given up to all others.
        """
        if len(self._waiting) >= MOST_WAITING:
            hint = "it is made all the same: ask for it with getResponse"
            busy = Refused("rateLimitExceeded", f"this connection waits for {MOST_WAITING} tasks already", hint=hint)
            done.refuse(refusal(busy, {"taskType": "videoInference", "taskUUID": task_uuid}))
            return

        async def wait() -> None:
            late = Done()
            await self._desk.wait(jobs, task_uuid, self._socket, late)
            with suppress(WebSocketDisconnect):  # who reads will notice too
                await self._send(late.body)

        task = asyncio.create_task(wait())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _send(self, content: Mapping[str, Any]) -> None:
        async with self._sending:
            try:
                await self._socket.send_text(json.dumps(content, allow_nan=False, separators=(",", ":")))
            except RuntimeError:  # so it is called when the server has closed it, for a message that is too large
                raise WebSocketDisconnect(TOO_BIG) from None


def _is_ping(data: bytes) -> bool:
    try:
        tasks = read_json(data)
    except HTTPException:
        return False
    return isinstance(tasks, list) and len(tasks) == 1 and isinstance(tasks[0], dict) and tasks[0].get("ping") is True
