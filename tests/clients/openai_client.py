"""A user's program with the official openai library, unmodified: every part of its Videos API.

Runs in an environment of its own, where there is nothing but that library. Its one argument is JSON: where the servers
are, and what to send. It checks what it can, and prints as JSON what each part saw, or how it failed.
"""

import asyncio
import base64
import json
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InvalidWebhookSignatureError,
    NotFoundError,
    OpenAI,
    RateLimitError,
    omit,
)

CONFIG: dict[str, Any] = json.loads(sys.argv[1])
PHOTO = Path(CONFIG["photo"])
DATA_URL = "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()
SMALL: dict[str, Any] = {"seconds": "0.5", "size": "128x96"}
OUT = Path(CONFIG["out"])
NOBODYS = "video_" + "0" * 32

client = OpenAI(base_url=CONFIG["url"] + "/v1", api_key="none", max_retries=0)
keyed = OpenAI(base_url=CONFIG["keyed"] + "/v1", api_key="key-a", max_retries=0)


def made(of: OpenAI = client, **fields: Any) -> Any:
    """A video that is completed."""
    video = of.videos.create_and_poll(**{"prompt": "waves", "poll_interval_ms": 50} | SMALL | fields)
    assert video.status == "completed", video
    assert video.progress == 100
    return video


def creating() -> Any:
    asked = time.time()
    video = client.videos.create(prompt="waves seconds=0.3", model="sora-2", **SMALL)
    assert (video.object, video.model, video.seconds, video.size) == ("video", "sora-2", "0.5", "128x96")
    assert (video.status in ("queued", "in_progress"), video.error, video.completed_at) == (True, None, None)
    assert abs(video.created_at - asked) < 5
    raw = client.videos.with_raw_response.retrieve(video.id)
    after = int(raw.headers["openai-poll-after-ms"])
    done = client.videos.poll(video.id)
    assert (done.status, done.prompt, done.remixed_from_video_id) == ("completed", "waves seconds=0.3", None)
    assert done.completed_at >= done.created_at
    assert done.expires_at > asked + 3600
    assert client.videos.retrieve(video.id) == done
    assert "openai-poll-after-ms" not in client.videos.with_raw_response.retrieve(video.id).headers
    return {"after": after, "id": video.id}


def downloading() -> Any:
    video = made()
    types = {}
    for variant in ("video", "thumbnail", "spritesheet"):
        content = client.videos.download_content(video.id, variant=variant)
        content.write_to_file(OUT / variant)
        types[variant] = content.response.headers["content-type"]
    assert client.videos.download_content(video.id).read() == (OUT / "video").read_bytes()
    with client.videos.with_streaming_response.download_content(video.id) as streamed:
        assert b"".join(streamed.iter_bytes()) == (OUT / "video").read_bytes()
    return types


def images() -> Any:
    """An image in every way that the library can send one, and our fields in every shape that it can write."""
    ours: dict[str, Any] = {
        "seed": 7,
        "fps": 10,
        "num_frames": 9,
        "include_audio": False,
        "guidance": {"video_cfg": 3.5, "audio_rescale": 0},
        "negative_prompt": "5",
        "keyframes": [
            {"image": DATA_URL, "frame": 4, "strength": 0.5},
            {"image": DATA_URL, "frame": "last", "strength": 1},
        ],
        "upload_url": None,
    }
    size = {"size": "128x96", "seconds": None}
    reference = {"input_reference": {"image_url": DATA_URL}}
    numbered = {"0": {"image": DATA_URL, "frame": 3}, "1": {"image": DATA_URL, "frame": 5, "strength": 0.25}}
    as_json = {"extra_headers": {"Content-Type": "application/json"}}
    videos = {
        "path": made(input_reference=PHOTO, extra_body=ours | size),
        "file": made(input_reference=PHOTO.open("rb"), extra_body={"seed": 8}),
        "named": made(input_reference=("a.jpg", PHOTO.read_bytes(), "image/jpeg")),
        "data_url": made(extra_body=reference),
        "file_id": made(extra_body={"input_reference": {"file_id": CONFIG["file_id"]}}),
        "numbered": made(extra_body={"keyframes": numbered}),
        "json": made(extra_body=ours | size | reference, **as_json),
    }
    return {name: video.id for name, video in videos.items()}


def listing() -> Any:
    names = [made(keyed, prompt=f"number {number}").id for number in range(5)]
    assert [video.id for video in keyed.videos.list(limit=2, order="asc")] == names
    assert [video.id for video in keyed.videos.list(limit=2)] == names[::-1]
    assert [video.id for video in keyed.videos.list(order="desc", after=names[2])] == names[1::-1]
    page = keyed.videos.list(limit=5)
    assert (len(page.data), page.has_more, page.last_id, page.first_id) == (5, False, names[0], names[4])
    assert keyed.videos.list(limit=4).has_more
    end = keyed.videos.list(after=names[0])
    assert (end.data, end.has_more, end.last_id) == ([], False, None)
    other = keyed.with_options(api_key="key-b")
    assert other.videos.list().data == []
    return names


