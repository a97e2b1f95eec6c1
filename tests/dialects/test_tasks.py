"""The tasks dialect: its bodies by themselves, and its document followed line by line over HTTP."""

import asyncio
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from ltx2.dialects.base import STATUS
from ltx2.dialects.forms import read_form
from ltx2.dialects.tasks import ImageToVideo, TextToVideo, owns, render_error, to_request, view
from ltx2.errors import Failure, InvalidRequest, LTX2Error, NotFound, OutOfMemory, QueueFull, StorageFull, Unauthorized
from ltx2.media.probe import probe_video
from ltx2.request import GenerationRequest, Guidance, Keyframe
from ltx2.studio.job import Job, Order
from processes import Server, running_server, wait_until_warm

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9}
BOUNDARY = "multipart/form-data; boundary=b"
SOMEWHERE = Request({"type": "http", "headers": [], "path": "/v1/video/t2v", "method": "POST"})
NOBODYS = "job_" + "0" * 32

# one for all, and nothing of TLS: reading the certificates takes longer than most answers do
http = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


# by itself


def test_what_is_absent_is_as_the_document_says_and_steps_and_guidance_as_the_recipe_says() -> None:
    request, sources = to_request(TextToVideo(prompt="a lamp"))
    assert (request.width, request.height, request.num_frames, request.fps, request.seed) == (768, 512, 121, 25.0, 42)
    assert (request.num_inference_steps, request.negative_prompt, request.guidance) == (None, None, Guidance())
    assert (request.mode, request.include_audio, sources) == ("T2V+Audio", True, {})


def test_the_example_of_the_document_is_understood() -> None:
    example = {"prompt": "A cinematic wide shot of a sunset over the ocean...", "height": 512, "width": 768}
    example |= {"num_frames": 121, "frame_rate": 24.0, "num_inference_steps": 40, "seed": 42}
    request, _ = to_request(TextToVideo.model_validate(example))
    assert (request.num_frames, request.fps, request.num_inference_steps) == (121, 24.0, 40)


def test_the_four_scales_go_to_both_streams() -> None:
    scales = {"cfg_scale_video": 3.0, "stg_scale_video": 1, "cfg_scale_audio": 7.0, "modality_scale": 2.5}
    body = TextToVideo.model_validate({"prompt": "x"} | scales)
    expected = Guidance(video_cfg=3.0, audio_cfg=7.0, video_stg=1.0, video_modality=2.5, audio_modality=2.5)
    assert to_request(body)[0].guidance == expected


