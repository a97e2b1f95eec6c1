"""The OpenAI dialect: its bodies by themselves, its shape over HTTP, and the official library, unmodified."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image
from starlette.requests import Request

from ltx2.dialects import openai_bodies
from ltx2.dialects.forms import nested, typed
from ltx2.dialects.openai import event, owns, render_error
from ltx2.dialects.openai_bodies import CreateVideo, ExtendVideo, RemixVideo, fields_of, notes
from ltx2.dialects.openai_media import job_of, name_of
from ltx2.dialects.openai_request import from_texts, read, to_request
from ltx2.engine import Progress
from ltx2.errors import (
    Failure,
    Internal,
    InvalidRequest,
    LTX2Error,
    NotFound,
    OutOfMemory,
    QueueFull,
    Unauthorized,
    UnsupportedMedia,
)
from ltx2.payload import GenerateBody, Sources
from ltx2.request import GenerationRequest, Guidance, Keyframe
from ltx2.settings import Settings
from ltx2.studio.job import Job, Order
from processes import ROOT, Server, free_port, running_server, wait_until_warm

SETTINGS = Settings()
SMALL = {"prompt": "a lamp", "size": "64x64", "num_frames": 9}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOBODYS = "video_" + "0" * 32
SOMEWHERE = Request({"type": "http", "headers": [], "path": "/v1/videos", "method": "POST"})

http = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


# by itself


def asked(files: Mapping[str, bytes] | None = None, **fields: Any) -> tuple[GenerationRequest, Sources]:
    return to_request(read(CreateVideo, {"prompt": "x"} | fields), files or {}, SETTINGS)


def test_what_is_absent_is_four_seconds_upright_as_the_library_says() -> None:
    request, sources = asked()
    assert (request.width, request.height, request.num_frames, request.fps) == (720, 1280, 100, 25.0)
    assert (request.seed, request.mode, request.output.format, sources) == (None, "T2V+Audio", "mp4", {})


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [
        ("4", 25.0, 100),
        ("4.5", 24, 108),
        ("1", 23.976, 24),
        (4, 25.0, 100),
        (2.5, 30, 75),
        ("0.001", 25.0, 1),
        (".5", 10, 5),
        ("57.64", 25.0, 1441),
    ],
)
def test_seconds_are_frames_at_the_frame_rate(seconds: str | float, fps: float, frames: int) -> None:
    assert asked(seconds=seconds, fps=fps)[0].num_frames == frames


@pytest.mark.parametrize(
    "seconds",
    [
        "0",
        "0.0",
        "-1",
        "abc",
        "",
        "1e9",
        "nan",
        "inf",
        " 4",
        "4s",
        "٤",
        "57.7",
        "9" * 5000,
        0,
        -4,
        True,
        1e300,
        [4],
        {},
    ],
)
def test_other_lengths_are_refused(seconds: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(seconds=seconds)
    assert refused.value.field == "seconds"


def test_seconds_are_said_as_they_were_asked() -> None:
    for said, shown in (("4", "4"), ("04.50", "04.50"), (4, "4"), (2.5, "2.5"), (4.0, "4"), (0.000001, "0.000001")):
        assert read(CreateVideo, {"seconds": said}).seconds == shown


@pytest.mark.parametrize(
    "size",
    ["", "720", "720X1280", "720*1280", "0x0", "64x62", "65x64", "9999x9999", "-64x64", "64x64 ", "٦٤x٦٤", 720, None],
)
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(size=size)
    assert refused.value.field == "size"


def test_too_many_frames_and_two_lengths_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="only one") as refused:
        asked(seconds="4", num_frames=9)
    assert refused.value.field == "seconds"
    assert asked(num_frames=9)[0].num_frames == 9


@pytest.mark.parametrize("name", ["width", "height", "image_start"])
def test_our_names_of_what_has_another_name_here_are_unknown(name: str) -> None:
    with pytest.raises(InvalidRequest, match="it is called") as refused:
        asked(**{name: 64})
    assert refused.value.field == name


@pytest.mark.parametrize(
    ("reference", "source"),
    [
        ({"image_url": "https://example.com/a.png"}, "https://example.com/a.png"),
        ({"file_id": "file_" + "0" * 32}, "file_" + "0" * 32),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
    ],
)
def test_an_image_is_the_first_frame(reference: Any, source: str) -> None:
    request, sources = asked(input_reference=reference, image_strength=0.5)
    assert request.keyframes == (Keyframe(image="input_reference", frame="first", strength=0.5),)
    assert (request.mode, sources) == ("I2V", {"input_reference": source})


def test_a_file_is_the_first_frame_beside_other_media() -> None:
    request, sources = asked(
        {"input_reference": b"bytes"}, image_end="end", keyframes=[{"image": "mid", "frame": 3}], audio="sound"
    )
    assert [keyframe.image for keyframe in request.keyframes] == ["input_reference", "keyframes[0].image", "image_end"]
    assert sources == {"input_reference": b"bytes", "keyframes[0].image": "mid", "image_end": "end", "audio": "sound"}


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"image_url": ""},
        {"image_url": 1},
        {"file_id": "file_1"},
        {"url": "x"},
        {"image_url": "a", "file_id": "b"},
        1,
        "",
        [],
    ],
)
def test_other_references_are_refused(reference: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(input_reference=reference)
    assert refused.value.field == "input_reference"


def test_a_form_says_the_same_as_json() -> None:
    texts = [
        ("prompt", "5"),
        ("seconds", "4.5"),
        ("seed", "7"),
        ("fps", "24"),
        ("include_audio", "false"),
        ("guidance[video_cfg]", "3"),
        ("guidance[audio_rescale]", ".5"),
        ("keyframes[][image]", "a"),
        ("keyframes[][image]", "b"),
        ("keyframes[][frame]", "8"),
        ("keyframes[][frame]", "last"),
        ("input_reference[image_url]", "c"),
    ]
    said = {
        "prompt": "5",
        "seconds": "4.5",
        "seed": 7,
        "fps": 24,
        "include_audio": False,
        "guidance": {"video_cfg": 3, "audio_rescale": 0.5},
        "keyframes": [{"image": "a", "frame": 8}, {"image": "b", "frame": "last"}],
        "input_reference": {"image_url": "c"},
    }
    assert from_texts(nested(texts)) == said
    request, sources = asked(**said)
    assert request.guidance == Guidance(video_cfg=3.0, audio_rescale=0.5)
    assert sources == {"input_reference": "c", "keyframes[0].image": "a", "keyframes[1].image": "b"}


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        ([("a", "1")], {"a": "1"}),
        ([("a[]", "1"), ("a[]", "2")], {"a": ["1", "2"]}),
        ([("a[1][b]", "1"), ("a[0][b]", "0"), ("a[1][c]", "2")], {"a": [{"b": "0"}, {"b": "1", "c": "2"}]}),
        ([("a[b][c]", "1"), ("a[b][d]", "2")], {"a": {"b": {"c": "1", "d": "2"}}}),
        (
            [("a[][b]", "1"), ("a[][c]", "2"), ("a[][b]", "3"), ("a[][c]", "4")],
            {"a": [{"b": "1", "c": "2"}, {"b": "3", "c": "4"}]},
        ),
        ([("a[b", "1"), ("[c]", "2"), ("a]", "3"), ("", "4")], {"a[b": "1", "[c]": "2", "a]": "3", "": ["4"]}),
        ([("a[b][c][d][e]", "1")], {"a[b][c][d][e]": "1"}),
    ],
)
def test_brackets_are_fields_of_fields(texts: list[tuple[str, str]], fields: dict[str, Any]) -> None:
    assert nested(texts) == fields


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a", "a[b]"],
        ["a[b]", "a"],
        ["a[b]", "a[b]"],
        ["a", "a[]"],
        ["a[]", "a"],
        ["a[]", "a[b]"],
        ["a[]", "a[][b]"],
        ["a[][b]", "a[]"],
        ["a[][b]", "a[][b]", "a[][c]"],
        ["a[1]"],
        ["a[0]", "a[2]"],
        ["a[][]"],
        ["a[][b][c]"],
    ],
)
def test_forms_that_nobody_understands_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        nested((name, "1") for name in names)
    assert str(refused.value.field).startswith("a")


@pytest.mark.parametrize("text", ["True", "1", "yes", "", "0x1", "1_0", " 1", "1.0"])
def test_texts_that_are_no_numbers_or_truths_stay_texts(text: str) -> None:
    typed_again = typed({"include_audio": text, "unknown": "1"}, GenerateBody)
    assert typed_again == {"include_audio": text, "unknown": "1"}
    if text not in ("1", "True"):
        assert typed({"seed": text}, GenerateBody) == {"seed": text}


def job(state: str = "queued", **facts: Any) -> Job:
    request = GenerationRequest(prompt="x", seed=1, width=64, height=96, num_frames=49)
    known = {"state": state, "created_at": 100.9, "order": Order(), "inputs": {}} | facts
    return Job(id="job_" + "a" * 32, request=request, **known)


def view(shown: Job) -> dict[str, Any]:
    return openai_bodies.view(shown, SETTINGS).model_dump()


def test_a_video_is_shown_as_the_library_wants_it() -> None:
    shown = {
        "id": "video_" + "a" * 32,
        "object": "video",
        "created_at": 100,
        "completed_at": None,
        "expires_at": None,
        "status": "queued",
        "progress": 0,
        "model": "tiny",
        "prompt": "x",
        "seconds": "1.96",
        "size": "64x96",
        "error": None,
        "remixed_from_video_id": None,
    }
    assert view(job()) == shown
    running = job("running", progress=Progress("denoising", 4, 8))
    assert view(running) == shown | {"status": "in_progress", "progress": 46}
    done = job("succeeded", finished_at=200.5, fake=True)
    ended = {"status": "completed", "progress": 100, "completed_at": 200, "expires_at": 200 + 168 * 3600, "fake": True}
    assert view(done) == shown | ended
    assert view(replace(done, order=Order(clip_seconds=60)))["expires_at"] == 260
    assert openai_bodies.view(done, Settings(files_hours=0)).expires_at is None
    failure = Failure("out_of_memory", "it is full", hint="ask for less")
    error = {"code": "out_of_memory", "message": "it is full (ask for less)"}
    assert view(job("failed", failure=failure)) == shown | {"status": "failed", "error": error}
    error = {"code": "canceled", "message": "the video was canceled"}
    assert view(job("canceled", finished_at=1.0)) == shown | {"status": "failed", "error": error}


def test_what_was_asked_is_shown_of_our_jobs_alone() -> None:
    kept = notes("sora-2", "2", job())
    mine = view(job(order=Order(dialect="openai", notes=kept)))
    assert (mine["model"], mine["seconds"], mine["remixed_from_video_id"]) == ("sora-2", "2", "video_" + "a" * 32)
    assert view(job(order=Order(dialect="runware", notes=kept))) == view(job())


def test_ids_are_translated_both_ways() -> None:
    assert job_of(name_of("job_" + "a1" * 16)) == "job_" + "a1" * 16
    for wrong in ("", "video_", "job_" + "0" * 32, "video_" + "A" * 32, NOBODYS + "\n", NOBODYS + "0"):
        with pytest.raises(NotFound):
            job_of(wrong)


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (
            InvalidRequest("wide", field="size"),
            400,
            {"type": "invalid_request_error", "param": "size", "code": "invalid_request"},
        ),
        (UnsupportedMedia("odd"), 400, {"type": "invalid_request_error", "param": None, "code": "unsupported_media"}),
        (Unauthorized("no"), 401, {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}),
        (NotFound("no"), 404, {"type": "invalid_request_error", "param": None, "code": "not_found"}),
        (QueueFull("no"), 429, {"type": "rate_limit_error", "param": None, "code": "queue_full"}),
        (OutOfMemory("no"), 503, {"type": "server_error", "param": None, "code": "out_of_memory"}),
        (Internal("no"), 500, {"type": "server_error", "param": None, "code": "internal"}),
    ],
)
def test_errors_have_the_shape_of_the_library(error: LTX2Error, status: int, detail: dict[str, Any]) -> None:
    answer = render_error(error, SOMEWHERE)
    assert (answer.status_code, json.loads(answer.body)) == (status, {"error": {"message": error.message, **detail}})
    assert ("Retry-After" in answer.headers) == (status == 429)


async def told(ended: Job) -> dict[str, Any]:
    return await event(ended)


@pytest.mark.parametrize("state", ["succeeded", "failed", "canceled"])
def test_a_webhook_says_the_same_each_time(state: str) -> None:
    ended = job(state, finished_at=5.5)
    coroutine = told(ended)
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    kind = "video.completed" if state == "succeeded" else "video.failed"
    name = "a" * 32
    expected = {"id": f"evt_{name}", "object": "event", "created_at": 5, "type": kind, "data": {"id": f"video_{name}"}}
    assert done.value.value == expected


def test_these_paths_are_of_this_dialect() -> None:
    assert all(owns(path) for path in ("/v1/videos", "/v1/videos/", "/v1/videos/x/content", "/v1/videos/edits"))
    assert not any(owns(path) for path in ("/", "/v1/video/t2v", "/v1/videosx", "/v1"))


def test_every_field_is_documented() -> None:
    text = (ROOT / "llms.txt").read_text()
    (paragraph,) = (part for part in text.split("\n\n") if part.startswith("**OpenAI Videos** ("))
    for name in (*CreateVideo.model_fields, *ExtendVideo.model_fields, *RemixVideo.model_fields):
        assert f"`{name}`" in paragraph, name
    for kind in (CreateVideo, ExtendVideo):
        taken = openai_bodies.schema(kind, form=True)["properties"].keys()
        assert taken == set(fields_of(kind)) | {"prompt"} == openai_bodies.schema(kind, form=False)["properties"].keys()


# over HTTP


def detail(answer: httpx.Response, status: int, param: str | None = None) -> str:
    """The message of an error; it must have this dialect's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (list(answer.json()), list(error)) == (["error"], ["message", "type", "param", "code"])
    assert error["param"] == param
    return str(error["message"])


