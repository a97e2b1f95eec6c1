"""The RunPod dialect: by itself, over a studio, and with RunPod's own client, unchanged, in its own environment."""

import asyncio
import base64
import json
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from quick import QuickEngine, in_loop, running_studio, until
from starlette.requests import Request

from ltx2.dialects import runpod
from ltx2.dialects.app import create_app
from ltx2.dialects.runpod import owns, render_error
from ltx2.dialects.runpod_bodies import RunRequest, again_order, limits_of, status_of, view
from ltx2.engine import Progress
from ltx2.errors import Failure, InvalidRequest, LTX2Error, NotFound, OutOfMemory, QueueFull
from ltx2.media.probe import probe_video
from ltx2.request import GenerationRequest
from ltx2.studio.job import Job, Order
from ltx2.studio.studio import Studio
from processes import ROOT, Server, environment, running_server, wait_until_warm

SMALL = {"width": 64, "height": 64, "num_frames": 2}
NOBODYS = "job_" + "0" * 32
SOMEWHERE = Request({"type": "http", "headers": [], "path": "/v2/local/run", "method": "POST"})


def job(**facts: Any) -> Job:
    facts = {"state": "queued", "order": Order(), "created_at": 10.0} | facts
    return Job(id=NOBODYS, request=GenerationRequest(prompt="x", seed=1), inputs={}, **facts)


def failed(code: str = "internal", field: str | None = None) -> dict[str, Any]:
    return {"state": "failed", "failure": Failure(code, "it went wrong", field), "finished_at": 15.0}


# by itself


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({}, "IN_QUEUE"),
        ({"state": "running"}, "IN_PROGRESS"),
        ({"state": "running", "cancel_requested": True}, "IN_PROGRESS"),
        ({"state": "succeeded"}, "COMPLETED"),
        ({"state": "canceled"}, "CANCELLED"),
        (failed(), "FAILED"),
        (failed("timeout"), "TIMED_OUT"),
    ],
)
def test_each_state_has_its_word(facts: dict[str, Any], status: str) -> None:
    assert status_of(job(**facts)) == view(job(**facts))["status"] == status


def test_a_job_says_how_long_it_waited_and_ran_once_that_is_known() -> None:
    same = {"id": NOBODYS, "retries": 0}
    assert view(job()) == same | {"status": "IN_QUEUE"}
    # of a try that was lost
    assert view(job(started_at=12.5)) == same | {"status": "IN_QUEUE"}
    runs = view(job(state="running", started_at=12.5, progress=Progress("denoising", 1, 4)))
    output = {"phase": "denoising", "step": 1, "steps": 4, "fraction": 0.2725}
    assert runs == same | {"status": "IN_PROGRESS", "delayTime": 2500, "output": output}
    done = view(job(state="succeeded", started_at=12.5, finished_at=13.0))
    assert done == same | {"status": "COMPLETED", "delayTime": 2500, "executionTime": 500}
    assert view(job(state="canceled", finished_at=11.0)) == same | {"status": "CANCELLED", "delayTime": 1000}
    # the clock was set back meanwhile
    assert view(job(state="succeeded", started_at=9.0, finished_at=8.0)) == done | {"delayTime": 0, "executionTime": 0}


def test_a_failed_job_is_what_runpod_makes_of_our_workers_answer() -> None:
    seen = view(job(started_at=12.0, **failed("out_of_memory")))
    assert (seen["status"], seen["error"], seen["output"]) == (
        "FAILED",
        "it went wrong",
        {"error_code": "out_of_memory"},
    )
    named = view(job(**failed("invalid_request", "image_start")))
    assert named["error"] == "image_start: it went wrong"
    assert named["output"] == {"error_code": "invalid_request", "field": "image_start"}


def test_a_retry_goes_by_the_first_name_and_counts() -> None:
    again = job(order=Order(dialect="runpod", batch="job_1", notes={"retries": 2}))
    assert (view(again)["id"], view(again)["retries"]) == ("job_1", 2)
    # other dialects have batches and notes of their own
    other = view(job(order=Order(dialect="runware", batch="b", notes={"retries": 3})))
    assert (other["id"], other["retries"]) == (NOBODYS, 0)


