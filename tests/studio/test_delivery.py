"""Webhooks and uploads to a real receiver on the loopback, which answers as it is told."""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from quick import QuickEngine, in_loop, running_studio, until
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from ltx2.errors import LTX2Error, UrlNotAllowed
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.database import deliveries, jobs
from ltx2.studio.delivery import MOST_TRIES
from ltx2.studio.job import Job, Order
from ltx2.studio.keys import webhook_secret
from ltx2.studio.studio import Studio

REQUEST = GenerationRequest(prompt="x", width=64, height=64, num_frames=2, seed=7)
SOON = 0.00001
"""Seconds before a failed delivery is tried again: with them, eight tries take a tenth of a second."""
RESET = 0
"""In place of a status: the connection is reset."""
HANG = 1
"""In place of a status: there is no answer while the receiver has no ``patience`` left."""


@dataclass(frozen=True)
class Call:
    """What a receiver was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Answers each path with the statuses it was given, one after the other, and with the last one from then on."""

    def __init__(self) -> None:
        self.answers: dict[str, list[int]] = {}
        self.calls: list[Call] = []
        self.patience = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.calls.append(Call(self.command, self.path, headers, body))
                statuses = receiver.answers.get(self.path.partition("?")[0], [200])
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                if status == HANG:
                    receiver.patience.wait(20)
                    status = 200
                if status == RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PUT = answer  # noqa: N815

            def finish(self) -> None:
                if self.connection.fileno() != -1:
                    super().finish()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.place = f"127.0.0.1:{self._server.server_port}"

    def url(self, path: str = "/hook") -> str:
        return f"http://{self.place}{path}?token=hush"

    def to(self, path: str) -> list[Call]:
        """What came to a path."""
        return [call for call in self.calls if call.path.partition("?")[0] == path]

    def close(self) -> None:
        self.patience.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()


async def make(studio: Studio, prompt: str = "x", **order: Any) -> Job:
    """The job when it is over, however it ended."""
    job = await studio.submit(REQUEST.model_copy(update={"prompt": prompt}), {}, Order(**order))
    try:
        return await studio.result(job)
    except LTX2Error:
        return await studio.job(job.id, job.order.owner)


def rows(studio: Studio) -> list[Any]:
    with studio._database.read() as connection:
        return list(connection.execute(select(deliveries).order_by(deliveries.c.kind)))


def states(studio: Studio) -> list[tuple[str, str, int, str | None]]:
    return [(row.kind, row.state, row.tries, row.url) for row in rows(studio)]


def settled(studio: Studio) -> Callable[[], bool]:
    """Whether nothing waits to be delivered any more."""
    return lambda: all(row.state != "waiting" for row in rows(studio))