def post(server: Server, **fields: Any) -> httpx.Response:
    return http.post(server.url + "/v1/videos", json=SMALL | fields)


def send(server: Server, *fields: tuple[str, Any]) -> httpx.Response:
    """A form; texts are parts without a file name."""
    parts = [(name, (None, value) if isinstance(value, str) else value) for name, value in fields]
    return http.post(server.url + "/v1/videos", files=[("prompt", (None, "x")), ("size", (None, "64x64")), *parts])


def poll(server: Server, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        shown: dict[str, Any] = http.get(f"{server.url}/v1/videos/{name}").json()
        if shown["status"] in ("completed", "failed"):
            return shown
        time.sleep(0.02)
    raise AssertionError("it is not over")


@pytest.fixture(scope="module")
def photo(data: Path) -> bytes:
    return (data / "photo.jpg").read_bytes()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"model": 5}, "model"),
        ({"model": "m" * 1000}, "model"),
        ({"size": "8192x8192"}, "size"),
        ({"num_frames": 100_000}, "num_frames"),
        ({"num_frames": None, "seconds": "abc"}, "seconds"),
        ({"seed": "7"}, "seed"),
        ({"include_audio": 1}, "include_audio"),
        ({"seeed": 7}, "seeed"),
        ({"guidance": {"cfg": 1}}, "guidance.cfg"),
        ({"keyframes": [{"image": "AAAA", "frame": 3}]}, "keyframes[0].image"),
        ({"keyframes": [{"image": "AAAA", "frame": 30}]}, "keyframes[0].image"),
        ({"input_reference": {"image_url": "ftp://x/y"}}, "input_reference"),
        ({"input_reference": {"image_url": "http://127.0.0.1/"}}, "input_reference"),
        ({"input_reference": {"file_id": "file_" + "0" * 32}}, "input_reference"),
        ({"image_end": "AAAA"}, "image_end"),
        ({"webhook_url": "ftp://example.com"}, "webhook_url"),
        ({"upload_url": "http://127.0.0.1/"}, "upload_url"),
    ],
)
def test_a_wrong_field_is_named(fake_server: Server, fields: dict[str, Any], param: str) -> None:
    assert detail(post(fake_server, **fields), 400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("seed", "7.5")], "seed"),
        ([("seed", "")], "seed"),
        ([("include_audio", "True")], "include_audio"),
        ([("seed", "1"), ("seed", "2")], "seed"),
        ([("seeed", "1")], "seeed"),
        ([("guidance[cfg]", "1")], "guidance.cfg"),
        ([("keyframes[][image]", "a"), ("keyframes[][frame]", "1"), ("keyframes[][frame]", "2")], "keyframes"),
        ([("input_reference", ("empty.png", b"", "image/png"))], "input_reference"),
        ([("input_reference", ("text.png", b"no image", "image/png"))], "input_reference"),
        ([("input_reference", ("large.bin", b"\x93" * 20_000_000, "image/png"))], "input_reference"),
        ([("input_reference", ("a", b"x")), ("input_reference", ("b", b"x"))], "input_reference"),
        ([("input_reference", ("a", b"x")), ("input_reference[file_id]", "x")], "input_reference"),
        ([("image_end", ("a", b"x"))], "image_end"),
        ([("prompt", "y")], "prompt"),
    ],
)
def test_a_wrong_field_of_a_form_is_named(fake_server: Server, fields: list[tuple[str, Any]], param: str) -> None:
    assert detail(send(fake_server, *fields), 400, param)