def body(**fields: Any) -> RunRequest:
    return RunRequest.model_validate({"input": {"prompt": "x"}} | fields)


def test_a_policy_is_limits_in_seconds_and_a_low_priority() -> None:
    policy = body(policy={"executionTimeout": 5000, "ttl": 10_000, "lowPriority": True, "other": 1}).policy
    assert policy is not None
    assert limits_of(policy) == {"run_seconds": 5.0, "ttl_seconds": 10.0, "priority": -1}
    none = body(policy={}).policy
    assert none is not None
    assert limits_of(none) == {"run_seconds": None, "ttl_seconds": None}


def test_what_is_unknown_beside_the_input_is_ignored() -> None:
    assert body(webhookV2="x", policy=None, s3Config=None, webhook=None) == body()


@pytest.mark.parametrize(
    "fields",
    [
        {"input": None},
        {"input": {"prompt": "x", "unknown": 1}},
        {"input": {"input": {"prompt": "x"}}},
        {"webhook": 1},
        {"policy": []},
        {"policy": {"executionTimeout": 4999}},
        {"policy": {"executionTimeout": "5000"}},
        {"policy": {"ttl": 9999}},
        {"policy": {"ttl": True}},
        {"policy": {"ttl": 7 * 24 * 3600 * 1000 + 1}},
        {"policy": {"lowPriority": 1}},
        {"s3Config": {"accessId": "a", "accessSecret": "hush", "bucketName": "b", "endpointUrl": "https://c"}},
    ],
)
def test_wrong_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        body(**fields)


@pytest.mark.parametrize(
    ("error", "status", "answer"),
    [
        (
            InvalidRequest("too wide", field="input.width"),
            400,
            {"field": "input.width", "error": "input.width: too wide"},
        ),
        (OutOfMemory("it is full", hint="wait"), 503, {"error": "it is full (wait)"}),
        (NotFound("nothing"), 404, {"error": "nothing"}),
        (QueueFull("full"), 429, {"error": "full"}),
    ],
)
def test_an_error_is_one_text_and_a_code(error: LTX2Error, status: int, answer: dict[str, str]) -> None:
    rendered = render_error(error, SOMEWHERE)
    assert rendered.status_code == status
    assert json.loads(bytes(rendered.body)) == {"error_code": error.code} | answer
    assert ("Retry-After" in rendered.headers) == (status == 429)
    assert render_error(error, SOMEWHERE, 405).status_code == 405


def test_its_paths_are_below_v2() -> None:
    assert all(map(owns, ("/v2", "/v2/", "/v2/local/run", "/v2/nothing")))
    assert not any(map(owns, ("/", "/v1/jobs", "/v22", "/generate")))


def test_news_are_told_once_and_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    news = runpod._News()
    step = job(state="running", progress=Progress("denoising", 1, 8))
    assert not news.has(job())
    assert not news.tell(job())
    assert (news.has(step), news.tell(step), news.has(step), news.tell(step)) == (True, True, False, False)
    assert news.has(job(state="running", progress=Progress("denoising", 2, 8)))
    # there is nothing more to wait for
    assert [(news.has(job(state="canceled")), news.tell(job(state="canceled"))) for _ in "12"] == [
        (True, True),
        (True, False),
    ]
    monkeypatch.setattr(runpod, "MOST_REMEMBERED", 2)
    others = [replace(step, id=f"job_{number}") for number in range(3)]
    assert [news.tell(other) for other in (*others, *others[1:], others[0])] == [True, True, True, False, False, True]


# over a studio


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Studio, QuickEngine]]:
    """The application over a studio of its own, without a socket."""
    async with running_studio(folder, **settings) as (studio, engine):
        app: FastAPI = create_app(studio)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server/v2/local") as http:
            yield http, studio, engine


async def run(http: httpx.AsyncClient, prompt: str = "x", **more: Any) -> str:
    """The id of a new job."""
    answer = await http.post("/run", json={"input": SMALL | {"prompt": prompt} | more.pop("input", {})} | more)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"id": answer.json()["id"], "status": "IN_QUEUE"}
    return str(answer.json()["id"])


