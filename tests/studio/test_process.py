"""The engine in a process of its own: what crosses, how it ends, and that the next request never notices."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from ltx2.engine import CancelFlag, Clip, Engine, Progress
from ltx2.errors import (
    Canceled,
    Internal,
    LTX2Error,
    NotReady,
    OutOfMemory,
    StorageFull,
    TimedOut,
    UnsupportedMedia,
    WorkerCrashed,
)
from ltx2.media.probe import probe_video
from ltx2.request import GenerationRequest, Keyframe
from ltx2.settings import Settings
from ltx2.studio import child, process
from ltx2.studio.job import Order
from ltx2.studio.process import ENGINES, SECONDS_TO_HEED, ProcessEngine
from ltx2.studio.studio import Studio
from processes import ROOT, environment

FAKE = ENGINES["fake"]
LOCAL = ENGINES["local"]
PROMPTLY = 5.0
"""Seconds; far below what is waited for otherwise."""


def make(prompt: str = "x", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": prompt, "width": 64, "height": 64, "num_frames": 9, "seed": 1} | fields)


def generate(engine: Engine, request: GenerationRequest, media: Mapping[str, bytes] | None = None) -> Clip:
    return engine.generate(request, media or {}, lambda _progress: None, CancelFlag())


def works(engine: Engine) -> bool:
    clip = generate(engine, make())
    is_whole = probe_video(clip.path).num_frames == 9
    clip.path.unlink()
    return is_whole


def until(happened: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def files(folder: Path) -> list[Path]:
    """All but the note of which process it is."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "pid"]


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextmanager
def running(folder: Path, build: str = FAKE, heed: float = SECONDS_TO_HEED, **settings: Any) -> Iterator[ProcessEngine]:
    before = set(threading.enumerate())
    engine = ProcessEngine(Settings(data_dir=folder, **settings), build, seconds_to_heed=heed)
    try:
        yield engine
    finally:
        engine.close()
    assert engine.pid is None
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name == "model process"}
    assert not (folder / "engine" / "pid").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(Settings(data_dir=folder), FAKE)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: ProcessEngine, folder: Path) -> Iterator[ProcessEngine]:
    yield shared
    assert works(shared)
    assert files(folder) == []


@dataclass
class Generation:
    """One in a thread of its own."""

    engine: ProcessEngine
    request: GenerationRequest
    media: Mapping[str, bytes] = field(default_factory=dict)
    flag: CancelFlag = field(default_factory=CancelFlag)
    seen: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        thread = ThreadPoolExecutor(1)
        self.made = thread.submit(self.engine.generate, self.request, self.media, self.seen.append, self.flag)
        thread.shutdown(wait=False)

    def wait_for(self, phase: str) -> None:
        until(lambda: any(progress.phase == phase for progress in self.seen))

    def error(self) -> BaseException | None:
        return self.made.exception(timeout=20)


def test_a_clip_and_its_progress_cross(engine: ProcessEngine, folder: Path) -> None:
    contract: Engine = engine
    contract.load()
    seen: list[Progress] = []
    clip = contract.generate(make(num_inference_steps=2), {}, seen.append, CancelFlag())
    assert files(folder) == [clip.path]
    assert clip.path.is_absolute()
    facts = probe_video(clip.path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (64, 64, 9, clip.fps)
    steps = ["denoising 0/2", "denoising 1/2", "denoising 2/2"]
    assert [str(progress) for progress in seen] == ["loading", "encoding", *steps, "decoding", "muxing"]
    assert list(clip.seconds) == ["loading", "encoding", "denoising", "decoding", "muxing"]
    clip.path.unlink()


def test_errors_cross_with_their_field_and_hint(engine: ProcessEngine) -> None:
    before = engine.pid
    file = BytesIO()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedMedia, match="2 frames") as caught:
        generate(
            engine, make(keyframes=(Keyframe(image="image_start", frame="first"),)), {"image_start": file.getvalue()}
        )
    assert (caught.value.field, caught.value.hint) == ("image_start", "send one without animation")
    for what, error in (("memory", OutOfMemory), ("storage_full", StorageFull), ("timeout", TimedOut)):
        with pytest.raises(error):
            generate(engine, make(f"fail={what}"))
    with pytest.raises(OutOfMemory) as out:
        generate(engine, make("fail=memory"))
    assert out.value.hint is not None
    assert engine.pid == before


