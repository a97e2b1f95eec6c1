"""One job as all dialects show it: whoever made it, they agree, and what one withdraws is withdrawn for all."""

import base64
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from ltx2.dialects.openai_media import name_of
from ltx2.dialects.runware_bodies import own_id_of, uuid_of
from ltx2.media.probe import probe_video
from processes import Server

SEED, WIDTH, HEIGHT, FRAMES, FPS = 5, 128, 64, 9, 25
SIZE = {"width": WIDTH, "height": HEIGHT}
SECONDS = FRAMES / FPS
CLIP = SIZE | {"num_frames": FRAMES, "seed": SEED}
TASK = SIZE | {"taskType": "videoInference", "model": "lightricks:2@1", "duration": SECONDS, "fps": FPS}

# one for all, and nothing of TLS: reading the certificates takes longer than most answers do
http = httpx.Client(verify=False, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


def post(server: Server, path: str, body: Any) -> httpx.Response:
    return http.post(server.url + path, json=body).raise_for_status()


def runware(server: Server, prompt: str, seed: int = SEED, **fields: Any) -> list[str]:
    """The ids of the jobs of a task."""
    task = TASK | {"taskUUID": str(uuid4()), "positivePrompt": prompt, "seed": seed} | fields
    post(server, "/v1", [task])
    items = post(server, "/v1", [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]).json()["data"]
    return [own_id_of("job", item["videoUUID"]) for item in items]


Make = Callable[[Server, str], str]
MAKERS: Mapping[str, Make] = {
    "native": lambda server, prompt: post(server, "/generate", CLIP | {"prompt": prompt}).headers["X-Job-Id"],
    "kiapi": lambda server, prompt: post(
        server, "/v1/video/ltx2/generate", CLIP | {"prompt": prompt, "fps": FPS, "mode": "async"}
    ).json()["job_id"],
    "tasks": lambda server, prompt: post(server, "/v1/video/async_t2v", CLIP | {"prompt": prompt}).json()["task_id"],
    "runware": lambda server, prompt: runware(server, prompt)[0],
    "one of a batch": lambda server, prompt: runware(server, prompt, SEED - 1, numberResults=2)[1],
    "a WebM": lambda server, prompt: runware(server, prompt, outputFormat="WEBM")[0],
    "openai": lambda server, prompt: (
        post(
            server,
            "/v1/videos",
            {"prompt": prompt, "size": f"{WIDTH}x{HEIGHT}", "seconds": str(SECONDS), "seed": SEED},
        )
        .json()["id"]
        .replace("video_", "job_")
    ),
    "runpod": lambda server, prompt: post(server, "/v2/x/run", {"input": CLIP | {"prompt": prompt}}).json()["id"],
}


def views(server: Server, job_id: str) -> dict[str, Any]:
    """What each dialect answers when it is asked for a job; None where it knows none."""
    video, look = name_of(job_id), {"taskType": "getResponse", "taskUUID": uuid_of(job_id)}
    answers = {
        "kiapi": http.get(f"{server.url}/v1/jobs/{job_id}"),
        "tasks": http.get(f"{server.url}/v1/video/tasks/{job_id}"),
        "runware": http.post(f"{server.url}/v1", json=[look]),
        "openai": http.get(f"{server.url}/v1/videos/{video}"),
        "runpod": http.get(f"{server.url}/v2/x/status/{job_id}"),
    }
    is_known = {name: answer.status_code == 200 for name, answer in answers.items()}
    said: dict[str, Any] = {name: answer.json() for name, answer in answers.items()}
    runware = said["runware"]
    said["runware"] = (runware.get("data") or runware["errors"])[0]
    is_known["runware"] = said["runware"].get("code") != "taskNotFound"
    return {name: said[name] if is_known[name] else None for name in answers}


def states(server: Server, job_id: str) -> dict[str, str | None]:
    """A job's state in the words of each dialect."""
    return {name: said and said["status"] for name, said in views(server, job_id).items()}


OVER = {"kiapi": "succeeded", "tasks": "completed", "runware": "success", "openai": "completed", "runpod": "COMPLETED"}
WITHDRAWN = {"kiapi": "canceled", "tasks": "failed", "runware": "error", "openai": "failed", "runpod": "CANCELLED"}
UNKNOWN = dict.fromkeys(OVER)


def becomes(server: Server, job_id: str, wanted: Mapping[str, str | None]) -> None:
    """All dialects come to say this."""
    deadline = time.monotonic() + 10
    while (seen := states(server, job_id)) != wanted:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


@pytest.mark.parametrize("made_by", MAKERS)
def test_every_dialect_says_the_same_of_a_clip(fake_server: Server, made_by: str, tmp_path: Path) -> None:
    prompt = f"a lamp, by {made_by}"
    job_id = MAKERS[made_by](fake_server, prompt)
    becomes(fake_server, job_id, OVER)
    said = views(fake_server, job_id)
    native, kiapi = said["runpod"]["output"], said["kiapi"]
    assert {name: kiapi["params"][name] for name in (*CLIP, "fps", "prompt")} == {**CLIP, "fps": FPS, "prompt": prompt}
    facts = {"resolution": f"{WIDTH}x{HEIGHT}", "num_frames": FRAMES, "fps": FPS, "seed": SEED}
    assert {name: native[name] for name in facts} == facts
    assert (said["runware"]["seed"], said["openai"]["size"]) == (SEED, f"{WIDTH}x{HEIGHT}")
    assert float(said["openai"]["seconds"]) == SECONDS
    assert (said["openai"]["prompt"], said["openai"]["progress"], said["runware"]["progress"]) == (prompt, 100, 100)
    assert all(said[name]["fake"] for name in ("tasks", "runware", "openai"))
    assert (kiapi["result"]["fake"], kiapi["result"]["warnings"]) == (True, native["warnings"])
    files = {
        "kiapi": f"{fake_server.url}/v1/files/{kiapi['artifacts'][0]}/download",
        "tasks": said["tasks"]["url"],
        "runware": said["runware"]["videoURL"],
        "openai": f"{fake_server.url}/v1/videos/{name_of(job_id)}/content",
    }
    fetched = {name: http.get(url).raise_for_status() for name, url in files.items()}
    kind, _, encoded = native["video"].removeprefix("data:").partition(";base64,")
    (clip,) = {base64.b64decode(encoded), *(answer.content for answer in fetched.values())}
    assert {kind} == {answer.headers["Content-Type"] for answer in fetched.values()}
    assert (kiapi["result"]["video_bytes"], kind == "video/webm") == (len(clip), made_by == "a WebM")
    path = tmp_path / f"clip.{kind.removeprefix('video/')}"
    path.write_bytes(clip)
    film = probe_video(path)
    assert (film.width, film.height, film.num_frames, float(film.fps)) == (WIDTH, HEIGHT, FRAMES, FPS)


WAYS: Mapping[str, tuple[Make, str, str, Mapping[str, str | None]]] = {
    "cancel by kiapi": (MAKERS["runpod"], "POST", "/v1/jobs/{job}/cancel", WITHDRAWN),
    "cancel by RunPod": (MAKERS["one of a batch"], "POST", "/v2/x/cancel/{job}", WITHDRAWN),
    "delete by kiapi": (MAKERS["openai"], "DELETE", "/v1/jobs/{job}", UNKNOWN),
    "delete by OpenAI": (MAKERS["tasks"], "DELETE", "/v1/videos/{video}", UNKNOWN),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_one_dialect_withdraws_is_withdrawn_in_all(fake_server: Server, way: str) -> None:
    make, method, path, wanted = WAYS[way]
    job_id = make(fake_server, "seconds=60")
    assert {states(fake_server, job_id)[name] for name in ("tasks", "runware")} == {"processing"}
    where = path.format(job=job_id, video=name_of(job_id))
    http.request(method, fake_server.url + where).raise_for_status()
    becomes(fake_server, job_id, wanted)
    for other in http.get(f"{fake_server.url}/v1/jobs").json()["data"]:  # of its batch
        if other["status"] in ("queued", "running"):
            http.delete(f"{fake_server.url}/v1/jobs/{other['id']}")


def test_a_removed_clip_is_nowhere_to_be_had(fake_server: Server) -> None:
    job_id = MAKERS["runware"](fake_server, "a lamp")
    becomes(fake_server, job_id, OVER)
    said = views(fake_server, job_id)
    http.delete(f"{fake_server.url}/v1/files/{said['kiapi']['artifacts'][0]}").raise_for_status()
    for url in (said["tasks"]["url"], f"{fake_server.url}/v1/videos/{name_of(job_id)}/content"):
        assert http.get(url).status_code == 404
    assert states(fake_server, job_id) | {"runpod": None} == OVER | {"runpod": None}