def test_forms_have_limits(fake_server: Server) -> None:
    assert "Too many fields" in detail(send(fake_server, *((f"f{number}", "1") for number in range(300))), 400)
    files = [("input_reference", (f"{number}", b"x")) for number in range(300)]
    assert "Too many files" in detail(send(fake_server, *files), 400)
    body = b"-" * (65 * 2**20)
    answer = http.post(fake_server.url + "/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert detail(answer, 413)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"x"', "application/json"),
        (b'{"prompt":"\\ud800"}', "application/json"),
        (b'{"prompt":"x","seconds":NaN}', "application/json"),
        (b'{"prompt":"x","a":[' + b"[]," * 400_000 + b"[]]}", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"prompt=x", "application/x-www-form-urlencoded"),
        (b"x", ""),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
    ],
)
def test_a_body_that_is_none_is_refused(fake_server: Server, body: bytes, content_type: str) -> None:
    answer = http.post(fake_server.url + "/v1/videos", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("charset", ["punycode", '"punycode"', "utf-8; charset=punycode", "unicode_escape", "utf-16"])
def test_a_form_is_in_utf_8(fake_server: Server, charset: str) -> None:
    # a text in punycode of a few megabytes takes Python hours
    field = "--b\r\nContent-Disposition: form-data; name={}\r\n\r\n{}\r\n"
    body = "".join(field.format(*pair) for pair in (SMALL | {"prompt": "-" + "ga" * 2000}).items()) + "--b--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=b; charset="}
    said = [{name: kind + one for name, kind in form.items()} for one in (charset, "UTF-8", '"utf8"')]
    answers = [http.post(fake_server.url + "/v1/videos", content=body, headers=headers) for headers in said]
    assert detail(answers[0], 400) == "the form must be in UTF-8"
    assert [answer.status_code for answer in answers[1:]] == [200, 200]


