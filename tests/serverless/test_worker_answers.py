"""What the worker answers, whatever happens to a job. The SDK is not needed for that."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quick import QuickEngine

import handler
from ltx2.fake import FakeEngine
from ltx2.settings import Settings
from ltx2.studio.direct import Direct

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}


@pytest.fixture(params=[FakeEngine])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[handler.Worker]:
    settings = Settings(data_dir=tmp_path)
    studio = Direct(settings, request.param(settings))
    yield handler.Worker(studio)
    studio.close()


def ask(worker: handler.Worker, asked: object) -> dict[str, Any]:
    return asyncio.run(worker.handler({"id": "job", "input": asked}))


@pytest.mark.parametrize("worker", [QuickEngine], indirect=True)
@pytest.mark.parametrize(("prompt", "code"), [("bug", "internal"), ("vanish", "internal"), ("not ready", "not_ready")])
def test_whatever_happens_the_job_has_an_answer_without_a_traceback(
    worker: handler.Worker, prompt: str, code: str, tmp_path: Path
) -> None:
    answer = ask(worker, SMALL | {"prompt": prompt})
    assert answer["error_code"] == code
    assert isinstance(answer["error"], str)
    assert str(tmp_path) not in answer["error"]
    assert "video" not in answer


@pytest.mark.parametrize(
    ("asked", "error", "code"),
    [
        (["a list"], "must be a JSON object", "invalid_request"),
        (None, "must be a JSON object", "invalid_request"),
        (SMALL | {"prompt": "\ud83d"}, "prompt: Input should be a valid string", "invalid_request"),
        (SMALL | {"x" * 100_000: 1}, "x" * 1999 + "…", "invalid_request"),
        (SMALL | {"fps": float("nan")}, "fps: Input should be a finite number", "invalid_request"),
        (SMALL | {"image_start": "http://127.0.0.1:1/x.png"}, "image_start: the host", "url_not_allowed"),
        (SMALL | {"prompt": "fail=systemexit"}, "the job failed; the worker's log says why", "internal"),
    ],
)
def test_what_is_wrong_is_told_plainly(worker: handler.Worker, asked: object, error: str, code: str) -> None:
    answer = ask(worker, asked)
    assert answer["error"].startswith(error)
    assert answer["error_code"] == code


def test_only_memory_that_is_short_again_and_again_replaces_the_worker(worker: handler.Worker) -> None:
    starved, wrong = SMALL | {"prompt": "fail=memory"}, SMALL | {"width": 65}
    asked = [starved, SMALL, starved, wrong, starved, starved, SMALL, starved]
    told = ["refresh_worker" in ask(worker, each) for each in asked]
    assert told == [False, False, False, False, True, True, False, False]


def test_a_lost_gpu_replaces_the_worker_at_once(worker: handler.Worker) -> None:
    answer = ask(worker, SMALL | {"prompt": "fail=cuda"})
    assert (answer["error_code"], answer["refresh_worker"]) == ("internal", True)
    assert "refresh_worker" not in ask(worker, SMALL | {"prompt": "fail=bug"})


def test_the_log_says_nothing_of_what_was_asked(worker: handler.Worker, caplog: pytest.LogCaptureFixture) -> None:
    config = {"accessId": "AKIATHEIRS", "accessSecret": "hush", "bucketName": "b", "endpointUrl": "http://10.0.0.1"}
    with caplog.at_level(logging.DEBUG):
        asyncio.run(worker.handler({"id": "job", "input": SMALL | {"prompt": "fail=bug"}, "s3Config": config}))
        ask(worker, SMALL)
    for word in ("a lamp", "AKIATHEIRS", "hush", "10.0.0.1"):
        assert word not in caplog.text
