"""The engine on a Ray cluster: real Ray on this machine, real actors, and what becomes of each clip when they die.

One cluster is started for all tests but those that end one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from ltx2.engine import CancelFlag, Clip, Engine, Progress
from ltx2.errors import (
    Canceled,
    EngineDown,
    Internal,
    InvalidRequest,
    NotReady,
    OutOfMemory,
    TimedOut,
    UnsupportedMedia,
    WorkerCrashed,
)
from ltx2.fleet import actor as actor_module
from ltx2.fleet.actor import PREFIX, own_folder
from ltx2.fleet.cluster import FAKE, LOCAL, SECONDS_TO_HEED, ClusterEngine
from ltx2.media.probe import probe_sound, probe_video
from ltx2.request import GenerationRequest, Keyframe
from ltx2.settings import Settings
from processes import ROOT, Server, environment, free_port, running_server, wait_until_warm

LONG = 90.0
"""Seconds that are enough for anything here, on any machine."""
SHORT = 8.0
"""Seconds that a hang may last here."""
PRIVATE = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
"""A test has no secret to keep from other users of this machine, and need not wait for them."""


def make(prompt: str = "x", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": prompt, "width": 64, "height": 64, "num_frames": 9, "seed": 1} | fields)


def generate(engine: Engine, request: GenerationRequest, media: Mapping[str, bytes] | None = None) -> Clip:
    return engine.generate(request, media or {}, lambda _progress: None, CancelFlag())


def works(engine: Engine) -> bool:
    clip = generate(engine, make())
    is_whole = probe_video(clip.path).num_frames == 9
    clip.path.unlink()
    return is_whole


def until(happened: Callable[[], bool], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below(pid: int) -> list[int]:
    """A process, and what it and those have started."""
    return [pid, *(process.pid for process in psutil.Process(pid).children(recursive=True))]


def actors(pids: list[int]) -> list[int]:
    """Those of these processes that are actors of ours."""
    found = []
    for pid in pids:
        try:
            if any("ray::Actor" in word for word in psutil.Process(pid).cmdline()):
                found.append(pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
    return found


@dataclass
class Head:
    """A cluster on this machine, started as its operator would."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        kill(self.process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the power fails. Asked to end, Ray would wait half a minute for whoever is still connected."""
    if process.poll() is None:
        family = below(process.pid)
        for pid in reversed(family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for pid in family:
            until(lambda pid=pid: not is_alive(pid))


def ray_start(folder: Path, cpus: int, *options: str) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-gpus=0", *options]
    program += [f"--num-cpus={cpus}", f"--object-store-memory={200 * 2**20}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(program, env=environment(folder) | PRIVATE, **quiet)


@contextmanager
def ray_cluster(port: int, cpus: int = 4) -> Iterator[Head]:
    # the sockets in this folder must have short names
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = ("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
        head = Head(port, ray_start(Path(folder), cpus, *options, "--disable-usage-stats"))
        try:
            until((Path(folder) / "ray_current_cluster").exists)
            yield head
        finally:
            head.kill()


@contextmanager
def ray_machine(head: Head, folder: Path, cpus: int = 2) -> Iterator["subprocess.Popen[bytes]"]:
    """Another machine in a cluster; really this one, once more."""
    process = ray_start(folder, cpus, f"--address={head.address}")
    try:
        yield process
    finally:
        kill(process)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_cluster(free_port(), cpus=8) as running:
        yield running


@contextmanager
def running(
    folder: Path, address: str | None, build: str = FAKE, heed: float = SECONDS_TO_HEED, **settings: Any
) -> Iterator[ClusterEngine]:
    """An engine of its own. Nothing of it is left."""
    more = {"data_dir": folder, "ray_address": address, "device": "cpu"} | settings
    before = set(threading.enumerate())
    engine = ClusterEngine(Settings(**more), build, seconds_to_heed=heed)
    try:
        yield engine
    finally:
        engine.close()
    assert [path.name for path in folder.rglob("*") if path.is_file() and path.name != "ray-token"] == []
    until(lambda: not {thread for thread in set(threading.enumerate()) - before if "Ray" in thread.name})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def shared(folder: Path, head: Head) -> Iterator[ClusterEngine]:
    with running(folder, head.address, ray_max_actors=2, residency="idle:3") as engine:
        engine.load()
        yield engine


@pytest.fixture
def engine(shared: ClusterEngine, folder: Path) -> Iterator[ClusterEngine]:
    yield shared
    assert works(shared)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@dataclass
class Generation:
    """One in a thread of its own."""

    engine: Engine
    request: GenerationRequest
    flag: CancelFlag = field(default_factory=CancelFlag)
    seen: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        thread = ThreadPoolExecutor(1)
        self.made = thread.submit(self.engine.generate, self.request, {}, self.seen.append, self.flag)
        thread.shutdown(wait=False)

    def wait_for(self, phase: str) -> None:
        until(lambda: any(progress.phase == phase for progress in self.seen))

    def clip(self) -> Clip:
        return self.made.result(timeout=LONG)

    def error(self) -> BaseException | None:
        return self.made.exception(timeout=LONG)


def test_a_clip_and_its_progress_cross(engine: ClusterEngine, folder: Path) -> None:
    contract: Engine = engine
    contract.load()
    seen: list[Progress] = []
    clip = contract.generate(make(num_inference_steps=2), {}, seen.append, CancelFlag())
    assert [path for path in folder.rglob("*") if path.is_file()] == [clip.path]
    facts = probe_video(clip.path)
    assert (facts.width, facts.height, facts.num_frames, facts.audio_codec) == (64, 64, 9, "aac")
    denoising = [Progress("denoising", step, 2) for step in range(3)]
    assert seen == [Progress("loading"), Progress("encoding"), *denoising, Progress("decoding"), Progress("muxing")]
    assert (clip.model, clip.seed, clip.steps) == ("fake", 1, 2)
    status = contract.status()
    assert (status.loaded, status.seats, status.fake, status.ready, status.fault) == (("fake",), 2, True, True, None)
    clip.path.unlink()


def test_media_cross_and_so_do_large_clips(engine: ClusterEngine) -> None:
    picture = BytesIO()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(picture, "PNG")
    assert len(picture.getvalue()) > 2**20
    keyframe = Keyframe(image="image_start", frame=0)
    generate(engine, make(keyframes=(keyframe,)), {"image_start": picture.getvalue()}).path.unlink()
    with pytest.raises(UnsupportedMedia) as caught:
        generate(engine, make(keyframes=(keyframe,)), {"image_start": b"no picture"})
    assert caught.value.field == "image_start"
    clip = generate(engine, make(num_frames=1201, fps=10, output={"format": "wav"}))
    assert clip.path.stat().st_size > actor_module.CHUNK_BYTES
    assert float(probe_sound(clip.path).seconds) == pytest.approx(120.1)
    clip.path.unlink()


def test_an_error_keeps_what_it_says(engine: ClusterEngine) -> None:
    with pytest.raises(OutOfMemory, match="fail=out_of_memory"):
        generate(engine, make("fail=out_of_memory"))
    with pytest.raises(InvalidRequest) as caught:
        generate(engine, make("fail=nonsense"))
    assert caught.value.field == "prompt"
    assert engine.status().restarts == 0


def test_a_bug_is_ours_and_is_logged_here(head: Head, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = ""

    def is_logged() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "RuntimeError: the prompt asked for a bug" in said

    with running(tmp_path, head.address) as engine:
        with pytest.raises(Internal) as caught:
            generate(engine, make("a secret lamp fail=bug"))
        assert caught.value.message == "the generation failed; the server's log says why"
        until(is_logged)
    assert "ltx2.fleet.actor: actor 1: a generation failed" in said
    assert "secret" not in said


def test_a_cancel_is_heeded_within_a_step(engine: ClusterEngine) -> None:
    generation = Generation(engine, make("seconds=600", num_inference_steps=2))
    generation.wait_for("denoising")
    generation.flag.set()
    assert isinstance(generation.error(), Canceled)
    set_before = CancelFlag()
    set_before.set()
    with pytest.raises(Canceled):
        engine.generate(make(), {}, lambda _progress: None, set_before)


@pytest.mark.parametrize("what", ["exit", "segfault", "systemexit", "cuda"])
def test_an_actor_that_dies_is_replaced(engine: ClusterEngine, what: str) -> None:
    before = engine.status().restarts
    with pytest.raises(Internal if what == "cuda" else WorkerCrashed) as caught:
        generate(engine, make(f"fail={what}"))
    if what != "cuda":
        assert caught.value.hint is not None
    assert works(engine)
    assert engine.status().restarts == before + 1


def test_an_actor_that_dies_while_nobody_uses_it_is_replaced(engine: ClusterEngine, head: Head) -> None:
    before = engine.status()
    for pid in actors(below(head.process.pid)):
        os.kill(pid, signal.SIGKILL)
    until(lambda: engine.status().restarts > before.restarts and engine.status().loaded == ("fake",))


def test_two_run_at_the_same_time_and_a_third_waits(engine: ClusterEngine, head: Head) -> None:
    two = [Generation(engine, make("seconds=600")) for _ in range(2)]
    for generation in two:
        generation.wait_for("denoising")
    until(lambda: len(actors(below(head.process.pid))) == 2)
    third = Generation(engine, make("third"))
    fourth = Generation(engine, make("fourth"))
    for generation in (third, fourth):
        generation.wait_for("queued")
    fourth.flag.set()
    assert isinstance(fourth.error(), Canceled)
    assert [progress.phase for progress in third.seen] == ["queued"]
    assert engine.status().idle_seconds == 0
    two[0].flag.set()
    clip = third.clip()
    assert clip.total_seconds < clip.seconds["loading"] + LONG
    clip.path.unlink()
    two[1].flag.set()
    assert [type(generation.error()) for generation in two] == [Canceled, Canceled]
    until(lambda: len(actors(below(head.process.pid))) == 1)  # one is kept, the other one not for long
    assert engine.status().loaded == ("fake",)


def test_what_hangs_is_killed_at_its_deadline(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, deadline_seconds=SHORT) as engine:
        engine.load()
        with pytest.raises(TimedOut, match="8 seconds allowed here"):
            generate(engine, make("fail=hang"))
        until(lambda: engine.status().loaded == ("fake",))  # to wait for an actor has a limit, too
        assert works(engine)
        assert engine.status().restarts == 1


def test_an_actor_that_does_not_heed_a_cancel_is_killed(head: Head, tmp_path: Path) -> None:
    others = set(actors(below(head.process.pid)))
    with running(tmp_path, head.address, heed=0.5) as engine:
        for is_stopped in (False, True):
            generation = Generation(engine, make("fail=hang"))
            generation.wait_for("denoising")
            if is_stopped:
                for pid in set(actors(below(head.process.pid))) - others:
                    os.kill(pid, signal.SIGSTOP)
            generation.flag.set()
            assert isinstance(generation.error(), Canceled)
            assert works(engine)


def test_a_cancel_need_not_wait_for_the_model_nor_for_the_cluster(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, model="load=600") as engine:
        at_once = Generation(engine, make())
        at_once.flag.set()
        assert isinstance(at_once.error(), Canceled)
        generation = Generation(engine, make())
        generation.wait_for("loading")
        assert not engine.status().ready
        generation.flag.set()
        assert isinstance(generation.error(), Canceled)


def test_where_there_is_no_room_a_job_waits_and_is_told_so(
    head: Head, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    late = pytest.raises(TimedOut, match="no actor was ready within the 14 seconds")
    with running(tmp_path, head.address, device="cuda:1", deadline_seconds=14) as engine, late:
        generate(engine, make())
    assert capfd.readouterr().err.count("waits for a place in the Ray cluster") == 1


def test_an_actor_that_dies_while_it_loads_fails_one_try(head: Head, tmp_path: Path) -> None:
    others = set(actors(below(head.process.pid)))
    with running(tmp_path, head.address, model="load=600") as engine:
        generation = Generation(engine, make())
        generation.wait_for("loading")
        for pid in set(actors(below(head.process.pid))) - others:
            os.kill(pid, signal.SIGKILL)
        assert isinstance(generation.error(), WorkerCrashed)


def test_a_missing_model_is_told_as_the_models_own_code_tells_it(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, LOCAL, model="/nonexistent") as engine:
        with pytest.raises(NotReady, match="no model is called 'nonexistent'") as caught:
            engine.load()
        assert caught.value.hint is not None
        status = engine.status()
        assert (status.ready, status.recovers) == (False, False)
        assert status.fault is not None
        assert "nonexistent" in status.fault


def test_machines_without_the_libraries_are_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = "import sys\nif 'default_worker' in ' '.join(sys.orig_argv): sys.modules['pydantic_settings'] = None\n"
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(hidden)
    monkeypatch.setenv("PYTHONPATH", str(code))
    data = tmp_path / "data"
    data.mkdir()
    with running(data, None) as engine, pytest.raises(NotReady, match="no actor can be started") as caught:
        engine.load()
    assert not isinstance(caught.value, EngineDown)
    assert engine.status().fault == caught.value.message
    assert not engine.status().recovers


def test_nothing_is_told_a_secret(tmp_path: Path) -> None:
    engine = ClusterEngine(Settings(data_dir=tmp_path, api_keys="one", webhook_secret="two", runpod_api_key="three"))
    told = engine._start.settings
    assert (told.api_keys, told.webhook_secret, told.runpod_api_key) == (None, None, None)


def test_to_close_ends_what_is_in_hand_and_may_be_done_again(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, ray_min_actors=0) as engine:
        engine.load()
        assert (engine.status().loaded, engine.status().ready) == ((), True)
        generation = Generation(engine, make("seconds=600"))
        generation.wait_for("denoising")
        closing = [threading.Thread(target=engine.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        error = generation.error()
        for thread in closing:
            thread.join()
        assert isinstance(error, WorkerCrashed)
        assert "shut down" in error.message
        with pytest.raises(NotReady, match="is being shut down"):
            generate(engine, make())


def test_nothing_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys; sys.path[0] = {str(ROOT)!r}
from pathlib import Path
from ltx2.engine import CancelFlag
from ltx2.fleet.cluster import FAKE, ClusterEngine
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
engine = ClusterEngine(Settings(data_dir=Path("data"), device="cpu"), FAKE)
def begun():
    print("begun", "torch" in sys.modules, "ray" in sys.modules, flush=True)
request = GenerationRequest(prompt="seconds=600", width=64, height=64, num_frames=9)
engine.generate(request, {{}}, lambda p: p.step == 0 and p.steps and begun(), CancelFlag())
"""
    server = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == "begun False False\n"
        family = below(server.pid)
        (actor,) = actors(family)
        assert psutil.Process(actor).nice() == psutil.Process().nice()
        server.kill()
        server.wait()
        for pid in family:
            until(lambda pid=pid: not is_alive(pid))


def test_a_machine_or_a_cluster_that_is_gone_is_found_again(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, f"127.0.0.1:{port}") as engine, contextlib.ExitStack() as machines:
        with pytest.raises(EngineDown) as caught:
            engine.load()
        assert caught.value.hint is not None
        with pytest.raises(EngineDown):
            generate(engine, make())
        status = engine.status()
        assert (status.ready, status.recovers, status.fault) == (False, True, "the Ray cluster cannot be reached")
        with ray_cluster(port, cpus=0) as first, ray_machine(first, tmp_path) as machine:
            until(lambda: engine.status().ready)
            assert engine.status().fault is None
            assert works(engine)
            generation = Generation(engine, make("seconds=600"))
            generation.wait_for("denoising")
            kill(machine)
            assert isinstance(generation.error(), WorkerCrashed)
            generation = Generation(engine, make("seconds=600"))
            generation.wait_for("queued")
            machines.enter_context(ray_machine(first, tmp_path))
            generation.wait_for("denoising")
            first.kill()
            machines.close()  # where only the head is gone, actors go on for a minute
            assert isinstance(generation.error(), WorkerCrashed)
            until(lambda: engine.status().recovers)
            with pytest.raises(EngineDown):
                generate(engine, make())
        with ray_cluster(port):
            until(lambda: engine.status().ready)
            assert works(engine)
            assert engine.status().restarts > 0


def test_bounds_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ClusterEngine(Settings(data_dir=tmp_path, ray_min_actors=3, ray_max_actors=2))
    assert caught.value.field == "LTX2_RAY_MAX_ACTORS"
    with pytest.raises(InvalidRequest) as caught:
        ClusterEngine(Settings(data_dir=tmp_path, ray_address="ray://127.0.0.1:10001"))
    assert caught.value.field == "LTX2_RAY_ADDRESS"


def test_without_ray_the_server_says_what_to_install(tmp_path: Path) -> None:
    """An interpreter that finds every package but Ray, as where the extra was not asked for."""
    packages = Path(next(path for path in sys.path if (Path(path) / "ray").is_dir()))
    others = tmp_path / "packages"
    others.mkdir()
    for entry in packages.iterdir():
        if entry.name != "ray" and not entry.name.startswith("ray-"):
            (others / entry.name).symlink_to(entry)
    program = f"import sys, runpy; sys.path.remove({str(packages)!r}); sys.path.append({str(others)!r}); "
    program += (
        "sys.argv[0] = 'server.py'; sys.path[0] = sys.argv.pop(1); runpy.run_path('server.py', run_name='__main__')"
    )
    port = str(free_port())
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), "--engine", "ray", "--port", port],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    said = done.stderr.splitlines()[-1]
    assert (done.returncode, said) == (2, "Ray is not installed (pip install 'ray>=2.60', or this project with [ray])")


def test_an_actor_removes_what_those_that_were_killed_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, left, young = own_folder(), tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}young"
    long_ago = time.time() - 3600
    for folder in (left, young):
        folder.mkdir()
        (folder / "lock").touch()
    for folder in (living, left):
        os.utime(folder / "lock", (long_ago, long_ago))
    assert {path.name for path in tmp_path.iterdir()} == {living.name, left.name, young.name}
    mine = own_folder()
    assert {path.name for path in tmp_path.iterdir()} == {living.name, young.name, mine.name}


@pytest.fixture(scope="module")
def ray_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "LTX2_RAY_MIN_ACTORS": "2",
        "LTX2_RAY_MAX_ACTORS": "2",
        "LTX2_DEVICE": "cpu",
        "LTX2_QUEUE_LIMIT": "200",
        "OMP_NUM_THREADS": "1",
    }
    with running_server(tmp_path_factory.mktemp("server"), settings, engine="ray") as server:
        wait_until_warm(server)
        yield server
        family = below(server.process.pid)
        assert len(actors(family)) == 2
    for pid in family:
        until(lambda pid=pid: not is_alive(pid))
    assert server.leftovers() == []


def test_fifty_jobs_of_three_dialects_survive_an_actor_that_is_killed(ray_server: Server, tmp_path: Path) -> None:
    http = httpx.Client(base_url=ray_server.url, timeout=LONG * 4)
    size = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}
    callers = ThreadPoolExecutor(8)

    def asked(number: int) -> httpx.Response:
        return http.post("/generate", json=size | {"prompt": f"a lamp {number}"})

    waiting = [callers.submit(asked, number) for number in range(10)]
    for number in range(20):
        kiapi = {"prompt": f"a door {number}", "mode": "async"}
        http.post("/v1/video/ltx2/generate", json=size | kiapi).raise_for_status()
        openai = {"prompt": f"a river {number}", "size": "64x64", "num_frames": 9, "num_inference_steps": 2}
        http.post("/v1/videos", json=openai).raise_for_status()

    def jobs() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = http.get("/v1/jobs", params={"limit": 100}).json()["data"]
        return listed

    until(lambda: sum(job["status"] == "succeeded" for job in jobs()) >= 5)
    os.kill(actors(below(ray_server.process.pid))[0], signal.SIGKILL)
    for call in waiting:
        call.result(LONG * 4).raise_for_status()
    until(lambda: all(job["status"] not in ("queued", "running") for job in jobs()), LONG * 4)
    ended = jobs()
    assert [job["status"] for job in ended] == ["succeeded"] * 50
    assert ray_server.clips() == 50
    for number, path in enumerate(sorted((ray_server.data_dir / "files").iterdir())):
        clip = tmp_path / f"{number}.mp4"
        clip.symlink_to(path)
        facts = probe_video(clip)
        assert (facts.width, facts.height, facts.num_frames) == (64, 64, 9)
    assert http.get("/health").json()["warm"]
    callers.shutdown()
    http.close()