def test_a_body_that_ends_in_the_middle_harms_nothing(fake_server: Server) -> None:
    before = len(fake_server.log)
    host, port = fake_server.url.removeprefix("http://").split(":")
    for kind in ("application/json", "multipart/form-data; boundary=b"):
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 99\r\n\r\n"
            connection.sendall(head.encode() + b'{"prompt":')
    assert post(fake_server).status_code == 200
    assert "Traceback" not in fake_server.log[before:]


def test_what_is_unknown_is_not_found(fake_server: Server) -> None:
    for name in (NOBODYS, "x", "job_" + "0" * 32, "video_" + "0" * 31, "%00", "edits"):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            message = detail(http.request(method, f"{fake_server.url}/v1/videos/{name}{path}"), 404)
            assert "job" not in message.partition("(")[0]
        assert detail(http.post(f"{fake_server.url}/v1/videos/{name}/remix", json={"prompt": "x"}), 404)
    for after in (NOBODYS, "x", "job_" + "0" * 32, "\0"):
        assert detail(http.get(fake_server.url + "/v1/videos", params={"after": after}), 404, "after")
    for name in ("edits", "characters"):
        assert "not offered" in detail(http.post(f"{fake_server.url}/v1/videos/{name}", json={}), 404)
    for query, param in (({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "up"}, "order")):
        assert detail(http.get(fake_server.url + "/v1/videos", params=query), 400, param)
    assert detail(http.put(fake_server.url + "/v1/videos"), 405)