def test_a_bug_is_an_internal_error_without_its_words(engine: ProcessEngine) -> None:
    engine.load()
    before = engine.pid
    with pytest.raises(Internal) as caught:
        generate(engine, make("fail=bug"))
    assert "asked" not in str(caught.value)
    assert works(engine)
    assert engine.pid == before


def test_a_gpu_that_is_lost_takes_the_process_with_it(engine: ProcessEngine) -> None:
    engine.load()
    before, restarts = engine.pid, engine.status().restarts
    with pytest.raises(Internal):
        generate(engine, make("fail=cuda"))
    assert engine.status().restarts == restarts + 1
    assert works(engine)
    assert engine.pid != before


def test_cancelling_takes_effect_at_once_and_keeps_the_process(engine: ProcessEngine) -> None:
    engine.load()
    before = engine.pid
    for _ in range(20):
        generation = Generation(engine, make("seconds=30"))
        generation.wait_for("denoising")
        started = time.monotonic()
        generation.flag.set()
        generation.flag.set()
        assert isinstance(generation.error(), Canceled)
        assert time.monotonic() - started < PROMPTLY
    flag = CancelFlag()
    flag.set()
    with pytest.raises(Canceled):
        engine.generate(make("seconds=30"), {}, lambda _progress: None, flag)
    assert engine.pid == before


def test_a_cancel_that_comes_late_is_not_for_the_next(engine: ProcessEngine) -> None:
    outcomes = set()
    for number in range(40):
        flag = CancelFlag()
        timer = threading.Timer(number * 0.0005, flag.set)
        timer.start()
        try:
            engine.generate(make(), {}, lambda _progress: None, flag).path.unlink()
            outcomes.add("made")
        except Canceled:
            outcomes.add("cancelled")
        flag.set()
        assert works(engine)
        timer.join()
    assert outcomes == {"made", "cancelled"}


@pytest.mark.parametrize(
    ("what", "how"),
    [("exit", "with status 3"), ("systemexit", "with status 1"), ("segfault", "by the signal SIGSEGV")],
)
def test_a_crash_is_told_and_what_it_left_is_removed(engine: ProcessEngine, folder: Path, what: str, how: str) -> None:
    engine.load()
    restarts = engine.status().restarts
    partial = folder / "engine" / "work" / ".clip.mp4.part"
    partial.touch()
    with pytest.raises(WorkerCrashed, match=f"ended {how} in the middle") as caught:
        generate(engine, make(f"fail={what}"))
    assert "/" not in str(caught.value)
    assert not partial.exists()
    status = engine.status()
    assert (status.restarts, status.loaded, status.ready) == (restarts + 1, (), True)
    assert engine.pid is None


def test_a_process_that_is_killed_is_taken_for_one_that_took_too_much_memory(engine: ProcessEngine) -> None:
    generation = Generation(engine, make("seconds=30"))
    generation.wait_for("denoising")
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    error = generation.error()
    assert isinstance(error, WorkerCrashed)
    assert "SIGKILL" in error.message
    assert "memory" in (error.hint or "")


def test_a_process_that_is_killed_while_nobody_uses_it_is_replaced(engine: ProcessEngine) -> None:
    engine.load()
    restarts = engine.status().restarts
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: engine.status().restarts == restarts + 1)
    assert engine.status().loaded == ()
    assert works(engine)


def test_a_process_that_is_killed_while_it_loads_is_not_ready(tmp_path: Path) -> None:
    with running(tmp_path) as engine, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(engine.load)
        until(lambda: engine.pid is not None)
        os.kill(engine.pid or 0, signal.SIGKILL)
        with pytest.raises(NotReady, match="by the signal SIGKILL while it was loading"):
            loading.result(timeout=20)
        assert not engine.status().ready
        assert engine.status().restarts == 1
        engine.load()
        assert engine.status().ready


def test_ctrl_c_is_for_the_server(engine: ProcessEngine) -> None:
    generation = Generation(engine, make("seconds=0.3"))
    generation.wait_for("denoising")
    assert engine.pid is not None
    assert os.getsid(engine.pid) == engine.pid
    os.kill(engine.pid, signal.SIGINT)
    assert generation.error() is None
    generation.made.result().path.unlink()