@in_loop
async def test_a_webhook_says_what_became_of_the_job_and_is_signed(tmp_path: Path, receiver: Receiver) -> None:
    secret = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_secret=SecretStr(secret)) as (studio, _):
        job = await make(studio, "a secret wish", webhook_url=receiver.url(), owner="ann")
        await until(settled(studio))
        (call,) = receiver.calls
        (row,) = rows(studio)
        assert (call.method, call.path) == ("POST", "/hook?token=hush")
        assert call.headers["content-type"] == "application/json"
        assert call.headers["webhook-id"] == row.id
        said = Webhook(secret).verify(call.body, call.headers)
        assert said == json.loads(call.body)
        assert said["type"] == "job.succeeded"
        assert job.finished_at is not None
        assert datetime.fromisoformat(said["timestamp"]).timestamp() == pytest.approx(job.finished_at, abs=1e-5)
        data = said["data"]
        assert data.keys() == {"id", "status", "created_at", "file_id", "video_bytes", "result"}
        assert (data["id"], data["status"], data["created_at"]) == (job.id, "succeeded", job.created_at)
        assert (data["file_id"], data["video_bytes"]) == (job.file_id, job.file_size)
        assert (data["result"]["seed"], data["result"]["resolution"]) == (7, "64x64")
        assert not [word for word in (b"wish", b"hush", b"ann", str(tmp_path).encode()) if word in call.body]
        assert states(studio) == [("webhook", "done", 1, None)]
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(call.body.replace(b"succeeded", b"failed"), call.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(call.body, call.headers | {"webhook-id": "msg_other"})


@in_loop
async def test_without_a_given_secret_the_kept_one_signs(tmp_path: Path, receiver: Receiver) -> None:
    async with running_studio(tmp_path, url_allow=receiver.place) as (studio, _):
        await make(studio, webhook_url=receiver.url())
        await until(settled(studio))
    (call,) = receiver.calls
    secret = webhook_secret(Settings(data_dir=tmp_path))
    assert Webhook(secret).verify(call.body, call.headers)["type"] == "job.succeeded"


@in_loop
async def test_what_failed_and_what_was_cancelled_is_told_too(tmp_path: Path, receiver: Receiver) -> None:
    async with running_studio(tmp_path, url_allow=receiver.place) as (studio, engine):
        for prompt in ("not ready", "bug", "crash"):
            await make(studio, prompt, webhook_url=receiver.url(f"/{prompt[:3]}"), upload_url=receiver.url("/put"))
        hanging = asyncio.create_task(make(studio, "wait", webhook_url=receiver.url("/running")))
        await until(lambda: engine.begun[-1] == "wait")
        queued = await studio.submit(REQUEST, {}, Order(webhook_url=receiver.url("/queued")))
        for job in await studio.jobs(""):
            await studio.cancel(job.id, "")
        await hanging
        await until(lambda: len(receiver.calls) == 5)
        await until(settled(studio))
        said = {call.path.partition("?")[0]: json.loads(call.body) for call in receiver.calls}
        assert {path: (event["type"], event["data"].get("error", {}).get("code")) for path, event in said.items()} == {
            "/not": ("job.failed", "not_ready"),
            "/bug": ("job.failed", "internal"),
            "/cra": ("job.failed", "worker_crashed"),
            "/running": ("job.canceled", None),
            "/queued": ("job.canceled", None),
        }
        assert said["/not"]["data"]["error"] == {
            "code": "not_ready",
            "message": "there is no model",
            "field": None,
            "hint": None,
        }
        assert said["/queued"]["data"]["id"] == queued.id
        assert b"/etc" not in b"".join(call.body for call in receiver.calls)
        assert states(studio) == [("webhook", "done", 1, None)] * 5


@in_loop
async def test_a_receiver_that_fails_is_tried_again_with_the_same_id(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [500, RESET, 302, 200]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=0.02) as (studio, _):
        await make(studio, webhook_url=receiver.url())
        await until(lambda: bool(receiver.calls))
        await until(lambda: rows(studio)[0].tries == 1)
        assert [(row.state, row.url) for row in rows(studio)] == [("waiting", receiver.url())]
        await until(settled(studio))
        assert states(studio) == [("webhook", "done", 4, None)]
        await asyncio.sleep(0.1)
        assert len(receiver.calls) == 4  # what was delivered is not delivered again
        secret = webhook_secret(studio.settings)
        assert len({call.id for call in receiver.calls}) == 1
        assert len({call.body for call in receiver.calls}) == 1
        for call in receiver.calls:
            Webhook(secret).verify(call.body, call.headers)
        pauses = [after.at - before.at for before, after in itertools.pairwise(receiver.calls)]
        for pause, expected in zip(pauses, (0.02, 0.08, 0.32), strict=True):
            assert pause > expected * 0.9


async def opened(folder: Path, **settings: Any) -> Studio:
    """A studio that the test ends by itself."""
    limits = Settings(data_dir=folder, **settings)
    studio = Studio(limits, QuickEngine(limits))
    await studio.start()
    return studio


@in_loop
async def test_a_restart_in_between_changes_nothing_for_the_receiver(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [500, 503, 200]
    settings = {"url_allow": receiver.place, "webhook_retry_seconds": 0.1}
    studio = await opened(tmp_path, **settings)
    await make(studio, webhook_url=receiver.url())
    await until(lambda: rows(studio)[0].tries == 1)
    await studio.close()
    studio = await opened(tmp_path, **settings)
    await until(lambda: rows(studio)[0].tries == 2)
    await studio.close()
    assert len(receiver.calls) == 2
    async with running_studio(tmp_path, **settings) as (studio, _):
        await until(settled(studio))
        assert states(studio) == [("webhook", "done", 3, None)]
    assert len({call.id for call in receiver.calls}) == 1
    assert len({call.body for call in receiver.calls}) == 1
    assert len(receiver.calls) == 3
    secret = webhook_secret(Settings(data_dir=tmp_path))
    assert all(Webhook(secret).verify(call.body, call.headers) for call in receiver.calls)


@in_loop
async def test_what_ends_while_the_server_does_is_delivered_by_the_next(tmp_path: Path, receiver: Receiver) -> None:
    limits = Settings(data_dir=tmp_path, url_allow=receiver.place)
    engine = QuickEngine(limits)
    studio = Studio(limits, engine)
    await studio.start()
    order = Order(webhook_url=receiver.url(), upload_url=receiver.url("/put"))
    job = await studio.submit(REQUEST.model_copy(update={"prompt": "wait"}), {}, order)
    await until(lambda: engine.running == 1)
    closing = asyncio.create_task(studio.close())
    await asyncio.sleep(0.02)
    engine.step.set()
    await closing
    assert receiver.calls == []
    async with running_studio(tmp_path, url_allow=receiver.place) as (studio, _):
        await until(settled(studio))
        assert (await studio.job(job.id, "")).state == "succeeded"
        assert states(studio) == [("upload", "done", 1, None), ("webhook", "done", 1, None)]


@in_loop
async def test_a_receiver_that_is_gone_for_good_is_left_alone(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [410, 200]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=SOON) as (studio, _):
        await make(studio, webhook_url=receiver.url())
        await until(settled(studio))
        assert states(studio) == [("webhook", "failed", 1, None)]
        await asyncio.sleep(0.05)
        assert len(receiver.calls) == 1


@pytest.mark.parametrize("status", [500, 404, RESET])
@in_loop
async def test_a_receiver_that_always_fails_is_given_up_and_its_url_forgotten(
    tmp_path: Path, receiver: Receiver, status: int
) -> None:
    receiver.answers["/hook"] = [status]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=SOON) as (studio, _):
        job = await make(studio, webhook_url=receiver.url())
        await until(settled(studio))
        assert states(studio) == [("webhook", "failed", MOST_TRIES, None)]
        await asyncio.sleep(0.05)
        assert len(receiver.calls) == MOST_TRIES
        assert len({call.id for call in receiver.calls}) == 1
        assert (await studio.job(job.id, "")).state == "succeeded"
        with studio._database.read() as connection:
            assert "hush" not in str(connection.execute(select(jobs)).all())


@in_loop
async def test_nobody_who_listens_is_as_bad_as_one_who_fails(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        async with running_studio(tmp_path, url_allow=place, webhook_retry_seconds=SOON) as (studio, _):
            await make(studio, webhook_url=f"http://{place}/hush", upload_url=f"http://{place}/hush")
            await until(settled(studio))
            assert {state[1:] for state in states(studio)} == {("failed", MOST_TRIES, None)}


@in_loop
async def test_a_clip_is_put_where_the_caller_wants_it(tmp_path: Path, receiver: Receiver) -> None:
    async with running_studio(tmp_path, url_allow=receiver.place) as (studio, _):
        job = await make(studio, upload_url=receiver.url("/put"), webhook_url=receiver.url(), owner="ann")
        await until(settled(studio))
        (put,) = receiver.to("/put")
        assert (put.method, put.path) == ("PUT", "/put?token=hush")
        assert put.headers["content-type"] == "video/mp4"
        assert job.file_id is not None
        assert put.body == studio.files.read(job.file_id, "ann")
        assert len(put.body) == int(put.headers["content-length"]) == job.file_size > 500
        assert "transfer-encoding" not in put.headers
        assert not [name for name in put.headers if name.startswith("webhook")]
        assert len(receiver.to("/hook")) == 1
        assert states(studio) == [("upload", "done", 1, None), ("webhook", "done", 1, None)]


@pytest.mark.parametrize("status", [403, 500, RESET])
@in_loop
async def test_an_upload_that_fails_is_given_up_and_the_file_is_kept(
    tmp_path: Path, receiver: Receiver, status: int
) -> None:
    receiver.answers["/put"] = [status]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=SOON) as (studio, _):
        job = await make(studio, upload_url=receiver.url("/put"))
        await until(settled(studio))
        assert states(studio) == [("upload", "failed", MOST_TRIES, None)]
        assert len(receiver.calls) == MOST_TRIES
        assert job.file_id is not None
        data = studio.files.read(job.file_id, "")
        assert len(data) == job.file_size
        if status != RESET:  # a reset may come while the body is sent
            assert {call.body for call in receiver.calls} == {data}
        assert (await studio.job(job.id, "")).state == "succeeded"
        assert (await make(studio)).state == "succeeded"


@in_loop
async def test_an_upload_of_a_file_that_was_deleted_is_not_tried_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/put"] = [500]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=0.1) as (studio, _):
        job = await make(studio, upload_url=receiver.url("/put"))
        await until(lambda: rows(studio)[0].tries == 1)
        assert job.file_id is not None
        studio.files.delete(job.file_id, "")
        await until(settled(studio))
        assert states(studio) == [("upload", "failed", 2, None)]
        assert len(receiver.calls) == 1


@in_loop
async def test_a_receiver_that_hangs_holds_up_nobody_else(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/slow"] = [HANG]
    async with running_studio(tmp_path, url_allow=receiver.place) as (studio, _):
        await make(studio, webhook_url=receiver.url("/slow"), upload_url=receiver.url("/slow"))
        await until(lambda: len(receiver.to("/slow")) == 2)
        for number in range(10):
            await make(studio, webhook_url=receiver.url())
            await until(lambda number=number: len(receiver.to("/hook")) == number + 1)
        await until(lambda: sum(row.state == "done" for row in rows(studio)) == 10)
        receiver.patience.set()
        await until(settled(studio))
        assert {(row.state, row.tries) for row in rows(studio)} == {("done", 1)}
        assert len(receiver.to("/slow")) == 2


@in_loop
async def test_a_server_that_ends_does_not_wait_for_a_receiver_that_hangs(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/slow"] = [HANG]
    studio = await opened(tmp_path, url_allow=receiver.place)
    await make(studio, webhook_url=receiver.url("/slow"))
    await until(lambda: len(receiver.calls) == 1)
    began = time.monotonic()
    await studio.close()
    assert time.monotonic() - began < 1
    receiver.patience.set()
    async with running_studio(tmp_path, url_allow=receiver.place) as (studio, _):
        await until(settled(studio))
    assert len({call.id for call in receiver.calls}) == 1


@in_loop
async def test_a_job_that_cannot_be_read_holds_up_nobody_else(tmp_path: Path, receiver: Receiver) -> None:
    settings = {"url_allow": receiver.place, "webhook_retry_seconds": SOON}
    receiver.answers["/hook"] = [500]
    async with running_studio(tmp_path, **settings | {"webhook_retry_seconds": 60}) as (studio, _):
        broken = await make(studio, webhook_url=receiver.url())
        await until(lambda: rows(studio)[0].tries == 1)
        with studio._database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == broken.id).values(request='{"hush": 1}'))
            connection.execute(update(deliveries).values(next_at=0.0))
    async with running_studio(tmp_path, **settings) as (studio, _):
        await make(studio, webhook_url=receiver.url("/good"))
        await until(settled(studio))
        assert {(row.job_id == broken.id, row.state) for row in rows(studio)} == {(True, "failed"), (False, "done")}


@in_loop
async def test_what_cannot_be_written_down_as_delivered_is_not_sent_all_the_time(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers["/hook"] = [HANG]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=0.2) as (studio, _):
        await make(studio, webhook_url=receiver.url())
        await until(lambda: len(receiver.calls) == 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("ALTER TABLE deliveries RENAME TO gone")
        receiver.patience.set()
        await asyncio.sleep(0.15)
        assert len(receiver.calls) == 1
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("ALTER TABLE gone RENAME TO deliveries")
        await until(settled(studio))
        assert states(studio) == [("webhook", "done", 1, None)]
        assert len({call.id for call in receiver.calls}) == 1
    assert "hush" not in caplog.text


@in_loop
async def test_one_that_fails_does_not_hold_up_the_others(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/bad"] = [500]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=60) as (studio, _):
        for number in range(20):
            await make(studio, webhook_url=receiver.url("/bad" if number % 2 else "/good"))
        await until(lambda: len(receiver.calls) == 20)
        await until(lambda: all(row.tries == 1 for row in rows(studio)))
        assert sorted(row.state for row in rows(studio)) == ["done"] * 10 + ["waiting"] * 10
        assert len({call.id for call in receiver.calls}) == 20


@in_loop
async def test_of_a_forgotten_job_nobody_is_told_any_more(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [500, 200]
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=0.3) as (studio, _):
        job = await make(studio, webhook_url=receiver.url())
        await until(lambda: len(receiver.calls) == 1)
        await studio.forget(job.id, "")
        assert states(studio) == []
        await asyncio.sleep(0.6)
        assert len(receiver.calls) == 1


@pytest.mark.parametrize("name", ["webhook_url", "upload_url"])
@in_loop
async def test_an_internal_place_is_refused_at_once_and_named(tmp_path: Path, receiver: Receiver, name: str) -> None:
    async with running_studio(tmp_path, url_allow="127.0.0.1:1") as (studio, engine):
        for url in (receiver.url(), receiver.url().replace("127.0.0.1", "localhost"), "http://[::1]/", "ftp://a/b"):
            with pytest.raises(UrlNotAllowed) as caught:
                await make(studio, **{name: url})
            assert caught.value.field == name
            assert "hush" not in str(caught.value)
            assert receiver.place not in str(caught.value)
        assert await studio.jobs("") == []
        assert engine.begun == []
    assert receiver.calls == []


@in_loop
async def test_a_place_that_became_internal_since_is_not_called(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers["/hook"] = [500]
    studio = await opened(tmp_path, url_allow=receiver.place, webhook_retry_seconds=0.01)
    await make(studio, webhook_url=receiver.url(), upload_url=receiver.url("/put"))
    await until(lambda: {row.state: row.tries for row in rows(studio)}.get("done") == 1)
    await studio.close()
    before = len(receiver.calls)
    with studio._database.write() as connection:
        connection.execute(update(deliveries).values(next_at=0.0, tries=1))
    studio._database.close()
    async with running_studio(tmp_path, webhook_retry_seconds=SOON) as (studio, _):
        await until(settled(studio))
        assert [row.state for row in rows(studio)] == ["done", "failed"]
    assert len(receiver.calls) == before


@in_loop
async def test_nothing_secret_is_logged_whatever_happens(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers |= {"/hook": [500, RESET, 302, 200], "/put": [403], "/gone": [410]}
    async with running_studio(tmp_path, url_allow=receiver.place, webhook_retry_seconds=SOON) as (studio, _):
        job = await make(studio, webhook_url=receiver.url(), upload_url=receiver.url("/put"))
        await make(studio, "bug", webhook_url=receiver.url("/gone"))
        await until(settled(studio))
        secret = webhook_secret(studio.settings).removeprefix("whsec_")
        (row,) = [row for row in rows(studio) if row.kind == "upload"]
    assert f"upload id={row.id} job={job.id} try=1: 403" in caplog.text
    assert f"try={MOST_TRIES}: 403" in caplog.text
    for record in caplog.records:
        told = logging.Formatter().format(record)
        assert not [word for word in ("hush", "token", receiver.place, "/hook", "/put", secret) if word in told]
        assert record.levelno < logging.ERROR or "ZeroDivisionError" in told