def test_an_image_is_the_first_frame() -> None:
    fields = {"prompt": "x", "image": b"bytes", "width": "64", "frame_rate": "24", "modality_scale": "1.5"}
    request, sources = to_request(ImageToVideo.model_validate(fields))
    assert request.keyframes == (Keyframe(image="image", frame="first"),)
    assert (request.mode, request.width, request.fps, sources) == ("I2V", 64, 24.0, {"image": b"bytes"})
    assert request.guidance.audio_modality == 1.5


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " "},
        {"prompt": "\0"},
        {"width": 96},
        {"height": 0},
        {"width": "64"},
        {"width": True},
        {"num_frames": 0},
        {"frame_rate": float("nan")},
        {"seed": -1},
        {"seed": 1.5},
        {"cfg_scale_video": float("inf")},
        {"webhook_url": 1},
    ],
)
def test_json_is_not_converted_and_wrong_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TextToVideo.model_validate({"prompt": "x"} | fields)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("width", "64", 64),
        ("seed", str(2**63 - 1), 2**63 - 1),
        ("frame_rate", "24.0", 24.0),
        ("frame_rate", "24", 24.0),
        ("frame_rate", "2.4e1", 24.0),
        ("modality_scale", ".5", 0.5),
    ],
)
def test_plain_numbers_are_read_from_the_texts_of_forms(name: str, text: str, value: float) -> None:
    read = getattr(ImageToVideo.model_validate({"prompt": "64", "image": b"x", name: text}), name)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "fields",
    [
        {"frame_rate": "nan"},
        {"frame_rate": "2_4"},
        {"frame_rate": "24 "},
        {"frame_rate": "1e999"},
        {"frame_rate": "0x18"},
        {"frame_rate": "٢٤"},
        {"frame_rate": "+24"},
        {"frame_rate": "true"},
        {"seed": "4.5"},
        {"seed": "4.0"},
        {"seed": "9" * 5000},
        {"seed": "-1"},
        {"width": "96"},
        {"width": "6_4"},
        {"width": " 64 "},
        {"width": "64.0"},
        {"width": "64e0"},
        {"width": "٦٤"},
        {"width": "\uff16\uff14"},
        {"width": "64\n"},
    ],
)
def test_texts_of_forms_are_numbers_only_where_they_are_numbers(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ImageToVideo.model_validate({"prompt": "x", "image": b"x"} | fields)


def test_what_is_unknown_is_ignored() -> None:
    assert TextToVideo.model_validate({"prompt": "x", "enhance": True}) == TextToVideo(prompt="x")


def job(**facts: Any) -> Job:
    request = GenerationRequest(prompt="x", seed=1)
    facts = {"state": "queued"} | facts
    return Job(id=NOBODYS, order=Order(), request=request, inputs={}, created_at=0.0, **facts)


def test_a_task_is_processing_until_it_is_completed_or_failed() -> None:
    failure = Failure("out_of_memory", "the model ran out of memory", hint="ask for fewer frames")
    assert view(job(), "url") == {"status": "processing"}
    assert view(job(state="running"), "url") == {"status": "processing"}
    assert view(job(state="succeeded"), "url") == {"status": "completed", "url": "url"}
    assert view(job(state="succeeded", fake=True), "url") == {"status": "completed", "url": "url", "fake": True}
    failed = {"status": "failed", "error": "the model ran out of memory (ask for fewer frames)"}
    assert view(job(state="failed", failure=failure), "url") == failed
    assert view(job(state="canceled"), "url") == {"status": "failed", "error": "the task was canceled"}


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (InvalidRequest("too wide", field="width"), 422, b'{"detail":"width: too wide"}'),
        (OutOfMemory("it is full", hint="wait"), 503, b'{"detail":"it is full (wait)"}'),
        (NotFound("nothing"), 404, b'{"detail":"nothing"}'),
    ],
)
def test_an_error_is_one_text(error: LTX2Error, status: int, body: bytes) -> None:
    answer = render_error(error, SOMEWHERE)
    assert (answer.status_code, answer.body) == (status, body)


def test_errors_keep_their_headers_and_the_status_of_the_framework() -> None:
    assert "Retry-After" in render_error(QueueFull("full"), SOMEWHERE).headers
    assert render_error(Unauthorized("no key"), SOMEWHERE).headers["WWW-Authenticate"] == "Bearer"
    assert render_error(InvalidRequest("no such method"), SOMEWHERE, 405).status_code == 405
    assert set(STATUS) >= {"invalid_request", "out_of_memory"}


@pytest.mark.parametrize("path", ["/v1/video/t2v", "/v1/video/async_i2v", "/v1/video/tasks/x", "/outputs/x.mp4"])
def test_these_paths_are_of_this_dialect(path: str) -> None:
    assert owns(path)


@pytest.mark.parametrize("path", ["/", "/generate", "/v1/video/ltx2/generate", "/v1/video/t2v2", "/outputsx"])
def test_other_paths_are_not(path: str) -> None:
    assert not owns(path)


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def test_a_form_that_finds_no_room_on_the_way_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    async def receive() -> Message:
        large = part("image", bytes(2 * 2**20), '; filename="x"')
        return {"type": "http.request", "body": large + b"--b--\r\n", "more_body": False}

    headers = [(b"content-type", BOUNDARY.encode())]
    with pytest.raises(StorageFull):
        asyncio.run(read_form(Request({"type": "http", "headers": headers}, receive), (), "image"))


# over HTTP


def ask(server: Server, path: str, **fields: Any) -> httpx.Response:
    return http.post(f"{server.url}/v1/video/{path}", json=SMALL | fields)


def send(server: Server, path: str, image: bytes | None, **fields: Any) -> httpx.Response:
    texts = {name: str(value) for name, value in (SMALL | fields).items()}
    # a form without a file would be sent as another kind of form
    files: dict[str, Any] = {name: (None, value) for name, value in texts.items()}
    if image is not None:
        files["image"] = ("photo.jpg", image, "image/jpeg")
    return http.post(f"{server.url}/v1/video/{path}", files=files)