async def over(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """A job at its end."""
    answer = await http.get(f"/status-sync/{job_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: httpx.Response, field: str | None = None, status: int = 400) -> str:
    """The text of an error; it must have this dialect's shape."""
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told.keys() == {"error", "error_code"} | ({"field"} if field else set())
    assert told.get("field") == field
    return str(told["error"])


@in_loop
async def test_a_job_is_made_asked_for_and_has_the_response_of_the_worker(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, studio, _):
        job_id = await run(http, input={"seed": 7})
        done = await over(http, job_id)
        output = done.pop("output")
        waited, ran = done.pop("delayTime"), done.pop("executionTime")
        assert done == {"id": job_id, "retries": 0, "status": "COMPLETED"}
        assert waited >= 0
        assert ran >= 0
        made = await studio.job(job_id, "")
        clip = base64.b64decode(output["video"].removeprefix("data:video/mp4;base64,"), validate=True)
        assert clip == studio.files.read(str(made.file_id), "")
        assert (output["seed"], output["num_frames"], output["resolution"]) == (7, 2, "64x64")
        for method, path in (("GET", "status"), ("POST", "status"), ("POST", "status-sync")):
            assert (await http.request(method, f"/{path}/{job_id}")).json()["output"] == output
        # all names are one server
        elsewhere = await http.get(f"http://server/v2/Any_other-1/status/{job_id}")
        assert elsewhere.json()["output"] == output
        at_once = (await http.post("/runsync", json={"input": SMALL | {"prompt": "x", "seed": 7}})).json()
        assert (at_once["status"], at_once["output"]["seed"]) == ("COMPLETED", 7)
        await studio.on_disk(studio.files.delete, str(made.file_id), "")
        gone = await over(http, job_id)
        assert (gone["status"], gone["error"], "output" in gone) == ("COMPLETED", "the clip was deleted", False)
        assert (await http.get(f"/stream/{job_id}")).json() == {"status": "COMPLETED", "stream": []}


@in_loop
async def test_policies_and_headers_become_orders(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, studio, _):
        policy = {"executionTimeout": 6000, "ttl": 12_000, "lowPriority": True}
        order = (await studio.job(await run(http, "wait", policy=policy), "")).order
        assert (order.run_seconds, order.ttl_seconds, order.priority) == (6.0, 12.0, -1)
        assert (order.dialect, order.base_url) == ("runpod", "http://server/")
        asked = {"json": {"input": SMALL | {"prompt": "x"}}, "headers": {"X-Priority": "high", "Idempotency-Key": "k"}}
        first, again = [(await http.post("/run", **asked)).json() for _ in "12"]
        assert first == again
        assert (await studio.job(first["id"], "")).order.priority == 1
        other = await http.post("/run", json={"input": SMALL | {"prompt": "y"}}, headers={"Idempotency-Key": "k"})
        assert refused(other, "Idempotency-Key").startswith("Idempotency-Key: this key was used")


@in_loop
async def test_who_waits_in_one_request_is_answered_in_time_and_the_job_runs_on(tmp_path: Path) -> None:
    async with serving(tmp_path, sync_seconds=0.1) as (http, _, engine):
        running = (await http.post("/runsync", json={"input": SMALL | {"prompt": "wait"}})).json()
        waiting = (await http.post("/runsync?wait=1000", json={"input": SMALL | {"prompt": "x"}})).json()
        assert (running["status"], running["output"]["phase"]) == ("IN_PROGRESS", "denoising")
        assert waiting == {"id": waiting["id"], "retries": 0, "status": "IN_QUEUE"}
        assert (await over(http, running["id"]))["status"] == "IN_PROGRESS"
        engine.step.set()
        await until(lambda: engine.made == ["wait", "x"])
        assert (await over(http, waiting["id"]))["status"] == "COMPLETED"
        for wait in (999, 300_001, "x"):
            assert refused(await http.post(f"/runsync?wait={wait}", json={"input": {"prompt": "x"}}), "wait")


async def timed_out(http: httpx.AsyncClient, studio: Studio, **order: Any) -> str:
    """A job that has TIMED_OUT, and that will succeed once the engine is let go."""
    request = GenerationRequest(prompt="wait", seed=1, **SMALL)
    job_id = (await studio.submit(request, {}, Order(run_seconds=0.5, **order))).id
    done = await over(http, job_id)
    assert (done["status"], done["output"]) == ("TIMED_OUT", {"error_code": "timeout"})
    assert "0.5 seconds" in done["error"]
    return job_id


@in_loop
async def test_a_job_that_timed_out_is_tried_again_under_its_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, studio, engine):
        # it may have come in by any dialect
        job_id = await timed_out(http, studio, dialect="kiapi", batch="b", notes={"retries": 9}, priority=1)
        engine.step.set()
        blocker = await run(http, "x")
        answers = await asyncio.gather(*(http.post(f"/retry/{job_id}") for _ in range(4)))
        assert {answer.status_code for answer in answers} <= {200, 400}
        assert answers[0].json()["id"] == job_id
        done = await over(http, job_id)
        assert (done["id"], done["status"], done["retries"]) == (job_id, "COMPLETED", 1)
        assert done["output"]["seed"] == 1
        (again,) = await studio.batch("", job_id)
        assert (again.order.priority, again.order.run_seconds, again.order.dialect) == (1, 0.5, "runpod")
        assert (await over(http, again.id))["id"] == job_id
        assert (await studio.job(job_id, "")).state == "failed"  # what has ended is never overwritten
        assert refused(await http.post(f"/retry/{job_id}")).endswith("this job is COMPLETED")
        assert refused(await http.post(f"/retry/{blocker}")).endswith("this job is COMPLETED")
        assert (await http.get("/health")).json()["jobs"]["retried"] >= 1


@in_loop
async def test_a_retry_that_fails_may_be_tried_again_and_takes_its_files_along(tmp_path: Path, data: Path) -> None:
    photo = "data:image/jpeg;base64," + base64.b64encode((data / "photo.jpg").read_bytes()).decode()
    async with serving(tmp_path) as (http, studio, engine):
        job_id = await run(http, "bug", input={"image_start": photo})
        assert (await over(http, job_id))["status"] == "FAILED"
        for number in (1, 2, 3):
            assert (await http.post(f"/retry/{job_id}", json={"other": 1})).json()["status"] == "IN_QUEUE"
            done = await over(http, job_id)
            assert (done["status"], done["retries"]) == ("FAILED", number)
        assert [media.keys() for media in engine.media] == 4 * [{"image_start"}]
        assert (await http.get("/health")).json()["jobs"] | {"failed": 4, "retried": 3} == {
            "completed": 0,
            "failed": 4,
            "inProgress": 0,
            "inQueue": 0,
            "retried": 3,
        }
        (file_id,) = {file for job in await studio.jobs("") for file in job.inputs.values()}
        await studio.on_disk(studio.files.delete, file_id, "")
        assert "was deleted" in refused(await http.post(f"/retry/{job_id}"), "input.image_start")
        waiting = await run(http, "wait")
        assert refused(await http.post(f"/retry/{waiting}"))
        assert (await http.post(f"/cancel/{waiting}")).json() == {"id": waiting, "status": "CANCELLED"}
        assert refused(await http.post(f"/retry/{waiting}")).endswith("this job is CANCELLED")


@in_loop
async def test_two_retries_at_the_same_time_are_one_whatever_keys_were_sent_before(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, studio, _):
        failed = (await over(http, await run(http, "bug")))["id"]
        # a header cannot say what retries go by
        guess = str(again_order(await studio.job(failed, ""), webhook_url=None, base_url="").idempotency_key)
        key = {"Idempotency-Key": guess.replace("\n", " ")}
        taken = await http.post("/run", json={"input": SMALL | {"prompt": "x"}}, headers=key)
        assert taken.status_code == 200
        answers = await asyncio.gather(*(http.post(f"/retry/{failed}") for _ in range(4)))
        assert {answer.json()["id"] for answer in answers if answer.status_code == 200} == {failed}
        assert ((await over(http, failed))["retries"], len(await studio.jobs(""))) == (1, 3)
        assert (await http.get("/health")).json()["jobs"]["retried"] == 1


@in_loop
async def test_a_stream_waits_for_news_and_tells_the_output_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, _, engine):
        blocker, job_id = await run(http, "wait"), await run(http, "steps wait")
        began = time.monotonic()
        assert (await http.get(f"/stream/{job_id}?wait=1000")).json() == {"status": "IN_QUEUE", "stream": []}
        assert time.monotonic() - began >= 1
        asking = asyncio.create_task(http.get(f"/stream/{job_id}"))
        await http.post(f"/cancel/{blocker}")
        news = (await asking).json()
        assert news["status"] == "IN_PROGRESS"
        seen = [news["stream"][0]["output"]]
        while seen[-1]["step"] < 4:
            seen.append((await http.post(f"/stream/{job_id}")).json()["stream"][0]["output"])
        fractions = [output["fraction"] for output in seen]
        assert fractions == sorted(fractions)
        assert all(one != other for one, other in pairwise(seen))
        engine.step.set()
        last: dict[str, Any] = {"status": "IN_PROGRESS"}
        while last["status"] == "IN_PROGRESS":
            last = (await http.get(f"/stream/{job_id}")).json()
        assert last["status"] == "COMPLETED"
        assert last["stream"] == [{"output": (await over(http, job_id))["output"]}]
        assert (await http.get(f"/stream/{job_id}")).json() == {"status": "COMPLETED", "stream": []}
        wrong = await run(http, "bug")
        await over(http, wrong)
        for _ in range(2):
            answer = (await http.get(f"/stream/{wrong}")).json()
            assert answer == {"status": "FAILED", "stream": [], "error": answer["error"]}