def test_a_listener_that_fails_does_not_disturb_the_next(engine: ProcessEngine) -> None:
    def fail(progress: Progress) -> None:
        if progress.phase == "denoising":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.generate(make("seconds=5"), {}, fail, CancelFlag())
    assert works(engine)


def test_large_media_cross(engine: ProcessEngine) -> None:
    generate(engine, make(), {"unused": bytes(80 * 2**20)}).path.unlink()


def test_what_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with running(tmp_path, deadline_seconds=0.5) as engine:
        engine.load()
        before = engine.pid
        with pytest.raises(TimedOut, match=r"longer than the 0\.5 seconds") as caught:
            generate(engine, make("fail=hang"))
        assert "LTX2_DEADLINE_SECONDS" in (caught.value.hint or "")
        assert before is not None
        assert not is_alive(before)
        assert engine.status().restarts == 1
        engine.load()
        assert works(engine)
        stopped = Generation(engine, make("fail=hang"))
        stopped.wait_for("denoising")
        stopped.flag.set()
        assert isinstance(stopped.error(), Canceled)
        assert engine.status().restarts == 2
        assert files(tmp_path) == []


def test_the_deadline_is_of_one_generation(tmp_path: Path) -> None:
    with running(tmp_path, heed=0.4, deadline_seconds=0.4) as engine:
        engine.load()
        before = engine.pid
        quick = Generation(engine, make("seconds=30"))
        quick.wait_for("denoising")
        quick.flag.set()
        assert isinstance(quick.error(), Canceled)
        assert works(engine)
        time.sleep(0.5)
        assert engine.pid == before


LARGE = {"image_start": bytes(1_500_000)}
"""More than a socket holds."""


def test_what_does_not_read_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with running(tmp_path, deadline_seconds=0.5) as engine:
        engine.load()
        before = engine.pid or 0
        os.kill(before, signal.SIGSTOP)
        started = time.monotonic()
        generation = Generation(engine, make(), LARGE)
        assert isinstance(generation.error(), TimedOut)
        assert time.monotonic() - started < PROMPTLY
        assert not is_alive(before)
        engine.load()
        assert works(engine)


@pytest.mark.parametrize("reads", [True, False])
def test_what_does_not_heed_a_cancel_is_killed_long_before_the_deadline(tmp_path: Path, reads: bool) -> None:
    with running(tmp_path, heed=0.3) as engine:
        engine.load()
        before = engine.pid or 0
        if not reads:
            os.kill(before, signal.SIGSTOP)
        generation = Generation(engine, make("fail=hang"), {} if reads else LARGE)
        if reads:
            generation.wait_for("denoising")
        started = time.monotonic()
        generation.flag.set()
        assert isinstance(generation.error(), Canceled)
        assert 0.2 < time.monotonic() - started < PROMPTLY
        assert not is_alive(before)
        assert works(engine)


def test_what_hangs_while_it_loads_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with running(tmp_path, model="load=60", deadline_seconds=0.3) as engine:
        pids = []
        for restarts in (1, 2):
            generation = Generation(engine, make())
            until(lambda: engine.pid is not None)
            pids.append(engine.pid or 0)
            error = generation.error()
            assert isinstance(error, TimedOut)
            assert "not loaded within the 0.3 seconds" in error.message
            assert "LTX2_DEADLINE_SECONDS" in (error.hint or "")
            assert (engine.status().ready, engine.status().restarts) == (False, restarts)
        assert pids[0] != pids[1]
        assert not any(is_alive(pid) for pid in pids)


def test_a_load_that_no_request_waits_for_has_no_deadline(tmp_path: Path) -> None:
    with running(tmp_path, model="load=0.6", deadline_seconds=0.3) as engine:
        engine.load()
        assert works(engine)
        assert engine.status().restarts == 0


def test_a_load_that_a_request_has_ended_says_so(tmp_path: Path) -> None:
    with running(tmp_path, model="load=60", deadline_seconds=0.3) as engine, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(engine.load)
        until(lambda: engine.pid is not None)
        assert isinstance(Generation(engine, make()).error(), TimedOut)
        with pytest.raises(NotReady, match="while it was loading") as caught:
            loading.result(timeout=20)
        assert "memory" not in (caught.value.hint or "")


