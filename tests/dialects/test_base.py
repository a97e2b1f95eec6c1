"""Bodies that are too large, and errors of the framework, without a server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ltx2.dialects.base import STATUS, BodyLimit, from_http
from ltx2.errors import LTX2Error


async def read_all(_scope: Scope, receive: Receive, _send: Send) -> None:
    while (await receive()).get("more_body"):
        pass


def limited(headers: list[tuple[bytes, bytes]], blocks: list[bytes]) -> Callable[[], Any]:
    """Read a body of these blocks through a limit of 100 bytes; gives how many blocks were read."""

    async def run() -> int:
        left = list(blocks)

        async def receive() -> Message:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(_message: Message) -> None:
            raise AssertionError("nothing is sent here")

        app = BodyLimit(read_all, limit=100)
        try:
            await app({"type": "http", "headers": headers}, receive, send)
        except HTTPException as error:
            return -(len(blocks) - len(left)) if error.status_code == 413 else error.status_code
        return len(blocks) - len(left)

    return lambda: asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "blocks", "read"),
    [
        ([], [b"x" * 100], 1),
        ([], [b"x" * 50] * 2, 2),
        ([], [b"x" * 50] * 9, -3),
        ([(b"content-length", b"100")], [b"x" * 100], 1),
        ([(b"content-length", b"101")], [b"x" * 101], 0),
        ([(b"content-length", b"9" * 5000)], [b"x"], 0),
    ],
)
def test_a_body_is_read_up_to_the_limit_and_no_further(headers: Any, blocks: list[bytes], read: int) -> None:
    assert limited(headers, blocks)() == read


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (413, "body_too_large"), (405, "invalid_request")])
def test_the_framework_s_errors_have_our_codes(status: int, code: str) -> None:
    assert from_http(HTTPException(status)).code == code


def every_error(error: type[LTX2Error] = LTX2Error) -> set[type[LTX2Error]]:
    return {error}.union(*(every_error(child) for child in error.__subclasses__()))


def test_every_error_has_a_status_and_every_status_an_error() -> None:
    assert {error.code for error in every_error()} == STATUS.keys()


def test_a_body_nobody_reads_does_not_end_the_answer() -> None:
    async def answer_first(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"all of it"})

    async def run() -> list[str]:
        sent: list[str] = []

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message["type"])

        await BodyLimit(answer_first, limit=100)(
            {"type": "http", "headers": [(b"content-length", b"999")]}, receive, send
        )
        return sent

    assert asyncio.run(run()) == ["http.response.start", "http.response.body"]
