"""How the worker begins and ends in the SDK's own loop, and what it does when its parts do what they should not."""

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from control_plane import control_plane
from worker_process import LARGE, SMALL, WHISPERED, WorkerProcess, config_at, running_worker, started_worker

from ltx2.serverless.answers import FAILED

ODD_WORKER = str(Path(__file__).parent / "odd_worker.py")


@pytest.fixture(scope="module", autouse=True)
def unfit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WorkerProcess]]:
    """A worker that cannot write, and one that cannot load. They end while the other tests run."""
    disk, cuda = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("cuda")
    (disk / "data").write_text("this is no folder")
    with (
        control_plane() as of_disk,
        control_plane() as of_cuda,
        started_worker(disk, of_disk, LTX2_ENGINE="fake") as no_disk,
        started_worker(cuda, of_cuda, ODD_WORKER, "cuda") as no_cuda,
    ):
        for worker in (no_disk, no_cuda):
            worker.send("never", SMALL)
        yield {"disk": no_disk, "cuda": no_cuda}


@pytest.fixture(scope="module", autouse=True)
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker whose results are odd. The last test that has it ends it."""
    with (
        control_plane() as plane,
        started_worker(tmp_path_factory.mktemp("odd"), plane, ODD_WORKER, "loads") as worker,
    ):
        yield worker
        assert plane.unreadable == []
        assert all(len(plane.results(taken.job)) == 1 for taken in plane.taken)


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
        refused = worker.ask("refused", SMALL, s3Config=config_at(store) | {"bucketName": "none"})["output"]
        assert refused["video"].startswith("data:video/mp4;base64,")
        assert "there is no bucket of this name" in refused["warnings"][-1]

        worker.send("in hand", SMALL | {"prompt": "seconds=2", "num_inference_steps": 50})
        worker.wait_for(lambda: '"requestId": "in hand", "message": "Started."' in worker.log)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            worker.process.send_signal(number)
        worker.send("too late", SMALL)
        assert worker.end() == 0  # though what it asked RunPod is still unanswered
        assert plane.results("in hand")[0].body["output"]["video_url"]
        assert [taken.job for taken in plane.taken] == ["ours", "refused", "in hand"]
        assert len(plane.results("in hand")) == 1
        updates = plane.progress("in hand")
        steps = [update.body["output"]["step"] for update in updates]
        assert steps
        assert steps == sorted(set(steps))
        assert all(update.answered < plane.results("in hand")[0].seconds for update in updates)
        assert worker.left == []
        assert worker.log.count("the worker ends") == 1
        for told in (WHISPERED, "AKIA", "X-Amz-", "a lamp", "Traceback", "Task was destroyed"):
            assert told not in worker.log


def test_a_worker_that_is_told_to_end_while_it_loads_does(tmp_path: Path) -> None:
    with control_plane() as plane, started_worker(tmp_path, plane, LTX2_ENGINE="fake", LTX2_MODEL="load=60") as worker:
        worker.wait_for((tmp_path / "data" / "work").is_dir)
        worker.process.send_signal(signal.SIGTERM)
        # and not -SIGTERM: the first process of a container never hears what it does not listen for
        assert worker.end() == 128 + signal.SIGTERM


def test_odd_results_are_answered_once_and_validly(odd: WorkerProcess) -> None:
    body = odd.ask("odd", SMALL | {"prompt": "odd"})
    assert body == {"output": {"seconds": [None, None], "warnings": ["half: \ufffd"], "\ufffd": None, "path": None}}
    body = odd.ask("nothing", SMALL | {"prompt": "nothing"})
    assert body == {"error": FAILED, "output": {"error_code": "internal"}}
    for job, asked, size in (("much", SMALL | {"prompt": "much"}, "25.0 MB"), ("large", LARGE, "33.9 MB")):
        body = odd.ask(job, asked)
        assert body["output"]["error_code"] == "media_too_large"
        assert f"the result has {size}, and 9.5 MB can be sent" in body["error"]
        assert "BUCKET_ENDPOINT_URL" in body["error"]


def test_an_idle_worker_that_is_told_to_end_takes_no_job_with_it(odd: WorkerProcess) -> None:
    odd.ask("before", SMALL)
    taken = len(odd.plane.taken)
    while odd.process.poll() is None:
        odd.process.send_signal(signal.SIGTERM)
    assert odd.end() in (0, -signal.SIGTERM)  # at its very end Python listens no more
    assert odd.log.count("the worker ends") == 1
    assert "Traceback" not in odd.log
    assert len(odd.plane.taken) == taken
    assert odd.left == []


def test_a_model_that_no_restart_can_mend_is_the_answer_of_every_job(tmp_path: Path) -> None:
    with control_plane() as plane, running_worker(tmp_path, plane, ODD_WORKER, "refuses") as worker:
        for job in ("one", "two"):
            body = worker.ask(job, SMALL)
            assert body["error"] == "there is no licence for this model (buy one)"
            assert body["output"] == {"error_code": "not_ready"}
            assert "stopPod" not in body
    assert plane.unfit() == []


@pytest.mark.parametrize(
    ("name", "check", "reason"),
    [
        ("disk", "clips_can_be_written", "the folder for clips cannot be written: Not a directory. Set LTX2_DATA_DIR"),
        ("cuda", "model_was_loaded", "the model was not loaded: RuntimeError: CUDA error: no kernel"),
    ],
)
def test_a_worker_that_another_may_replace_ends_and_says_why(
    unfit: dict[str, WorkerProcess], name: str, check: str, reason: str
) -> None:
    worker = unfit[name]
    assert worker.end() == 1
    (said,) = worker.plane.unfit()
    assert (said.worker, said.check) == ("pod", check)
    assert said.reason is not None
    assert said.reason.startswith(f"Unfit: {reason}")
    assert worker.plane.taken == worker.plane.posted == []
