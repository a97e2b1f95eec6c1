"""Servers whose Ray cluster is their own, ends, or is not there."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clusters import (
    LONG,
    Generation,
    actors,
    below,
    generate,
    is_alive,
    kill,
    make,
    ray_cluster,
    ray_machine,
    running,
    until,
    works,
)

from ltx2.errors import EngineDown, NotReady, WorkerCrashed
from ltx2.media.probe import probe_video
from processes import ROOT, Server, environment, free_port, running_server, wait_until_warm


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


@pytest.mark.soak
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