def test_jobs_of_other_dialects_are_videos_too(fake_server: Server) -> None:
    posted = {"prompt": "x", "width": 64, "height": 64, "num_frames": 9, "fps": 10, "mode": "async"}
    other = http.post(fake_server.url + "/v1/video/ltx2/generate", json=posted).json()["job_id"]
    shown = poll(fake_server, name_of(other))
    assert (shown["seconds"], shown["size"], shown["model"], shown["status"]) == ("0.9", "64x64", "fake", "completed")
    listed = http.get(fake_server.url + "/v1/videos", params={"limit": 1}).json()
    assert listed["data"] == [shown]
    again = http.post(f"{fake_server.url}/v1/videos/{shown['id']}/remix", json={"prompt": "y"}).json()
    assert (again["remixed_from_video_id"], again["seconds"]) == (shown["id"], "0.9")


def test_the_document_says_no_422_since_none_is_answered(fake_server: Server) -> None:
    paths = http.get(fake_server.url + "/openapi.json").json()["paths"]
    ours = [answered for path, methods in paths.items() if owns(path) for answered in methods.values()]
    assert len(ours) == 7
    for route in ours:
        assert "422" not in route["responses"]
        assert route["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/OpenAIError")


def test_a_withdrawn_video_has_failed(fake_server: Server) -> None:
    name = post(fake_server, prompt="seconds=60").json()["id"]
    assert detail(http.get(f"{fake_server.url}/v1/videos/{name}/content"), 404).startswith("this video is ")
    assert detail(http.post(f"{fake_server.url}/v1/videos/{name}/remix", json={"prompt": "x"}), 400, "video_id")
    http.post(f"{fake_server.url}/v1/jobs/{job_of(name)}/cancel")
    failed = poll(fake_server, name)
    assert (failed["status"], failed["error"]["code"], failed["completed_at"]) == ("failed", "canceled", None)