def test_a_request_is_cancelled_at_once_while_the_server_loads(tmp_path: Path) -> None:
    with running(tmp_path, model="load=60") as engine, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(engine.load)
        until(lambda: engine.pid is not None)
        before = engine.pid
        for _ in range(2):
            generation = Generation(engine, make())
            generation.wait_for("loading")
            started = time.monotonic()
            generation.flag.set()
            assert isinstance(generation.error(), Canceled)
            assert time.monotonic() - started < PROMPTLY
        assert engine.pid == before
        assert not loading.done()
        engine.close()
        with pytest.raises(NotReady, match="being shut down"):
            loading.result(timeout=20)


def test_a_job_is_cancelled_at_once_while_the_server_loads(tmp_path: Path) -> None:
    async def live() -> None:
        settings = Settings(data_dir=tmp_path, model="load=60")
        studio = Studio(settings, ProcessEngine(settings, FAKE))
        await studio.start()
        try:
            async with asyncio.timeout(20):
                job = await studio.submit(make(), {}, Order())
                async for now, _ in studio.watch(job.id, job.order.owner):
                    if now.progress.phase == "loading":
                        break
                await studio.cancel(job.id, job.order.owner)
                with pytest.raises(Canceled):
                    await studio.result(job)
        finally:
            await studio.close()

    started = time.monotonic()
    asyncio.run(live())
    assert time.monotonic() - started < PROMPTLY
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "loading"])


def test_everybody_who_waits_for_a_model_hears_why_it_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "engine").touch()
    with running(tmp_path) as engine, ThreadPoolExecutor(2) as threads:
        loadings = [threads.submit(engine.load) for _ in range(2)]
        until(lambda: engine.pid is not None)
        errors = [Generation(engine, make()).error(), *(loading.exception(timeout=20) for loading in loadings)]
        assert [type(error) for error in errors] == [NotReady] * 3
        assert all("the folder for clips cannot be made" in str(error) for error in errors)
        (tmp_path / "engine").unlink()
        engine.load()
        assert engine.status().ready


def test_a_model_that_loads_is_not_idle(tmp_path: Path) -> None:
    with running(tmp_path, model="load=0.4", residency="idle:1") as engine:
        engine._ttl_seconds = 0.2
        with ThreadPoolExecutor(1) as thread:
            loading = thread.submit(engine.load)
            until(lambda: engine.pid is not None)
            left = Generation(engine, make())
            left.wait_for("loading")
            left.flag.set()
            assert isinstance(left.error(), Canceled)
            assert engine.status().idle_seconds == 0
            loading.result(timeout=20)
        assert engine.status().loaded == ("fake",)
        until(lambda: engine.pid is None)
        assert engine.status().restarts == 0


def test_status_at_each_moment(tmp_path: Path) -> None:
    with running(tmp_path) as engine:
        status = engine.status()
        assert (status.loaded, status.resident_gb, status.fake, status.ready) == ((), 0.0, True, False)
        assert (status.ttl_seconds, status.restarts) == (None, 0)
        assert status.budget_gb > 0.1
        assert engine.pid is None
        engine.load()
        loaded = engine.pid
        status = engine.status()
        assert (status.loaded, status.ready) == (("fake",), True)
        until(lambda: engine.status().idle_seconds > 0.05)
        generation = Generation(engine, make("seconds=0.2"))
        started = time.monotonic()
        generation.wait_for("denoising")
        assert engine.status().idle_seconds == 0
        assert generation.error() is None
        assert engine.status().idle_seconds < time.monotonic() - started - 0.1
        assert engine.pid == loaded
    assert ProcessEngine(Settings(data_dir=tmp_path), LOCAL).status().fake is False
    assert list(files(tmp_path)) == [generation.made.result().path]


def test_a_model_for_one_clip_goes_after_it(tmp_path: Path) -> None:
    with running(tmp_path, residency="transient") as engine:
        assert engine.status().ttl_seconds == 0
        assert engine.status().ready
        clip = generate(engine, make())
        assert engine.pid is None
        status = engine.status()
        assert (status.loaded, status.ready, status.restarts) == ((), True, 0)
        assert clip.path.exists()
        assert clip.seconds["loading"] > 0.05
        with pytest.raises(WorkerCrashed):
            generate(engine, make("fail=exit"))
        assert engine.status().restarts == 1