def post(server: Server, path: str, body: bytes, content_type: str = BOUNDARY) -> httpx.Response:
    return http.post(f"{server.url}/v1/video/{path}", content=body, headers={"Content-Type": content_type})


def poll(server: Server, task_id: str, key: str = "") -> dict[str, Any]:
    """What a task has become."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = http.get(f"{server.url}/v1/video/tasks/{task_id}", headers={"X-API-Key": key})
        assert answer.status_code == 200
        state: dict[str, Any] = answer.json()
        if state["status"] != "processing":
            return state
        assert state == {"status": "processing"}
        time.sleep(0.02)
    raise AssertionError("it is processing for ever")


def detail(answer: httpx.Response, status: int) -> str:
    """The text of an error; it must have this dialect's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["detail"]
    return str(body["detail"])


@pytest.fixture(scope="module")
def photo() -> bytes:
    return (Path(__file__).parent.parent / "data" / "photo.jpg").read_bytes()


def test_text_to_video_goes_as_the_document_says(fake_server: Server, tmp_path: Path) -> None:
    example = {"prompt": "A cinematic wide shot of a sunset over the ocean...", "height": 512, "width": 768}
    example |= {"num_frames": 121, "frame_rate": 24.0, "num_inference_steps": 40, "seed": 42}
    submitted = http.post(fake_server.url + "/v1/video/async_t2v", json=example)
    assert submitted.status_code == 200
    task_id = submitted.json()["task_id"]
    message = f"Task queued. Poll GET /v1/video/tasks/{task_id}"
    assert submitted.json() == {"task_id": task_id, "status": "processing", "message": message}
    url = f"{fake_server.url}/outputs/ltx2_{task_id}.mp4"
    assert poll(fake_server, task_id) == {"status": "completed", "url": url, "fake": True}
    answer = http.get(url)
    assert answer.headers["Content-Type"] == "video/mp4"
    path = tmp_path / "clip.mp4"
    path.write_bytes(answer.content)
    facts = probe_video(path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (768, 512, 121, 24)
    # "already WhatsApp-compatible"
    assert (facts.video_codec, facts.audio_codec, facts.pixel_format) == ("h264", "aac", "yuv420p")
    assert facts.faststart


def test_image_to_video_goes_as_the_document_says(fake_server: Server, photo: bytes, tmp_path: Path) -> None:
    fields = {"frame_rate": 25.0, "num_inference_steps": 40, "seed": 7, "cfg_scale_audio": 7.0, "modality_scale": 3}
    submitted = send(fake_server, "async_i2v", photo, **fields)
    assert submitted.status_code == 200
    assert submitted.json()["status"] == "processing"
    task_id = submitted.json()["task_id"]
    done = poll(fake_server, task_id)
    path = tmp_path / "clip.mp4"
    path.write_bytes(http.get(done["url"]).content)
    facts = probe_video(path)
    assert (facts.width, facts.height, facts.num_frames, facts.audio_codec) == (64, 64, 9, "aac")
    # the same job in another dialect
    seen = http.get(f"{fake_server.url}/v1/jobs/{task_id}").json()["result"]
    assert (seen["mode"], seen["params"]["seed"]) == ("I2V", 7)


def test_a_form_needs_no_more_than_a_prompt_and_an_image(fake_server: Server, photo: bytes) -> None:
    files = {"prompt": (None, "she smiles"), "image": ("photo.jpg", photo), "seed": (None, ""), "other": (None, "1")}
    task_id = http.post(fake_server.url + "/v1/video/async_i2v", files=files).json()["task_id"]
    used = http.get(f"{fake_server.url}/v1/jobs/{task_id}").json()["params"]
    assert (used["width"], used["height"], used["num_frames"], used["fps"], used["seed"]) == (768, 512, 121, 25, 42)
    http.delete(f"{fake_server.url}/v1/jobs/{task_id}")


def test_who_waits_gets_the_url_at_once(fake_server: Server, photo: bytes) -> None:
    for answer in (ask(fake_server, "t2v"), send(fake_server, "i2v", photo)):
        assert answer.status_code == 200
        done = answer.json()
        assert done == {"task_id": done["task_id"], **poll(fake_server, done["task_id"])}
        assert http.get(done["url"]).content[4:8] == b"ftyp"


def test_a_clip_that_cannot_be_made_is_a_failed_task_and_an_error_for_who_waits(fake_server: Server) -> None:
    task_id = ask(fake_server, "async_t2v", prompt="fail=out_of_memory").json()["task_id"]
    failed = poll(fake_server, task_id)
    assert failed["status"] == "failed"
    assert "out_of_memory" in failed["error"]
    assert "url" not in failed
    assert detail(ask(fake_server, "t2v", prompt="fail=out_of_memory"), 503) == failed["error"]
    assert detail(http.get(f"{fake_server.url}/outputs/ltx2_{task_id}.mp4"), 404)


def test_a_caller_who_leaves_ends_a_task_that_nobody_waits_for(fake_server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post(fake_server.url + "/v1/video/t2v", json=SMALL | {"prompt": "seconds=60"}, timeout=0.3)
    left = time.monotonic()
    assert ask(fake_server, "t2v").status_code == 200
    assert time.monotonic() - left < 20


def test_a_canceled_task_has_failed_and_a_waiting_one_has_no_clip(fake_server: Server) -> None:
    task_id = ask(fake_server, "async_t2v", prompt="seconds=60").json()["task_id"]
    assert http.get(f"{fake_server.url}/v1/video/tasks/{task_id}").json() == {"status": "processing"}
    output = f"{fake_server.url}/outputs/ltx2_{task_id}.mp4"
    assert detail(http.get(output), 404) == "this clip is not finished"
    assert http.post(f"{fake_server.url}/v1/jobs/{task_id}/cancel").status_code == 200
    failed = poll(fake_server, task_id)
    assert (failed["status"], failed["error"]) == ("failed", "the task was canceled")


def test_the_same_key_is_the_same_task(fake_server: Server) -> None:
    url, key = fake_server.url + "/v1/video/async_t2v", {"Idempotency-Key": "tasks-1"}
    first, again = (http.post(url, json=SMALL, headers=key).json()["task_id"] for _ in range(2))
    assert first == again
    other = http.post(url, json=SMALL | {"prompt": "another"}, headers=key)
    assert detail(other, 422).startswith("Idempotency-Key: ")


@pytest.mark.parametrize(
    ("fields", "beginning"),
    [
        ({"width": 96}, "width: "),
        ({"num_frames": "9"}, "num_frames: "),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"prompt": None}, "prompt: "),
        ({"num_frames": 100_000}, "num_frames: "),
        ({"width": 8192, "height": 8192}, "width: "),
        ({"webhook_url": "ftp://example.com"}, "webhook_url: "),
        ({"upload_url": "http://127.0.0.1/"}, "upload_url: "),
    ],
)
def test_a_wrong_field_is_named(fake_server: Server, fields: dict[str, Any], beginning: str) -> None:
    for path in ("async_t2v", "t2v"):
        assert detail(ask(fake_server, path, **fields), 422).startswith(beginning)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"prompt":"x","frame_rate":NaN}', b'{"prompt":"\xff"}'])