def deleting() -> Any:
    video = made(keyed)
    gone = keyed.videos.delete(video.id)
    assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
    for use in (keyed.videos.retrieve, keyed.videos.download_content, keyed.videos.delete):
        failed(NotFoundError, use, video.id)
    # one that runs is withdrawn
    running = keyed.videos.create(prompt="seconds=60", **SMALL)
    assert keyed.videos.delete(running.id).deleted
    return made(keyed).id


def remixing() -> Any:
    first = made(prompt="a lamp", model="any", input_reference=PHOTO, extra_body={"seed": 5})
    again = client.videos.remix(first.id, prompt="a candle")
    assert (again.remixed_from_video_id, again.prompt, again.model) == (first.id, "a candle", "any")
    again = client.videos.poll(again.id, poll_interval_ms=50)
    assert (again.status, again.seconds, again.size) == ("completed", first.seconds, first.size)
    assert again.remixed_from_video_id == first.id
    return {"first": first.id, "again": again.id}


def extending() -> Any:
    first = made(model="any", extra_body={"seed": 5})
    client.videos.download_content(first.id).write_to_file(OUT / "first.mp4")
    # its types have {"id": …} for video, but it would take that for a file
    named: dict[str, Any] = {"video": omit, "extra_body": {"video": {"id": first.id}}}
    longer = client.videos.extend(prompt="and a candle", seconds="1", **named)
    assert (longer.prompt, longer.model, longer.size) == ("and a candle", "any", first.size)
    longer = client.videos.poll(longer.id, poll_interval_ms=50)
    assert longer.status == "completed", longer
    client.videos.download_content(longer.id).write_to_file(OUT / "longer")
    half: dict[str, Any] = {"prompt": "x", "seconds": "0.5"}
    ours = {"video": {"id": first.id}, "side": "start", "seed": 1}
    before = client.videos.extend(video=omit, extra_body=ours, **half)
    film = (OUT / "first.mp4").read_bytes()
    by_file = client.videos.extend(video=("first.mp4", film, "video/mp4"), **half)
    retake = {"video": first.id, "retake": {"start": 0.1, "end": 0.3}, "enhance_prompt": True}
    others = {"loras": [{"name": "film", "scale": 0.5}], "retry_if": ["silent"], "include_audio": True}
    retaken = client.videos.create(prompt="anew", extra_body=retake | others)
    assert client.videos.poll(retaken.id, poll_interval_ms=50).prompt == "anew, in detail"
    for wrong in ({"video": omit, "extra_body": {"video": {"id": NOBODYS}}}, {"video": b"no video"}):
        error = failed(BadRequestError, client.videos.extend, **wrong, **half)
        assert error.param == "video", error
    error = failed(BadRequestError, client.videos.extend, prompt="x", seconds="0", **named)
    assert error.param == "seconds"
    error = failed(BadRequestError, client.videos.create, prompt="x", seconds="4", extra_body=retake)
    assert error.param == "seconds"
    for video in (before, by_file, retaken):
        assert client.videos.poll(video.id, poll_interval_ms=50).status == "completed"
    return {"by id": longer.id, "by file": by_file.id, "before": before.id, "retaken": retaken.id}