def test_an_idle_model_goes_when_its_time_has_come(tmp_path: Path) -> None:
    with running(tmp_path, residency="idle:1") as engine:
        assert engine.status().ttl_seconds == 1
        engine._ttl_seconds = 0.3
        engine.load()
        assert works(engine)
        pid = engine.pid
        assert generate(engine, make("seconds=0.5")).path.exists()  # busy is not idle
        assert engine.pid == pid
        until(lambda: engine.pid is None)
        status = engine.status()
        assert (status.loaded, status.ready, status.restarts) == ((), True, 0)
        assert works(engine)


def test_a_request_that_comes_as_an_idle_model_goes_is_answered(tmp_path: Path) -> None:
    with running(tmp_path, residency="idle:1") as engine:
        engine._ttl_seconds = 0.05
        for number in range(6):
            assert works(engine)
            time.sleep(0.0485 + 0.0006 * number)
        assert engine.status().restarts == 0


def test_a_model_that_cannot_be_loaded_is_tried_again_by_the_next_request(tmp_path: Path) -> None:
    (tmp_path / "engine").touch()
    with running(tmp_path) as engine:
        for _ in range(2):
            with pytest.raises(NotReady, match="the folder for clips cannot be made") as caught:
                generate(engine, make())
            assert "LTX2_DATA_DIR" in (caught.value.hint or "")
            assert engine.pid is None
            assert (engine.status().ready, engine.status().restarts) == (False, 0)
        (tmp_path / "engine").unlink()
        assert works(engine)
        assert engine.status().ready


def test_an_engine_that_fails_to_load_with_a_bug_is_not_ready(tmp_path: Path) -> None:
    with running(tmp_path, "ltx2.fake:Nothing") as engine, pytest.raises(NotReady, match="the server's log"):
        engine.load()


def test_closing_ends_a_generation_and_nothing_starts_after_it(tmp_path: Path) -> None:
    with running(tmp_path) as engine:
        generation = Generation(engine, make("seconds=30"))
        generation.wait_for("denoising")
        pid = engine.pid
        started = time.monotonic()
        with ThreadPoolExecutor(3) as threads:
            for closed in [threads.submit(engine.close) for _ in range(3)]:
                closed.result(timeout=20)
        assert isinstance(generation.error(), WorkerCrashed)
        assert time.monotonic() - started < PROMPTLY
        assert pid is not None
        assert not is_alive(pid)
        assert engine.status().restarts == 0
        with pytest.raises(NotReady, match="being shut down"):
            generate(engine, make())
        with pytest.raises(NotReady, match="being shut down"):
            engine.load()


def test_closing_ends_what_loads(tmp_path: Path) -> None:
    with running(tmp_path) as engine, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(engine.load)
        until(lambda: engine.pid is not None)
        engine.close()
        with pytest.raises(NotReady, match="being shut down"):
            loading.result(timeout=20)


def test_closing_ends_even_what_hears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SECONDS_TO_END", 0.2)
    with running(tmp_path, residency="idle:100") as engine:
        engine.load()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)


