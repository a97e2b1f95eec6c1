"""The worker in the SDK's own loop, against a control plane on loopback: one valid answer for every job."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from control_plane import control_plane
from worker_process import LARGE, SMALL, WHISPERED, WorkerProcess, config_at, running_worker

from ltx2.media.bucket import expires_at
from ltx2.media.probe import probe_sound, probe_video
from ltx2.serverless.delivery import FOLDER, name_of


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, store: str) -> Iterator[WorkerProcess]:
    """One worker with a volume and no bucket for all tests that do not need their own. In the end it must be well."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "volume" / FOLDER).mkdir(parents=True)
    old = folder / "volume" / FOLDER / name_of("of a year ago", "mp4")
    old.touch()
    os.utime(old, (0, 0))
    settings = {"LTX2_VOLUME_DIR": str(folder / "volume"), "LTX2_URL_ALLOW": urlsplit(store).netloc}
    with (
        control_plane() as plane,
        running_worker(folder, plane, LTX2_ENGINE="fake", LTX2_LOG_LEVEL="DEBUG", **settings) as running,
    ):
        yield running
        assert running.ask("the last one", SMALL)["output"]["num_frames"] == 9
        running.wait_for(lambda: not old.exists())
    # nothing came later than the answers
    assert all(len(plane.results(taken.job)) == (taken.job != "stopped") for taken in plane.taken)
    assert running.left == []
    for told in (WHISPERED, "AKIATHEIRS", "X-Amz-", "a lamp", "a long note", "base64", store):
        assert told not in running.log


def test_a_job_is_answered_with_its_clip(worker: WorkerProcess, tmp_path: Path) -> None:
    body = worker.ask("normal", SMALL | {"seed": 5})
    assert body.keys() == {"output"}
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(body["output"].pop("video").split(",")[1]))
    assert probe_video(tmp_path / "clip.mp4").num_frames == 9
    assert (body["output"]["seed"], body["output"]["model"]) == (5, "fake")
    assert not [name for name in body["output"] if name.endswith(("_url", "_path"))]


@pytest.mark.parametrize(
    ("asked", "error", "output"),
    [
        (
            SMALL | {"width": 65},
            "width: Input should be a multiple of 2",
            {"error_code": "invalid_request", "field": "width"},
        ),
        (SMALL | {"half \ud83d": 1}, "Input should be a valid string", {"error_code": "invalid_request"}),
        (SMALL | {"prompt": "fail=bug"}, "the generation failed", {"error_code": "internal"}),
        (SMALL | {"prompt": "fail=systemexit"}, "the job failed", {"error_code": "internal"}),
    ],
    ids=["width", "half a character", "bug", "exit"],
)
def test_what_is_wrong_is_told_once_and_plainly(
    worker: WorkerProcess, asked: object, error: str, output: dict[str, str], request: pytest.FixtureRequest
) -> None:
    job = f"wrong-{request.node.callspec.id}"
    body = worker.ask(job, asked)
    assert body.keys() == {"error", "output"}
    assert body["error"].startswith(error)
    assert body["output"].items() >= output.items()
    for word in ("Traceback", "File ", str(worker.folder), "hostname"):
        assert word not in str(body)


def test_a_worker_that_runs_out_of_memory_twice_asks_to_be_replaced(worker: WorkerProcess) -> None:
    starved = SMALL | {"prompt": "fail=memory"}
    assert "stopPod" not in worker.ask("memory", starved)
    body = worker.ask("memory-again", starved)
    assert body["stopPod"] is True
    assert body["output"] == {"error_code": "out_of_memory"}
    assert body["error"].startswith("the model ran out of memory at 64x64")


def test_a_stopped_job_ends_within_a_step_and_the_next_one_works(worker: WorkerProcess) -> None:
    worker.send("stopped", SMALL | {"prompt": "seconds=80000"})
    worker.wait_for(lambda: any(taken.job == "stopped" for taken in worker.plane.taken))
    worker.wait_for(lambda: '"requestId": "stopped", "message": "Started."' in worker.log)
    worker.plane.stops.put("stopped")
    assert worker.ask("after the stopped one", SMALL)["output"]["num_frames"] == 9


def test_progress_comes_in_order_and_never_after_the_result(worker: WorkerProcess) -> None:
    plane, made = worker.plane, worker.log.count("direct.py")
    plane.prompt.clear()
    worker.send("slowly", SMALL | {"prompt": "seconds=3.5", "num_inference_steps": 40})
    worker.wait_for(lambda: bool(plane.progress("slowly")))
    worker.wait_for(lambda: worker.log.count("direct.py") > made)
    # The clip is there, and the first update is still on its way: neither a second one nor the result has been sent.
    assert len(plane.progress("slowly")) == 1
    assert plane.results("slowly") == []
    plane.prompt.set()
    worker.answer("slowly")
    (update,) = plane.progress("slowly")
    assert update.answered is not None
    assert update.answered < plane.results("slowly")[0].seconds
    assert update.body["output"].keys() == {"phase", "step", "steps"}


def test_a_large_clip_lies_on_the_volume_or_in_the_bucket_of_its_job(worker: WorkerProcess, store: str) -> None:
    output = worker.ask("../../an odd name", LARGE | {"seed": 3})["output"]
    path = Path(output["audio_path"])
    assert path.parent == worker.folder / "volume" / FOLDER
    assert path.stat().st_size > 25_000_000
    assert probe_sound(path).seconds == pytest.approx(265)
    assert "audio" not in output

    uploaded = worker.ask("uploaded", LARGE | {"seed": 3}, s3Config=config_at(store))["output"]
    got = httpx.get(uploaded["audio_url"])
    assert got.headers["content-type"] == "audio/wav"
    assert got.content == path.read_bytes()
    assert uploaded["url_expires_at"] == expires_at(uploaded["audio_url"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert not uploaded.keys() & {"audio", "audio_path"}


def test_the_bucket_of_a_job_is_no_internal_place(worker: WorkerProcess) -> None:
    body = worker.ask("inside", LARGE, s3Config=config_at("http://169.254.169.254/"))
    assert body["output"] == {"error_code": "url_not_allowed", "field": "s3Config.endpointUrl"}


def test_pings_carry_the_worker_and_its_jobs(worker: WorkerProcess) -> None:
    worker.wait_for(lambda: bool(worker.plane.pings_of("pod")))
    assert worker.plane.pings_of("another") == []