def test_a_deleted_video_leaves_no_clip(fake_server: Server) -> None:
    name = post(fake_server).json()["id"]
    poll(fake_server, name)
    (file,) = http.get(f"{fake_server.url}/v1/jobs/{job_of(name)}").json()["artifacts"]
    gone = http.delete(f"{fake_server.url}/v1/videos/{name}")
    assert gone.json() == {"id": name, "object": "video.deleted", "deleted": True}
    assert http.get(f"{fake_server.url}/v1/files/{file}").status_code == 404
    # and one whose clip is gone already
    name = post(fake_server).json()["id"]
    poll(fake_server, name)
    (file,) = http.get(f"{fake_server.url}/v1/jobs/{job_of(name)}").json()["artifacts"]
    http.delete(f"{fake_server.url}/v1/files/{file}")
    for variant in ("video", "thumbnail"):
        assert detail(http.get(f"{fake_server.url}/v1/videos/{name}/content", params={"variant": variant}), 404)
    assert http.delete(f"{fake_server.url}/v1/videos/{name}").status_code == 200


def test_a_video_deleted_at_its_end_leaves_no_clip(fake_server: Server) -> None:
    # the moments around the end, since it is there that a clip has no owner yet
    before = fake_server.clips()
    for moment in range(24):
        name = post(fake_server).json()["id"]
        time.sleep(moment * 0.003)
        assert http.delete(f"{fake_server.url}/v1/videos/{name}").status_code == 200
    last = post(fake_server).json()["id"]
    poll(fake_server, last)
    http.delete(f"{fake_server.url}/v1/videos/{last}")
    assert fake_server.clips() == before


def test_many_pictures_do_not_hold_up_requests(fake_server: Server) -> None:
    name = post(fake_server, size="1280x720", num_frames=121).json()["id"]
    poll(fake_server, name)
    sheet = f"GET /v1/videos/{name}/content?variant=spritesheet HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    host, port = fake_server.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(sheet)
        began = time.monotonic()
        assert post(fake_server).status_code == 200
        assert time.monotonic() - began < 1
    # what those wanted who have left is not drawn
    began = time.monotonic()
    assert http.get(f"{fake_server.url}/v1/videos/{name}/content", params={"variant": "thumbnail"}).status_code == 200
    assert time.monotonic() - began < 1