def script(body: str, folder: Path) -> subprocess.Popen[str]:
    """A server in small, started in a folder of its own, with settings that name folders from there."""
    program = f"""
import sys; sys.path[0] = {str(ROOT)!r}
from pathlib import Path
from ltx2.engine import CancelFlag
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.process import ProcessEngine
engine = ProcessEngine(Settings(data_dir=Path("below")), {FAKE!r})
def generate(prompt, tell):
    request = GenerationRequest(prompt=prompt, width=64, height=64, num_frames=9)
    return engine.generate(request, {{}}, tell, CancelFlag())
{body}
"""
    environ = environment(folder)
    return subprocess.Popen([sys.executable, "-c", program], cwd=folder, env=environ, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("prompt", ["seconds=60", "fail=hang"])
def test_the_process_ends_with_the_server_even_if_that_is_killed(tmp_path: Path, prompt: str) -> None:
    server = script(
        f"generate({prompt!r}, lambda p: p.step == 0 and p.steps and print(engine.pid, flush=True))", tmp_path
    )
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    assert is_alive(pid)
    server.kill()
    until(lambda: not is_alive(pid), seconds=PROMPTLY)
    server.stdout.close()
    server.wait()


def stand_in(comment: str) -> subprocess.Popen[bytes]:
    program = f"import time; print(flush=True); time.sleep(60)  # {comment}"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # before it runs, it has no command line
    return process


def test_a_process_that_outlived_its_server_is_killed_before_the_next_starts(tmp_path: Path) -> None:
    server = script("generate('seconds=60', lambda p: p.steps and print(engine.pid, flush=True))", tmp_path)
    assert server.stdout is not None
    with server.stdout:
        left = int(server.stdout.readline())
    os.kill(left, signal.SIGSTOP)  # as deaf as one that waits for a GPU and lets no other thread run
    server.kill()
    server.wait()
    with running(tmp_path / "below") as engine:
        assert is_alive(left)
        engine.load()
        assert not is_alive(left)
        assert (tmp_path / "below" / "engine" / "pid").read_text() == f"{engine.pid}\n"


@pytest.mark.parametrize(("comment", "is_ours"), [("from ltx2.studio.child import main", True), ("else", False)])
def test_only_a_process_of_ours_is_killed(tmp_path: Path, comment: str, is_ours: bool) -> None:
    note = tmp_path / "engine" / "pid"
    note.parent.mkdir()
    with running(tmp_path) as engine, stand_in(comment) as other:
        try:
            note.write_text(f"{other.pid}\n")
            engine.load()
            assert is_alive(other.pid) is not is_ours
            assert note.read_text() == f"{engine.pid}\n"
        finally:
            other.kill()


@pytest.mark.parametrize("noted", ["", "-1", "0", "many", "4194305", "9" * 5000, "\xff"])
def test_a_note_that_names_no_process_disturbs_nobody(tmp_path: Path, noted: str) -> None:
    note = tmp_path / "pid"
    note.write_text(noted, "latin-1")
    process.end_left(note)


def test_the_process_is_told_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told.py").write_text(
        "from ltx2.errors import NotReady\n"
        "def engine(settings):\n"
        "    raise NotReady(f'{settings.api_keys} {settings.webhook_secret} {settings.database_url}')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    secrets = {"api_keys": "one,two", "webhook_secret": "whsec_abc", "database_url": "sqlite:///x"}
    with running(tmp_path, "told:engine", **secrets) as engine, pytest.raises(NotReady, match="None None None"):
        engine.load()


def test_a_process_that_nobody_can_listen_to_is_not_left(tmp_path: Path) -> None:
    before = psutil.Process().children()
    open_before = psutil.Process().num_fds()
    with running(tmp_path) as engine:
        threading.stack_size(2**47)  # more than there is, so that no thread can be started
        try:
            with pytest.raises(NotReady, match="no process could be started"):
                engine.load()
        finally:
            threading.stack_size(0)
        assert engine.pid is None
        assert psutil.Process().children() == before
        assert psutil.Process().num_fds() == open_before
        assert works(engine)


def test_the_server_never_imports_torch_and_may_be_started_anywhere(tmp_path: Path) -> None:
    body = "print(generate('x', lambda p: None).path.parent, 'torch' in sys.modules, engine.close())"
    with script(body, tmp_path) as server:
        said, _ = server.communicate(timeout=20)
    assert said.split() == [str(tmp_path / "below" / "engine" / "work"), "False", "None"]


def test_a_real_model_and_a_cancel_while_it_loads(tmp_path: Path) -> None:
    with running(tmp_path, LOCAL, device="cpu") as engine:
        generation = Generation(engine, make())
        generation.wait_for("loading")
        generation.flag.set()
        assert isinstance(generation.error(), Canceled)
        pid = engine.pid
        assert (engine.status().loaded, engine.status().ready) == ((), False)  # it was not waited for
        clip = generate(engine, make())
        assert engine.pid == pid  # loading went on
        facts = probe_video(clip.path)
        assert (facts.width, facts.height, facts.num_frames, facts.audio_codec) == (64, 64, 9, "aac")
        status = engine.status()
        assert status.loaded == (clip.model,) == ("tiny",)
        assert status.ready
        assert status.resident_gb > 0


def test_a_missing_model_is_told_as_the_model_s_own_code_tells_it(tmp_path: Path) -> None:
    with running(tmp_path, LOCAL, model="/nonexistent") as engine:
        with pytest.raises(LTX2Error, match="no model is called 'nonexistent'") as caught:
            engine.load()
        assert isinstance(caught.value, NotReady)
        assert caught.value.hint is not None
        assert not engine.status().ready
