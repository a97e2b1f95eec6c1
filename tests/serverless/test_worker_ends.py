"""How the worker begins and ends in the SDK's own loop, and what it does when its parts do what they should not."""

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from control_plane import control_plane
from moto.server import ThreadedMotoServer
from worker_process import running_worker, started_worker

from ltx2.serverless.answers import FAILED

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}
LARGE = SMALL | {"prompt": "a long note", "fps": 1, "num_frames": 265, "output_format": "wav"}
"""A file of 25 MB."""
WHISPERED = "nobody-but-them-knows-this"
ODD_WORKER = str(Path(__file__).parent / "odd_worker.py")


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The URL of a server with the buckets ours and theirs."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name in ("ours", "theirs"):
        assert httpx.put(f"{url}/{name}").status_code == 200
    yield url
    server.stop()


def config_at(store: str) -> dict[str, str]:
    """A job's own bucket."""
    return {"accessId": "AKIATHEIRS", "accessSecret": WHISPERED, "bucketName": "theirs", "endpointUrl": store}


def test_the_operators_bucket_and_the_end_in_the_middle_of_a_job(tmp_path: Path, store: str) -> None:
    mine = {"BUCKET_ENDPOINT_URL": f"{store}/ours", "BUCKET_ACCESS_KEY_ID": "AKIAOURS"}
    mine |= {"BUCKET_SECRET_ACCESS_KEY": WHISPERED, "LTX2_BUCKET_SECONDS": "60"}
    place = urlsplit(store).netloc
    with (
        control_plane() as plane,
        started_worker(tmp_path, plane, LTX2_ENGINE="fake", LTX2_URL_ALLOW=place, **mine) as worker,
    ):
        ours = worker.ask("ours", SMALL)["output"]
        assert ours["video_url"].startswith(f"{store}/ours/ltx2/ours-")
        assert "X-Amz-Expires=60&" in ours["video_url"]
        assert httpx.get(ours["video_url"]).headers["content-type"] == "video/mp4"
        theirs = worker.ask("theirs", SMALL, s3Config=config_at(store))["output"]
        assert theirs["video_url"].startswith(f"{store}/theirs/ltx2/theirs-")
        refused = worker.ask("refused", SMALL, s3Config=config_at(store) | {"bucketName": "none"})["output"]
        assert refused["video"].startswith("data:video/mp4;base64,")
        assert "there is no bucket of this name" in refused["warnings"][-1]

        worker.send("in hand", SMALL | {"prompt": "seconds=4", "num_inference_steps": 50})
        worker.wait_for(lambda: '"requestId": "in hand", "message": "Started."' in worker.log)
        worker.process.send_signal(signal.SIGTERM)
        worker.send("too late", SMALL)
        assert worker.end() == 0  # though what it asked RunPod is still unanswered
        assert plane.results("in hand")[0].body["output"]["video_url"]
        assert [taken.job for taken in plane.taken] == ["ours", "theirs", "refused", "in hand"]
        assert len(plane.results("in hand")) == 1
        updates = plane.progress("in hand")
        steps = [update.body["output"]["step"] for update in updates]
        assert steps
        assert steps == sorted(set(steps))
        assert all(update.answered < plane.results("in hand")[0].seconds for update in updates)
        assert worker.left == []
        for told in (WHISPERED, "AKIA", "X-Amz-", "a lamp"):
            assert told not in worker.log


def test_an_idle_worker_that_is_told_to_end_takes_no_job_with_it(tmp_path: Path) -> None:
    with control_plane() as plane, started_worker(tmp_path, plane, LTX2_ENGINE="fake") as worker:
        worker.ask("before", SMALL)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0
        assert [taken.job for taken in plane.taken] == ["before"]
        assert worker.left == []


def test_odd_results_are_answered_once_and_validly(tmp_path: Path) -> None:
    with control_plane() as plane, running_worker(tmp_path, plane, ODD_WORKER, "loads") as worker:
        body = worker.ask("odd", SMALL | {"prompt": "odd"})
        assert body == {"output": {"seconds": [None, None], "warnings": ["half: \ufffd"], "\ufffd": None, "path": None}}
        body = worker.ask("nothing", SMALL | {"prompt": "nothing"})
        assert body == {"error": FAILED, "output": {"error_code": "internal"}}
        for job, asked, size in (("much", SMALL | {"prompt": "much"}, "25.0 MB"), ("large", LARGE, "33.9 MB")):
            body = worker.ask(job, asked)
            assert body["output"]["error_code"] == "media_too_large"
            assert f"the result has {size}, and 9.5 MB can be sent" in body["error"]
            assert "BUCKET_ENDPOINT_URL" in body["error"]
    assert all(len(plane.results(taken.job)) == 1 for taken in plane.taken)


def test_a_model_that_no_restart_can_mend_is_the_answer_of_every_job(tmp_path: Path) -> None:
    with control_plane() as plane, running_worker(tmp_path, plane, LTX2_MODEL="no-such-model") as worker:
        for job in ("one", "two"):
            body = worker.ask(job, SMALL)
            assert body["error"].startswith("no model is called 'no-such-model'")
            assert body["output"] == {"error_code": "not_ready"}
            assert "stopPod" not in body
    assert plane.unfit() == []


@pytest.mark.parametrize(
    ("program", "check", "reason"),
    [
        (
            (),
            "clips_can_be_written",
            "Unfit: the folder for clips cannot be written: Not a directory. Set LTX2_DATA_DIR",
        ),
        (
            (ODD_WORKER, "cuda"),
            "model_was_loaded",
            "Unfit: the model was not loaded: RuntimeError: CUDA error: no kernel",
        ),
    ],
)
def test_a_worker_that_another_may_replace_ends_and_says_why(
    tmp_path: Path, program: tuple[str, ...], check: str, reason: str
) -> None:
    if not program:
        (tmp_path / "data").write_text("this is no folder")
    with (
        control_plane() as plane,
        started_worker(tmp_path, plane, *program, LTX2_ENGINE="fake") as worker,
    ):
        worker.send("never", SMALL)
        assert worker.end() == 1
        (said,) = plane.unfit()
        assert (said.worker, said.check) == ("pod", check)
        assert said.reason is not None
        assert said.reason.startswith(reason)
        assert plane.taken == plane.posted == []