@in_loop
async def test_a_job_that_does_not_stop_at_once_is_said_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "CANCEL_SECONDS", 0.05)
    async with serving(tmp_path) as (http, _, engine):
        engine.deaf.set()
        job_id = await run(http, "steps wait")
        await until(lambda: engine.running == 1)
        assert (await http.post(f"/cancel/{job_id}")).json() == {"id": job_id, "status": "IN_PROGRESS"}
        engine.deaf.clear()
        assert (await over(http, job_id))["status"] == "CANCELLED"
        assert (await http.post(f"/cancel/{job_id}")).json()["status"] == "CANCELLED"


@in_loop
async def test_jobs_belong_to_a_key_and_to_all_dialects(tmp_path: Path) -> None:
    async with serving(tmp_path, api_keys=SecretStr("a,b"), queue_limit=4) as (http, studio, engine):
        http.headers["Authorization"] = "Bearer a"
        wants_key = await http.get("/health", headers={"Authorization": "Bearer wrong"})
        assert "API key" in refused(wants_key, status=401)
        assert wants_key.headers["WWW-Authenticate"] == "Bearer"
        running = await run(http, "wait")
        await until(lambda: engine.running == 1)
        other = {"Authorization": "Bearer b"}
        foreign = (await http.post("/run", json={"input": SMALL | {"prompt": "x"}}, headers=other)).json()["id"]
        for method, path in (("GET", "status"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")):
            assert refused(await http.request(method, f"/{path}/{running}", headers=other), status=404)
        mine = [await run(http) for _ in range(3)]
        full = await http.post("/run", json={"input": SMALL | {"prompt": "x"}})
        assert refused(full, status=429)
        assert full.headers["Retry-After"]
        counted = (await http.get("/health")).json()
        assert counted["jobs"] == {"completed": 0, "failed": 0, "inProgress": 1, "inQueue": 3, "retried": 0}
        assert (counted["workers"]["idle"], counted["workers"]["running"]) == (0, 1)
        assert (await http.post("/purge-queue")).json() == {"removed": 3, "status": "completed"}
        assert [(await over(http, job_id))["status"] for job_id in mine] == 3 * ["CANCELLED"]
        assert (await studio.job(running, studio.keys.owner("a"))).state == "running"
        engine.step.set()
        assert (await over(http, running))["status"] == "COMPLETED"
        seen = (await http.get(f"http://server/v1/jobs/{running}")).json()
        assert (seen["status"], seen["params"]["prompt"]) == ("succeeded", "wait")
        task = (await http.get(f"http://server/v1/video/tasks/{running}")).json()
        assert task["status"] == "completed"
        made = {"prompt": "steps", "width": 64, "height": 64, "num_frames": 9}
        there = (await http.post("http://server/v1/video/async_t2v", json=made)).json()["task_id"]
        assert (await over(http, there))["status"] == "COMPLETED"
        http.headers["Authorization"] = "Bearer b"
        assert (await over(http, foreign))["status"] == "COMPLETED"


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of webhooks on the loopback: its ``host:port``, and the JSON that came."""
    came: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()
    thread.join()


@in_loop
async def test_a_webhook_says_what_status_says(tmp_path: Path, told: tuple[str, list[dict[str, Any]]]) -> None:
    place, came = told
    hook = f"http://{place}/hook"
    async with serving(tmp_path, url_allow=place) as (http, _, engine):
        done = await over(http, await run(http, webhook=hook))
        await until(lambda: len(came) == 1)
        assert came == [done]
        assert done["output"]["video"].startswith("data:video/mp4;base64,")
        wrong = await over(http, await run(http, "bug", webhook=hook))
        await until(lambda: len(came) == 2)
        assert came[1] == wrong
        # its address was forgotten
        assert (await http.post(f"/retry/{wrong['id']}", json={"webhook": hook})).status_code == 200
        again = await over(http, wrong["id"])
        await until(lambda: len(came) == 3)
        assert came[2] == again
        assert (again["retries"], again["id"]) == (1, wrong["id"])
        assert engine.begun == ["x", "bug", "bug"]


@in_loop
async def test_what_is_wrong_is_named_as_it_was_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, studio, _):
        for fields, field in (
            ({"width": 63}, "input.width"),
            ({"width": 8192, "height": 8192}, "input.width"),
            ({"image_start": "no image"}, "input.image_start"),
            ({"image_start": "file_" + "0" * 32}, "input.image_start"),
            ({"guidance_scale": 2, "guidance": {"video_cfg": 3}}, "input.guidance.video_cfg"),
            ({"keyframes": [{"image": "x"}]}, "input.keyframes[0].frame"),
            ({"unknown": 1}, "input.unknown"),
        ):
            for path in ("/run", "/runsync"):
                answer = await http.post(path, json={"input": {"prompt": "x"} | fields})
                assert refused(answer, field).startswith(field + ": ")
        bucket = {"accessSecret": "hush"}
        for more, field in (
            ({"webhook": "http://127.0.0.1:1/"}, "webhook"),
            ({"webhook": "ftp://x"}, "webhook"),
            ({"s3Config": bucket}, "s3Config"),
            ({"policy": {"ttl": 1}}, "policy.ttl"),
        ):
            text = refused(await http.post("/run", json={"input": {"prompt": "x"}} | more), field)
            assert "hush" not in text
        assert refused(await http.post("/run", json={}), "input")
        for content in (b"", b"{", b"[]", b"null"):
            refused(await http.post("/run", content=content, headers={"Content-Type": "application/json"}))
        assert await studio.jobs("") == []


@in_loop
async def test_what_is_unknown_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as (http, _, _):
        for name in (
            NOBODYS,
            "nothing",
            "60902e6c-08a1-426e-9cb9-9eaec90f5e2b-u1",
            "job_" + "A" * 32,
            "%00",
            NOBODYS + "%0a",
        ):
            for method, path in (("GET", "status"), ("GET", "status-sync"), ("GET", "stream"), ("POST", "cancel")):
                refused(await http.request(method, f"/{path}/{name}"), status=404)
        for path in ("/v2", "/v2/", "/v2/local", "/v2/local/nothing", "/v2/a.b/health", f"/v2/{'a' * 65}/health"):
            refused(await http.get("http://server" + path), status=404)
        assert (await http.get("/run")).headers["Allow"] == "POST"


# over HTTP


def test_a_caller_who_leaves_does_not_end_the_job(fake_server: Server) -> None:
    url = fake_server.url + "/v2/local"
    with httpx.Client(timeout=10) as http:
        asked = {"input": SMALL | {"prompt": "seconds=0.6", "seed": 4711}}
        with pytest.raises(httpx.ReadTimeout):
            http.post(url + "/runsync", json=asked, timeout=0.2)
        newest = http.get(f"{fake_server.url}/v1/jobs?limit=1").json()["data"][0]
        assert newest["params"]["seed"] == 4711
        assert http.get(f"{url}/status-sync/{newest['id']}").json()["status"] == "COMPLETED"
        # the sound alone
        sound = http.post(url + "/runsync", json={"input": {"prompt": "x", "output_format": "wav"} | SMALL}).json()
        assert sound["output"]["audio"].startswith("data:audio/wav;base64,UklGR")
        assert "video" not in sound["output"]


# RunPod's own client


def client(python: Path, server: Server, *arguments: str, folder: Path) -> dict[str, Any]:
    """What the client's program saw."""
    command = [str(python), str(ROOT / "tests" / "clients" / "runpod_client.py"), *arguments]
    variables = environment(folder, RUNPOD_ENDPOINT_BASE_URL=server.url + "/v2")
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants keys."""
    settings = {"LTX2_API_KEYS": "right,other"}
    with running_server(tmp_path_factory.mktemp("keyed"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running


def is_clip(output: dict[str, Any]) -> bool:
    return output["video"].startswith("data:video/mp4;base64,AAAA") and output["num_frames"] == 9


def test_runpods_client_sees_what_it_sees_at_runpod(
    client_python: Callable[[str], Path], fake_server: Server, keyed: Server, tmp_path: Path
) -> None:
    written = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(import base64\n\nimport runpod\n.*?)```", written, re.DOTALL)
    program = tmp_path / "snippet.py"
    program.write_text(snippet)
    seen = client(client_python("runpod"), fake_server, "all", keyed.url + "/v2", str(program), folder=tmp_path)
    assert probe_video(tmp_path / "waves.mp4").num_frames == 25
    assert seen["clip"]["states"][-1] == "COMPLETED"
    for output in (seen["clip"]["output"], seen["clip"]["sync"], seen["bare"], *seen["stream"]):
        assert is_clip(output)
    assert len(seen["stream"]) == 1
    assert (seen["health"]["workers"]["ready"], seen["health"]["jobs"]["inQueue"]) == (1, 0)
    assert seen["failed"] == {"states": seen["failed"]["states"], "output": {"error_code": "out_of_memory"}}
    assert seen["failed"]["states"][-1] == "FAILED"
    assert seen["failed at once"] == {"error_code": "out_of_memory"}
    assert seen["refused"][0] == 400
    assert seen["refused"][1]["error"] == "input.prompt: must not be empty"
    assert seen["progress"].keys() == {"phase", "step", "steps", "fraction"}
    assert seen["waiting"] == 3 * ["IN_QUEUE"]
    assert seen["cancelled while it waits"] == ["CANCELLED", "CANCELLED"]
    assert seen["purged"] == {"removed": 2, "status": "completed"}
    assert seen["after"] == 3 * ["CANCELLED"]
    assert seen["cancelled"] == [True, "CANCELLED"]
    assert seen["stream of a cancelled job"] == []
    at_once = seen["asyncio"]
    assert at_once["health"]["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert at_once["purged"] == {"removed": 0, "status": "completed"}
    assert (at_once["status"], at_once["cancelled"]) == ("COMPLETED", ["CANCELLED", "CANCELLED"])
    *progress, last = at_once["stream"]
    assert progress
    assert {output["phase"] for output in progress} <= {"loading", "encoding", "denoising", "decoding", "muxing"}
    assert is_clip(last)
    assert at_once["output"] == last
    assert seen["keys"]["right"]["completed"] == 0
    assert "401" in seen["keys"]["wrong"]


def test_runpods_client_gets_clips_of_a_model(
    client_python: Callable[[str], Path], server: Server, tmp_path: Path
) -> None:
    seen = client(client_python("runpod"), server, "clip", folder=tmp_path)
    assert seen["states"][-1] == "COMPLETED"
    for output in (seen["output"], seen["sync"]):
        assert is_clip(output)
        assert output["model"] == "tiny"
