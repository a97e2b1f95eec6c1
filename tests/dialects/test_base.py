"""Callers who leave, bodies that are too large, and errors of the framework, without a server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ltx2.dialects.base import STATUS, BodyLimit, from_http, unless_gone
from ltx2.errors import InvalidRequest, LTX2Error


class Caller:
    """Someone connected to the server."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.request = Request({"type": "http", "headers": []}, self.receive)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_work_is_answered_while_the_caller_stays() -> None:
    async def run() -> None:
        async def work() -> str:
            await asyncio.sleep(0.01)
            return "done"

        assert await unless_gone(Caller().request, work()) == "done"

    asyncio.run(run())


def test_work_has_ended_when_a_caller_who_left_is_noticed() -> None:
    async def run() -> None:
        caller, ended = Caller(), []

        async def work() -> str:
            caller.gone.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)  # cleaning up takes a while
                ended.append(True)
            return "never"

        assert await unless_gone(caller.request, work()) is None
        assert ended == [True]

    asyncio.run(run())


def test_errors_of_the_work_come_through() -> None:
    async def run() -> None:
        async def work() -> str:
            raise InvalidRequest("wrong", field="prompt")

        with pytest.raises(InvalidRequest):
            await unless_gone(Caller().request, work())

    asyncio.run(run())


def test_a_cancelled_server_task_ends_the_work_too() -> None:
    async def run() -> None:
        ended = []

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(True)

        task = asyncio.create_task(unless_gone(Caller().request, work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]

    asyncio.run(run())


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