def test_a_body_that_is_no_object_is_refused(fake_server: Server, body: bytes) -> None:
    assert detail(post(fake_server, "async_t2v", body, "application/json"), 422)


def test_a_form_where_json_is_wanted_and_json_where_a_form_is_wanted_are_told_apart(fake_server: Server) -> None:
    assert "application/json" in detail(send(fake_server, "async_t2v", None), 422)
    assert "multipart/form-data" in detail(ask(fake_server, "async_i2v"), 422)
    assert "multipart/form-data" in detail(
        post(fake_server, "i2v", b"prompt=x", "application/x-www-form-urlencoded"), 422
    )


@pytest.mark.parametrize(
    ("fields", "beginning"),
    [
        ({"width": "wide"}, "width: "),
        ({"frame_rate": "nan"}, "frame_rate: "),
        ({"frame_rate": "inf"}, "frame_rate: "),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"cfg_scale_video": "-1"}, "cfg_scale_video: "),
    ],
)
def test_a_wrong_field_of_a_form_is_named(
    fake_server: Server, photo: bytes, fields: dict[str, str], beginning: str
) -> None:
    assert detail(send(fake_server, "async_i2v", photo, **fields), 422).startswith(beginning)


def test_an_image_that_is_none_is_refused(fake_server: Server, photo: bytes) -> None:
    for path in ("async_i2v", "i2v"):
        assert detail(send(fake_server, path, None), 422).startswith("image: Field required (send a file")
    text = part("prompt", b"x") + part("image", b"data:image/png;base64,") + b"--b--\r\n"
    assert detail(post(fake_server, "i2v", text), 422).startswith("image: must be sent as a file")
    empty = detail(send(fake_server, "i2v", b""), 422)
    assert empty.startswith("image: it is empty (send a file")
    assert "data URL" not in empty
    assert detail(send(fake_server, "i2v", b"no image"), 422).startswith("image: ")
    assert detail(send(fake_server, "i2v", photo[:1000]), 422).startswith("image: ")
    twice = part("prompt", b"x") + 2 * part("image", photo, '; filename="x"') + b"--b--\r\n"
    assert detail(post(fake_server, "i2v", twice), 422) == "image: was sent more than once"


