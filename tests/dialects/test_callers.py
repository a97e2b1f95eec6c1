"""Callers who leave, and what their headers say, without a server."""

import asyncio

import pytest
from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import Message

from ltx2.dialects.callers import key_of, order_of, owner_of, unless_gone
from ltx2.errors import InvalidRequest, Unauthorized
from ltx2.studio.job import Order


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


def test_who_sends_more_than_is_read_is_told_so() -> None:
    async def run() -> None:
        async def receive() -> Message:
            raise HTTPException(413, "the body is too large")

        with pytest.raises(HTTPException, match="too large"):
            await unless_gone(Request({"type": "http", "headers": []}, receive), asyncio.sleep(60))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"Authorization": "Bearer a"}, "a"),
        ({"Authorization": "bearer  a "}, "a"),
        ({"Authorization": "a"}, "a"),
        ({"X-API-Key": "a"}, "a"),
        ({"X-API-Key": "a", "Authorization": "Bearer b"}, "b"),
        ({"X-API-Key": "a", "Authorization": "b"}, "a"),
        ({"X-API-Key": "a", "Authorization": "Basic b"}, "a"),
        ({"Authorization": "Basic a"}, None),
        ({"Authorization": ""}, None),
    ],
)
def test_a_key_comes_as_a_bearer_alone_or_in_a_header_of_its_own(headers: dict[str, str], key: str | None) -> None:
    assert key_of(Headers(headers)) == key


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


def with_headers(owner: str | None = "me", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in (headers | {"host": "here"}).items()]
    return Request({"type": "http", "scheme": "http", "path": "/x", "headers": raw, "state": {"owner": owner}})


def test_an_order_is_what_the_headers_say() -> None:
    assert order_of(with_headers(), "tasks") == Order("me", "tasks", base_url="http://here/")
    said = with_headers(idempotency_key="k", x_priority="High")
    assert order_of(said, "kiapi", webhook_url="https://a", upload_url="https://b") == Order(
        "me", "kiapi", 1, "k", "https://a", "https://b", base_url="http://here/"
    )
    assert order_of(with_headers(x_priority="low"), "tasks").priority == -1


@pytest.mark.parametrize(
    ("field", "headers"),
    [
        ("Idempotency-Key", {"idempotency_key": ""}),
        ("Idempotency-Key", {"idempotency_key": "k" * 256}),
        ("X-Priority", {"x_priority": "9"}),
    ],
)
def test_a_header_that_cannot_be_used_is_named(field: str, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        order_of(with_headers(**headers), "native")
    assert caught.value.field == field


def test_nobody_has_no_jobs() -> None:
    with pytest.raises(Unauthorized):
        owner_of(with_headers(None))
