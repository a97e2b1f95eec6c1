"""Who is calling, what they want around the generation, and whether they are still there."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from ltx2.errors import ForbiddenOrigin, InvalidRequest, LTX2Error, NotReady, Unauthorized
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

    Where no keys are wanted, web pages of other places are kept out: a browser sends what any page tells it to, also to
    a server that only it can reach.

    Args:
        app: what comes behind.
        keys: that are known.
        render: tells that a key is wanted.
        checks_keys: of the paths whose routes see to their keys themselves.
        public_url: ``LTX2_PUBLIC_URL``, whose pages are this server's own.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        render: Callable[[LTX2Error, Request], Response],
        checks_keys: Callable[[str], bool],
        public_url: str | None = None,
    ) -> None:
        self.app = app
        self._keys = keys
        self._render = render
        self._checks_keys = checks_keys
        self._public_host = _host(public_url or "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._recognise(scope, Headers(scope=scope))
            except LTX2Error as error:
                if scope["type"] == "http":
                    await self._render(error, Request(scope))(scope, receive, send)
                else:  # before it was accepted: the server answers 403
                    await send({"type": "websocket.close", "code": 1008})
                return
        await self.app(scope, receive, send)

    def _recognise(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        state = scope.setdefault("state", {})
        state["owner"] = None
        try:
            state["owner"] = self._keys.owner(key_of(headers))
        except Unauthorized:
            if path not in OPEN_PATHS and not self._checks_keys(path):
                raise
        if self._keys.wanted or scope.get("method") in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        own = {headers.get("host"), self._public_host} - {None}
        if origin is not None and _host(origin) not in own:
            raise ForbiddenOrigin(
                "a web page of another place may not call a server that wants no API keys",
                hint="set LTX2_API_KEYS and send one; or LTX2_PUBLIC_URL, where a proxy stands before this server",
            )


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).netloc or None
    except ValueError:
        return None


def key_of(headers: Headers) -> str | None:
    """The API key in the headers of a request. RunPod's examples send it as ``Authorization`` without a scheme."""
    sent = headers.get("authorization", "")
    scheme, _, token = sent.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key", None if token else sent or None)


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

    Raises:
        HTTPException: a body came behind the request, and is larger than allowed.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        watch.result()  # raises what is wrong with a body that nobody was to read
        return None
    finally:
        watch.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, LTX2Error):
            await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