@pytest.mark.parametrize("more", ["", '; filename="x"'])
@pytest.mark.parametrize("count", [1000, 100_000])
def test_a_thousand_parts_are_refused(fake_server: Server, more: str, count: int) -> None:
    began = time.monotonic()
    body = b"".join(part(f"f{number}", b"1", more) for number in range(count)) + b"--b--\r\n"
    with httpx.Client(timeout=30) as client:
        headers = {"Content-Type": BOUNDARY}
        answer = client.post(fake_server.url + "/v1/video/async_i2v", content=body, headers=headers)
        assert re.search(r"Too many (files|fields)", detail(answer, 422))
        # what is left of the body is not taken for the next request
        assert client.get(fake_server.url + "/health").status_code == 200
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", BOUNDARY),
        (b"", "multipart/form-data"),
        (b"--b--\r\n", "multipart/form-data; boundary="),
        (b"--b--\r\n", "multipart/form-data; boundary=" + "b" * 5000),
        (b"--b--\r\n", BOUNDARY),
        (b"nothing of the kind", BOUNDARY),
        (b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n", BOUNDARY),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", BOUNDARY),
        (b"--b\r\n\r\nx\r\n--b--\r\n", BOUNDARY),
        (b"--b\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n", BOUNDARY),
        (b"--b\r\n" + 10_000 * b"X: y\r\n" + b"\r\nx\r\n--b--\r\n", BOUNDARY),
        (part("prompt", b"x"), BOUNDARY),
        (part("prompt", b"x")[:-10], BOUNDARY),
        (part("prompt", b"x" * 2**21) + b"--b--\r\n", BOUNDARY),
        (part("prompt", b"\xff\xfe") + b"--b--\r\n", BOUNDARY),
        (part("prompt", b"..") + b"--b--\r\n", BOUNDARY + "; charset=idna"),
        (part("prompt", b"..") + b"--b--\r\n", BOUNDARY + "; charset=undefined"),
        (part("prompt", b"..") + b"--b--\r\n", BOUNDARY + "; charset=zlib"),
    ],
)
def test_a_broken_form_is_refused_in_so_many_words(fake_server: Server, body: bytes, content_type: str) -> None:
    assert detail(post(fake_server, "async_i2v", body, content_type), 422)


def test_a_form_that_ends_in_the_middle_harms_nothing(fake_server: Server) -> None:
    before = len(fake_server.log)
    host, port = fake_server.url.removeprefix("http://").split(":")
    for path in ("async_i2v", "i2v"):
        with socket.create_connection((host, int(port))) as connection:
            head = (
                f"POST /v1/video/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {BOUNDARY}\r\nContent-Length: 9999\r\n\r\n"
            )
            connection.sendall(head.encode() + part("prompt", b"x"))
    assert ask(fake_server, "t2v").status_code == 200
    assert "Traceback" not in fake_server.log[before:]


@pytest.mark.parametrize("name", ["nothing", NOBODYS, "job_" + "A" * 32, "%00", "..%2f..", "ltx2_" + NOBODYS])
def test_an_unknown_task_is_not_found(fake_server: Server, name: str) -> None:
    assert detail(http.get(f"{fake_server.url}/v1/video/tasks/{name}"), 404)


