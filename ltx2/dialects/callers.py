"""Who is calling, what they want around the generation, and whether they are still there."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from ltx2.errors import InvalidRequest, LTX2Error, NotReady, Unauthorized
from ltx2.studio.job import PRIORITIES, Job, Order
from ltx2.studio.keys import HINT, WANTED, Keys
from ltx2.studio.studio import Studio

T = TypeVar("T")

OPEN_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/ping", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
"""These want no API key."""
LONGEST_KEY = 255


class Authorize:
    """ASGI middleware: says whose request it is, or answers 401 in the dialect of the path.

    Args:
        app: what comes behind.
        keys: that are known.
        render: tells that a key is wanted.
        checks_keys: of the paths whose routes see to their keys themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        render: Callable[[LTX2Error, Request], Response],
        checks_keys: Callable[[str], bool],
    ) -> None:
        self.app = app
        self._keys = keys
        self._render = render
        self._checks_keys = checks_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = scope["path"]
            scope.setdefault("state", {})["owner"] = None
            try:
                scope["state"]["owner"] = self._keys.owner(key_of(Headers(scope=scope)))
            except Unauthorized as error:
                if path not in OPEN_PATHS and not self._checks_keys(path):
                    if scope["type"] == "http":
                        await self._render(error, Request(scope))(scope, receive, send)
                    else:  # before it was accepted: the server answers 403
                        await send({"type": "websocket.close", "code": 1008})
                    return
        await self.app(scope, receive, send)


def key_of(headers: Headers) -> str | None:
    """The API key in the headers of a request."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def owner_of(request: HTTPConnection) -> str:
    """Whose jobs and files this request may see.

    Raises:
        Unauthorized: it came without a key to where one may come without.
    """
    owner = request.scope["state"]["owner"]
    if owner is None:
        raise Unauthorized(WANTED, hint=HINT)
    return str(owner)


def order_of(request: HTTPConnection, dialect: str, **more: Any) -> Order:
    """What the headers say: the owner, ``Idempotency-Key`` and ``X-Priority``.

    Args:
        request: as it came in.
        dialect: its name.
        more: fields of :class:`ltx2.studio.job.Order` that the body says; they win.

    Raises:
        InvalidRequest: a header has a value that cannot be used.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= LONGEST_KEY:
        raise InvalidRequest(f"must have 1 to {LONGEST_KEY} characters", field="Idempotency-Key")
    named = request.headers.get("x-priority", "normal").lower()
    if named not in PRIORITIES:
        raise InvalidRequest("must be " + ", ".join(PRIORITIES), field="X-Priority")
    said = {"priority": PRIORITIES[named], "idempotency_key": key, "base_url": str(request.base_url)}
    return Order(owner_of(request), dialect, **said | more)


async def result_for(request: Request, studio: Studio, making: Coroutine[Any, Any, Job]) -> Job | None:
    """Submit and wait, for a caller who waits in one request. A caller who leaves cancels the job.

    Args:
        request: its body must have been read.
        studio: where the job runs.
        making: ``studio.submit(…)``.

    Returns:
        The job, which has succeeded; None when the caller has gone.

    Raises:
        LTX2Error: it was not accepted, failed, was cancelled, or was not over in time.
    """

    async def work() -> Job:
        return await studio.result(await making)

    try:
        return await unless_gone(request, work())
    except asyncio.CancelledError:
        # the server cancels what is not finished LTX2_SHUTDOWN_SECONDS after it was told to end
        raise NotReady("the server is being shut down", hint="send the request again") from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Await the work, but cancel it when the caller disconnects.

    Args:
        request: its body must have been read.
        work: what to do. It has ended, in whatever way, when this returns.

    Returns:
        What the work returned; None when the caller has gone.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        watch.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, LTX2Error):
            await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