def test_a_clip_is_sent_by_ranges(fake_server: Server) -> None:
    name = post(fake_server).json()["id"]
    poll(fake_server, name)
    url = f"{fake_server.url}/v1/videos/{name}/content"
    assert http.get(url, headers={"Range": "bytes=4-7"}).content == b"ftyp"
    assert detail(http.get(url, headers={"Range": "bytes=99999999-"}), 416, "Range")
    whole, head = http.get(url), http.head(url)
    assert f'filename="{name}.mp4"' in whole.headers["Content-Disposition"]
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(whole.content)))
    assert detail(http.get(url, params={"variant": "audio"}), 400, "variant")


def test_a_sound_has_no_pictures(fake_server: Server) -> None:
    name = post(fake_server, output_format="wav").json()["id"]
    poll(fake_server, name)
    url = f"{fake_server.url}/v1/videos/{name}/content"
    assert http.get(url).headers["Content-Type"] == "audio/wav"
    for variant in ("thumbnail", "spritesheet"):
        assert "no pictures" in detail(http.get(url, params={"variant": variant}), 400, "variant")


def test_a_remix_keeps_everything_but_the_prompt(fake_server: Server, photo: bytes) -> None:
    fields = [("seed", "7"), ("fps", "10"), ("num_frames", "9"), ("image_strength", "0.5")]
    first = send(fake_server, ("input_reference", ("a.jpg", photo)), *fields).json()["id"]
    assert poll(fake_server, first)["status"] == "completed"
    url = f"{fake_server.url}/v1/videos/{first}/remix"
    again = poll(fake_server, http.post(url, json={"prompt": "new"}).json()["id"])
    assert (again["remixed_from_video_id"], again["prompt"]) == (first, "new")
    old, new = (http.get(f"{fake_server.url}/v1/jobs/{job_of(name)}").json()["params"] for name in (first, again["id"]))
    assert new == old | {"prompt": "new"}
    for body, param in (({}, "prompt"), ({"prompt": " "}, "prompt"), ({"prompt": "x", "size": "64x64"}, "size")):
        assert detail(http.post(url, json=body), 400, param)
    http.delete(f"{fake_server.url}/v1/files/{new['image']['file_id']}")
    message = detail(http.post(url, json={"prompt": "new"}), 400, "video_id")
    assert message.startswith("input_reference of that video was removed")