@pytest.mark.parametrize(
    "name",
    [
        f"ltx2_{NOBODYS}.mp4",
        f"{NOBODYS}.mp4",
        f"ltx2_{NOBODYS}.mp4%0a",
        f"ltx2_{NOBODYS}.mp4.part",
        "..%2f..%2fjobs.db",
        "../jobs.db",
        "%2e%2e/jobs.db",
        "..%5cjobs.db",
        "%00",
        "",
    ],
)
def test_nothing_but_clips_lies_among_the_outputs(fake_server: Server, name: str) -> None:
    # httpx would walk up the path by itself
    connection = HTTPConnection(fake_server.url.removeprefix("http://"), timeout=10)
    for method in ("GET", "HEAD"):
        connection.request(method, f"/outputs/{name}")
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:10]) == (404, b'{"detail":' if method == "GET" else b"")
    connection.close()


def test_outputs_answer_head_and_ranges(fake_server: Server) -> None:
    url = ask(fake_server, "t2v").json()["url"]
    whole = http.get(url)
    head = http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for answer in (head, whole):
        assert answer.headers["Content-Type"] == "video/mp4"
        assert answer.headers["Content-Length"] == str(len(whole.content))
        assert url.rpartition("/")[2] in answer.headers["Content-Disposition"]
    some = http.get(url, headers={"Range": "bytes=4-7"})
    assert (some.status_code, some.content) == (206, b"ftyp")
    assert some.headers["Content-Range"] == f"bytes 4-7/{len(whole.content)}"
    assert http.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_a_deleted_clip_is_not_found(fake_server: Server) -> None:
    done = ask(fake_server, "t2v").json()
    file_id = http.get(f"{fake_server.url}/v1/jobs/{done['task_id']}").json()["artifacts"][0]
    assert http.delete(f"{fake_server.url}/v1/files/{file_id}").status_code == 200
    assert detail(http.get(done["url"]), 404)


def test_unknown_methods_are_told_in_the_same_shape(fake_server: Server) -> None:
    assert detail(http.get(fake_server.url + "/v1/video/t2v"), 405)


# with API keys

PUBLIC = "https://videos.example/ltx"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants keys, and whose links are good for a second."""
    settings = {"LTX2_API_KEYS": "a,b", "LTX2_LINK_SECONDS": "1", "LTX2_PUBLIC_URL": PUBLIC + "/"}
    with running_server(tmp_path_factory.mktemp("keyed"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running


def test_a_link_opens_its_clip_without_a_key_for_a_while(keyed: Server) -> None:
    mine = {"Authorization": "Bearer a"}
    submitted = http.post(keyed.url + "/v1/video/async_t2v", json=SMALL, headers=mine).json()
    poll(keyed, submitted["task_id"], "a")
    link = poll(keyed, submitted["task_id"], "a")["url"]
    fresh = time.monotonic()
    path, _, token = link.removeprefix(PUBLIC).partition("?token=")
    assert path == f"/outputs/ltx2_{submitted['task_id']}.mp4"
    clip = keyed.url + path
    assert http.get(clip, params={"token": token}).content[4:8] == b"ftyp"
    assert http.head(clip, params={"token": token}).status_code == 200
    assert http.get(clip, headers=mine).status_code == 200
    assert detail(http.get(clip), 401)
    assert detail(http.get(clip, headers={"X-API-Key": "b"}), 404)
    assert detail(http.get(clip, headers={"X-API-Key": "c"}), 401)
    for wrong in ("", token[:-1], "x" + token, token.replace(".", ""), "\0", "é"):
        assert detail(http.get(clip, params={"token": wrong}), 404)
    # of another clip, of the same caller
    other = http.post(keyed.url + "/v1/video/t2v", json=SMALL, headers=mine).json()
    assert detail(http.get(keyed.url + other["url"].removeprefix(PUBLIC).partition("?")[0] + f"?token={token}"), 404)
    time.sleep(max(0.0, fresh + 2.1 - time.monotonic()))
    assert "expired" in detail(http.get(clip, params={"token": token}), 404)


def test_tasks_belong_to_a_key(keyed: Server) -> None:
    assert detail(http.post(keyed.url + "/v1/video/async_t2v", json=SMALL), 401)
    mine = {"X-API-Key": "a"}
    task_id = http.post(keyed.url + "/v1/video/t2v", json=SMALL, headers=mine).json()["task_id"]
    task = f"{keyed.url}/v1/video/tasks/{task_id}"
    assert http.get(task, headers=mine).json()["status"] == "completed"
    assert detail(http.get(task, headers={"X-API-Key": "b"}), 404)
    unauthorized = http.get(task)
    assert unauthorized.headers["WWW-Authenticate"] == "Bearer"
    assert detail(unauthorized, 401)