def failed(kind: type[Exception], use: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    """The error that something raises; it must be of this kind."""
    try:
        use(*arguments, **fields)
    except kind as error:
        return error
    raise AssertionError(f"{use} did not raise {kind}")


def errors() -> Any:
    seen = {}
    create = client.videos.create
    wrong: dict[str, Any] = {
        "size": {"size": "9999x9999"},
        "seconds": {"seconds": "0"},
        "input_reference": {"input_reference": b"no image"},
        "guidance.video_cfg": {"extra_body": {"guidance": {"video_cfg": "high"}}},
        "keyframes[1].frame": {
            "extra_body": {"keyframes": [{"image": "x", "frame": 1}, {"image": "x", "frame": "end"}]}
        },
        "seeed": {"extra_body": {"seeed": 1}},
        "webhook_url": {"extra_body": {"webhook_url": "http://127.0.0.1:9/"}},
    }
    for param, fields in wrong.items():
        error = failed(BadRequestError, create, **{"prompt": "x"} | fields)
        assert (error.param, error.type) == (param, "invalid_request_error"), error
        seen[param] = error.code
    error = failed(NotFoundError, client.videos.retrieve, NOBODYS)
    assert (error.code, error.request_id[:4]) == ("not_found", "req_")
    failed(NotFoundError, client.videos.edit, prompt="x", video=b"x")
    failed(NotFoundError, client.videos.create_character, name="x", video=b"x")
    failed(NotFoundError, client.videos.get_character, "x")
    error = failed(AuthenticationError, keyed.with_options(api_key="wrong").videos.list)
    assert (error.code, error.type) == ("invalid_api_key", "invalid_request_error")
    lost = client.videos.create_and_poll(prompt="fail=out_of_memory", poll_interval_ms=50, **SMALL)
    assert (lost.status, lost.error.code, lost.completed_at) == ("failed", "out_of_memory", None)
    failed(NotFoundError, client.videos.download_content, lost.id)
    failed(BadRequestError, client.videos.remix, lost.id, prompt="x")
    return seen


def crowding() -> Any:
    """One runs and two wait: no more are let in."""
    waiting = [keyed.videos.create(prompt="seconds=60", **SMALL) for _ in range(3)]
    error = failed(RateLimitError, keyed.videos.create, prompt="x", **SMALL)
    for video in waiting:
        keyed.videos.delete(video.id)
    assert (error.type, error.code) == ("rate_limit_error", "queue_full")
    return error.response.headers["retry-after"]


def repeating() -> Any:
    key = {"Idempotency-Key": "openai-once"}
    first, again = (client.videos.create(prompt="once", extra_headers=key, **SMALL) for _ in range(2))
    assert first.id == again.id
    error = failed(BadRequestError, client.videos.create, prompt="twice", extra_headers=key, **SMALL)
    assert error.param == "Idempotency-Key"
    return first.id


def webhooks() -> Any:
    calls: list[tuple[bytes, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append((self.rfile.read(int(self.headers["content-length"])), dict(self.headers)))
            # the first one is sent again
            self.send_response(500 if len(calls) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    receiver = HTTPServer(("127.0.0.1", CONFIG["hook_port"]), Handler)
    Thread(target=receiver.serve_forever, args=(0.02,), daemon=True).start()
    url = {"webhook_url": f"http://127.0.0.1:{CONFIG['hook_port']}/hook"}
    done = made(keyed, extra_body=url)
    lost = keyed.videos.create(prompt="fail=internal", extra_body=url, **SMALL)
    deadline = time.monotonic() + 20
    while len(calls) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    receiver.shutdown()
    events = [keyed.webhooks.unwrap(body, headers, secret=CONFIG["secret"]) for body, headers in calls]
    failed(
        InvalidWebhookSignatureError, keyed.webhooks.unwrap, calls[0][0] + b" ", calls[0][1], secret=CONFIG["secret"]
    )
    told = {event.data.id: event for event in events}
    assert set(told) == {done.id, lost.id}
    assert (told[done.id].type, told[lost.id].type) == ("video.completed", "video.failed")
    assert told[done.id].created_at == keyed.videos.retrieve(done.id).completed_at
    assert all(event.object == "event" and event.id == event.data.id.replace("video", "evt") for event in events)
    repeated = [event for event in events if event.data.id == events[0].data.id]
    assert len(repeated) == 2
    return sorted({event.id for event in events})


def asynchronous() -> Any:
    async def work() -> str:
        async with AsyncOpenAI(base_url=CONFIG["url"] + "/v1", api_key="none", max_retries=0) as of:
            video = await of.videos.create_and_poll(prompt="x", input_reference=PHOTO, poll_interval_ms=50, **SMALL)
            assert video.status == "completed"
            content = await of.videos.download_content(video.id)
            assert content.content[4:8] == b"ftyp"
            newest = [listed.id async for listed in of.videos.list(limit=1) if listed.id == video.id]
            assert newest == [video.id]
            await of.videos.delete(video.id)
            return str(video.id)

    return asyncio.run(work())


def snippet() -> Any:
    """What docs/clients.md says."""
    with redirect_stdout(StringIO()) as printed:
        runpy.run_path(CONFIG["snippet"])
    return printed.getvalue()


def with_a_model() -> Any:
    tiny = OpenAI(base_url=CONFIG["tiny"] + "/v1", api_key="none")
    video = made(tiny, size="96x64", seconds="0.4", input_reference=PHOTO, extra_body={"num_inference_steps": 2})
    tiny.videos.download_content(video.id).write_to_file(OUT / "tiny")
    return video.model_dump()


PARTS = (
    creating,
    downloading,
    images,
    listing,
    deleting,
    remixing,
    extending,
    errors,
    crowding,
    repeating,
    webhooks,
    asynchronous,
    snippet,
    with_a_model,
)

seen: dict[str, Any] = {}
for part in PARTS:
    began = time.monotonic()
    try:
        seen[part.__name__] = {"saw": part()}
    except Exception:  # noqa: BLE001 - each part is a test of its own
        seen[part.__name__] = {"failed": traceback.format_exc()}
    seen[part.__name__]["seconds"] = round(time.monotonic() - began, 2)
json.dump(seen, sys.stdout)