# the official library


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """A server with keys and a short queue, and the port to which it may send webhooks."""
    port = free_port()
    settings = {
        "LTX2_API_KEYS": "key-a,key-b",
        "LTX2_QUEUE_LIMIT": "2",
        "LTX2_WEBHOOK_SECRET": SECRET,
        "LTX2_WEBHOOK_RETRY_SECONDS": "0.05",
        "LTX2_URL_ALLOW": f"127.0.0.1:{port}",
    }
    with running_server(tmp_path_factory.mktemp("keyed"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running, port


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openai")


@pytest.fixture(scope="module")
def library(
    client_python: Callable[[str], Path],
    fake_server: Server,
    keyed: tuple[Server, int],
    server: Server,
    out: Path,
    data: Path,
) -> dict[str, Any]:
    """What each part of the client's program saw."""
    photo = data / "photo.jpg"
    uploaded = http.post(fake_server.url + "/v1/files", files={"file": ("photo.jpg", photo.read_bytes())})
    parts = (ROOT / "docs" / "clients.md").read_text().split("```python\nfrom openai")[1:]
    written = "\n".join("from openai" + part.split("```")[0] for part in parts)
    snippet = out / "snippet.py"
    snippet.write_text(written.replace("http://127.0.0.1:8000", fake_server.url))
    config = {
        "url": fake_server.url,
        "keyed": keyed[0].url,
        "hook_port": keyed[1],
        "secret": SECRET,
        "tiny": server.url,
        "photo": str(photo),
        "file_id": uploaded.json()["file_id"],
        "out": str(out),
        "snippet": str(snippet),
    }
    # it says of everything below videos that it is deprecated
    command = [client_python("openai"), "-W", "ignore::DeprecationWarning", ROOT / "tests/clients/openai_client.py"]
    done = subprocess.run(
        [*command, json.dumps(config)], cwd=out, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


PARTS = [
    "creating",
    "downloading",
    "images",
    "listing",
    "deleting",
    "remixing",
    "extending",
    "errors",
    "crowding",
    "repeating",
    "webhooks",
    "asynchronous",
    "snippet",
    "with_a_model",
]


@pytest.mark.parametrize("part", PARTS)
def test_the_library_can(library: dict[str, Any], part: str) -> None:
    assert list(library) == PARTS
    assert "failed" not in library[part], library[part]["failed"]


def test_the_library_is_told_when_to_ask_again(library: dict[str, Any]) -> None:
    assert 500 <= library["creating"]["saw"]["after"] <= 5000


def video_facts(path: Path) -> tuple[str, int, int, int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, stream.width, stream.height, sum(1 for _ in container.decode(stream))


def test_what_the_library_downloads_is_what_it_says(library: dict[str, Any], out: Path) -> None:
    types = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}
    assert library["downloading"]["saw"] == types
    assert video_facts(out / "video") == ("h264", 128, 96, 12)
    with Image.open(out / "thumbnail") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (128, 96))
    with Image.open(out / "spritesheet") as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (4 * 128, 3 * 96))
    assert video_facts(out / "tiny")[1:] == (96, 64, 10)
    made = library["with_a_model"]["saw"]
    assert (made["model"], made["seconds"], made["size"]) == ("tiny", "0.4", "96x64")


def test_our_fields_arrive_in_every_shape(library: dict[str, Any], fake_server: Server) -> None:
    params = {
        name: http.get(f"{fake_server.url}/v1/jobs/{job_of(video)}").json()["params"]
        for name, video in library["images"]["saw"].items()
    }
    for name in ("path", "json"):
        used = params[name]
        assert (used["seed"], used["fps"], used["num_frames"], used["generate_audio"]) == (7, 10, 9, False)
        assert used["negative_prompt"] == "5"
        assert [(keyframe["frame"], keyframe["strength"]) for keyframe in used["keyframes"]] == [(4, 0.5)]
        assert used["end_image_strength"] == 1
        assert "image" in used
    assert params["file"]["seed"] == 8
    assert all("image" in params[name] for name in ("file", "named", "data_url", "file_id"))
    numbered = [(keyframe["frame"], keyframe["strength"]) for keyframe in params["numbered"]["keyframes"]]
    assert numbered == [(3, 1), (5, 0.25)]


def test_a_remix_of_the_library_keeps_the_seed_and_the_image(library: dict[str, Any], fake_server: Server) -> None:
    names = library["remixing"]["saw"]
    old, new = (
        http.get(f"{fake_server.url}/v1/jobs/{job_of(names[name])}").json()["params"] for name in ("first", "again")
    )
    assert new == old | {"prompt": "a candle"}


def test_what_the_library_extends_begins_with_its_video(
    library: dict[str, Any], fake_server: Server, out: Path
) -> None:
    names = library["extending"]["saw"]
    jobs = {
        name: http.get(f"{fake_server.url}/v1/jobs/{job_of(video)}").json()["params"] for name, video in names.items()
    }
    for name, seconds, side in (("by id", 1.0, "end"), ("by file", 0.5, "end"), ("before", 0.5, "start")):
        assert jobs[name]["extend"] == {"seconds": seconds, "side": side}
    assert jobs["retaken"]["retake"] == {"start": 0.1, "end": 0.3, "streams": "both"}
    assert (jobs["retaken"]["loras"], jobs["retaken"]["retry_if"]) == ([{"name": "film", "scale": 0.5}], ["silent"])
    assert video_facts(out / "longer")[1:] == (128, 96, 12 + 25)


def test_the_documented_snippet_makes_a_video(library: dict[str, Any], out: Path) -> None:
    assert library["snippet"]["saw"] == "completed None\n"
    assert video_facts(out / "waves.mp4") == ("h264", 512, 288, 50)


def test_the_library_is_told_how_long_to_wait(library: dict[str, Any]) -> None:
    assert library["crowding"]["saw"] == "10"
