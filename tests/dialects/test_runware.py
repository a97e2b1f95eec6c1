"""The Runware dialect: its tasks by themselves, over HTTP and sockets, and with both of its client libraries."""

import base64
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import ValidationError
from quick import in_loop, running_studio
from starlette.requests import Request
from starlette.types import Message
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ltx2.dialects.base import STATUS
from ltx2.dialects.guard import STRANGER_BYTES
from ltx2.dialects.runware import first_key, owns, render_error
from ltx2.dialects.runware_answers import CODES, Refused, wrong
from ltx2.dialects.runware_bodies import VideoInference, own_id_of, uuid_of
from ltx2.dialects.runware_request import check_model, content_check, to_request
from ltx2.dialects.runware_socket import MOST_STRANGERS, POLICY, Sockets
from ltx2.dialects.runware_tasks import Desk
from ltx2.errors import InvalidRequest, QueueFull, Unauthorized
from ltx2.media.probe import probe_video
from ltx2.request import GenerationRequest, Keyframe
from ltx2.settings import Settings
from processes import ROOT, Server, free_port, running_server, wait_until_warm

MODEL = "lightricks:2@1"
UUID = "50836053-a0ee-4cf5-b9d6-ae7c5d140ada"
TASK = {"taskType": "videoInference", "taskUUID": UUID, "model": MODEL, "positivePrompt": "a lamp"}
SMALL = {"width": 64, "height": 64, "duration": 0.4}
FILE = "file_" + "a" * 32
SOMEWHERE = Request({"type": "http", "headers": [], "path": "/v1", "method": "POST"})
DEFAULTS = Settings()
GREY = base64.b64encode((ROOT / "tests" / "data" / "photo.jpg").read_bytes()).decode()

# one for all, and nothing of TLS: reading the certificates takes longer than most answers do
http = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def task(**fields: Any) -> dict[str, Any]:
    """A small clip, new each time."""
    return TASK | SMALL | {"taskUUID": str(uuid4())} | fields


def asked(**fields: Any) -> tuple[GenerationRequest, Any]:
    return to_request(VideoInference.model_validate(TASK | fields), DEFAULTS)


def refused(**fields: Any) -> Refused:
    with pytest.raises(ValidationError) as caught:
        VideoInference.model_validate(TASK | fields)
    return wrong(caught.value, TASK | fields)


def post(server: Server, *tasks: Any, status: int = 200, path: str = "/v1", **headers: str) -> dict[str, Any]:
    answer = http.post(server.url + path, json=list(tasks), headers=headers)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def error_of(server: Server, wanted: dict[str, Any]) -> dict[str, Any]:
    (entry,) = post(server, wanted, status=400)["errors"]
    return dict(entry)


def finished(server: Server, uuid: str, **headers: str) -> list[dict[str, Any]]:
    """The clips of a task when all are there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        items: list[dict[str, Any]] = post(server, {"taskType": "getResponse", "taskUUID": uuid}, **headers)["data"]
        if all(item["status"] == "success" for item in items):
            return items
        time.sleep(0.02)
    raise AssertionError("it does not end")


def job_of(server: Server, item: dict[str, Any], **headers: str) -> dict[str, Any]:
    """The same clip as the kiapi dialect shows it."""
    return dict(http.get(f"{server.url}/v1/jobs/{own_id_of('job', item['videoUUID'])}", headers=headers).json())


# by itself


def test_what_is_absent_is_as_the_document_says() -> None:
    request, sources = asked()
    assert (request.width, request.height, request.num_frames, request.fps) == (1920, 1080, 150, 25.0)
    assert (request.mode, request.output.format, request.output.quality, request.seed) == ("T2V", "mp4", 95, None)
    assert (sources, request.content_check, request.include_audio) == ({}, "none", False)


def test_a_size_nobody_asked_for_is_one_the_server_allows() -> None:
    body = VideoInference.model_validate(TASK)
    for most, size in ((1920 * 1080, (1920, 1080)), (1_000_000, (1280, 720)), (300_000, (640, 360)), (99, (640, 360))):
        request, _ = to_request(body, Settings(max_pixels=most))
        assert (request.width, request.height) == size


def test_lengths_are_rounded_to_frames() -> None:
    assert asked(duration=8, fps=50)[0].num_frames == 400
    assert asked(duration=2.5, fps=24.0)[0].num_frames == 60
    assert asked(duration=0.03)[0].num_frames == 1
    for duration in (0.01, 86_400):
        with pytest.raises(InvalidRequest, match="duration"):
            asked(duration=duration)


@pytest.mark.parametrize(
    ("given", "frames"),
    [
        (["a"], ["first"]),
        (["a", "b"], ["first", "last"]),
        (["a", "b", "c"], ["first", 74, "last"]),
        (["a", "b", "c", "d"], ["first", 50, 99, "last"]),
        ([{"image": "a", "frame": "last"}], ["last"]),
        ([{"image": "a", "frame": 12}], [12]),
        (["a", {"image": "b", "frame": "last"}], ["first", "last"]),
        ([{"image": "a", "frame": "first"}, "b", {"image": "c", "frame": "last"}], ["first", 74, "last"]),
        ([{"image": "a", "frame": 30}, "b"], [30, "last"]),
    ],
)
def test_images_go_to_their_frames(given: list[Any], frames: list[Any]) -> None:
    request, sources = asked(inputs={"frameImages": given})
    paths = [
        f"inputs.frameImages[{i}]" + (".image" if isinstance(image, dict) else "") for i, image in enumerate(given)
    ]
    assert request.keyframes == tuple(Keyframe(image=p, frame=f) for p, f in zip(paths, frames, strict=True))
    assert list(sources.values()) == ["a", "b", "c", "d"][: len(given)]


def test_images_come_as_the_older_library_sends_them_too() -> None:
    request, sources = asked(frameImages=[{"inputImage": "a", "frame": "last"}, {"image": "b", "frame": 0}, "c"])
    names = ["frameImages[0].inputImage", "frameImages[1].image", "frameImages[2]"]
    assert ([keyframe.image for keyframe in request.keyframes], list(sources)) == (names, names)
    with pytest.raises(InvalidRequest, match="send only one"):
        asked(frameImages=["a"], inputs={"frameImages": ["b"]})


def test_two_images_on_one_frame_are_refused_by_the_callers_path() -> None:
    request, _ = asked(inputs={"frameImages": [{"image": "a", "frame": "last"}, "b"]})
    with pytest.raises(InvalidRequest) as caught:
        request.check_limits(DEFAULTS)
    assert caught.value.field == "inputs.frameImages[1]"


def test_files_go_by_their_uuid() -> None:
    assert own_id_of("file", uuid_of(FILE)) == FILE
    assert asked(inputs={"frameImages": [uuid_of(FILE), uuid_of(FILE).upper()]})[1] == {
        "inputs.frameImages[0]": FILE,
        "inputs.frameImages[1]": FILE,
    }


@pytest.mark.parametrize("fields", [{"inputs": {"audio": "s"}}, {"inputAudios": ["s"]}, {"inputs": {"audio": ["s"]}}])
def test_a_sound_is_followed(fields: dict[str, Any]) -> None:
    request, sources = asked(**fields)
    assert (request.mode, request.include_audio, list(sources.values())) == ("A2V", True, ["s"])


def test_what_says_the_same_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="inputAudios"):
        asked(inputs={"audio": "s"}, inputAudios=["s"])
    with pytest.raises(InvalidRequest, match="generateAudio"):
        asked(inputs={"audio": "s"}, providerSettings={"lightricks": {"generateAudio": True}})
    assert refused(inputAudios=["a", "b"]).field == "inputAudios"


def test_sound_is_made_where_it_is_asked_for() -> None:
    wanted, unwanted = ({"lightricks": {"generateAudio": flag}} for flag in (True, False))
    assert asked(providerSettings=wanted)[0].mode == "T2V+Audio"
    assert not asked(providerSettings=unwanted)[0].include_audio
    for name in ("WAV", "FLAC", "MP3"):
        request = asked(outputFormat=name)[0]
        assert (request.output.format, request.include_audio) == (name.lower(), True)
        with pytest.raises(InvalidRequest, match="generateAudio"):
            asked(outputFormat=name, providerSettings=unwanted)
    assert asked(outputFormat="GIF")[0].output.format == "gif"


def test_what_is_ours_is_passed_on() -> None:
    fields = {
        "negativePrompt": "rain",
        "seed": 5,
        "steps": 7,
        "CFGScale": 3,
        "outputQuality": 20,
        "outputType": ["URL"],
    }
    request, _ = asked(**fields)
    assert (request.negative_prompt, request.seed, request.num_inference_steps) == ("rain", 5, 7)
    assert (request.guidance.video_cfg, request.guidance.audio_cfg, request.output.quality) == (3.0, None, 20)
    assert asked(CFGScale=1)[0].guidance.audio_cfg == 1.0


@pytest.mark.parametrize(
    ("fields", "parameter", "code"),
    [
        ({"colour": "red"}, "colour", "unsupportedParameter"),
        ({"inputs": {"mask": "x"}}, "inputs.mask", "unsupportedParameter"),
        ({"inputs": {"frameImages": []}}, "inputs.frameImages", "invalidParameter"),
        ({"inputs": {"frameImages": ["a", ""]}}, "inputs.frameImages[1]", "invalidParameter"),
        (
            {"inputs": {"frameImages": [{"image": "a"}, {"image": 5}]}},
            "inputs.frameImages[1].image",
            "invalidParameter",
        ),
        ({"inputs": {"frameImages": [{"frame": 0}]}}, "inputs.frameImages[0].image", "missingParameter"),
        ({"inputs": {"frameImages": [{"image": "a", "frame": -1}]}}, "inputs.frameImages[0].frame", "invalidParameter"),
        (
            {"inputs": {"frameImages": [{"image": "a", "frame": True}]}},
            "inputs.frameImages[0].frame",
            "invalidParameter",
        ),
        ({"frameImages": [{"inputImage": 5}]}, "frameImages[0].inputImage", "invalidParameter"),
        (
            {"providerSettings": {"lightricks": {"generateAudio": 1}}},
            "providerSettings.lightricks.generateAudio",
            "invalidParameter",
        ),
        ({"providerSettings": {"google": {}}}, "providerSettings.google", "unsupportedParameter"),
        ({"positivePrompt": "x"}, "positivePrompt", "invalidParameter"),
        ({"positivePrompt": "x" * 10_001}, "positivePrompt", "invalidParameter"),
        ({"width": True}, "width", "invalidParameter"),
        ({"width": "64"}, "width", "invalidParameter"),
        ({"duration": float("nan")}, "duration", "invalidParameter"),
        ({"duration": 0}, "duration", "invalidParameter"),
        ({"numberResults": 5}, "numberResults", "invalidParameter"),
        ({"outputFormat": "mp4"}, "outputFormat", "invalidParameter"),
        ({"outputType": "base64Data"}, "outputType", "invalidParameter"),
        ({"outputQuality": 100}, "outputQuality", "invalidParameter"),
        ({"ttl": 59}, "ttl", "invalidParameter"),
        ({"taskUUID": "mine"}, "taskUUID", "invalidParameter"),
        ({"taskUUID": "{" + UUID + "}"}, "taskUUID", "invalidParameter"),
        ({"safety": {"mode": "strict"}}, "safety.mode", "invalidParameter"),
        ({"deliveryMethod": "stream"}, "deliveryMethod", "invalidParameter"),
        ({f"a{i}": 1 for i in range(2000)}, None, "invalidParameter"),
    ],
)
def test_what_is_wrong_is_told_by_the_callers_path(fields: dict[str, Any], parameter: str | None, code: str) -> None:
    error = refused(**fields)
    assert (error.field, error.said) == (parameter, code)


def test_width_and_height_go_together() -> None:
    for given, missing in (("width", "height"), ("height", "width")):
        with pytest.raises(Refused) as caught:
            asked(**{given: 64})
        assert (caught.value.field, caught.value.said) == (missing, "missingParameter")


def test_only_models_that_are_here_are_accepted() -> None:
    for name in (MODEL, "lightricks:2@0", "lightricks:ltx@2", "lightricks:ltx@2.3", "lightricks:ltx@2.5", "tiny"):
        check_model(VideoInference.model_validate(TASK | {"model": name}), DEFAULTS)
    with pytest.raises(Refused, match=f"{MODEL}.*tiny"):
        check_model(VideoInference.model_validate(TASK | {"model": "runware:100@1"}), DEFAULTS)


@pytest.mark.parametrize(
    ("safety", "check", "parameter"),
    [
        ({}, "none", None),
        ({"checkContent": False, "mode": "none"}, "none", None),
        ({"checkContent": True}, "fast", "safety.checkContent"),
        ({"checkContent": True, "mode": "none"}, "fast", "safety.checkContent"),
        ({"mode": "fast"}, "fast", "safety.mode"),
        ({"checkContent": True, "mode": "full"}, "full", "safety.mode"),
    ],
)
def test_nobody_is_told_that_a_clip_was_checked_when_it_was_not(safety: Any, check: str, parameter: str) -> None:
    body = VideoInference.model_validate(TASK | {"safety": safety})
    assert content_check(body, Settings(content_checker="a:b")) == check
    if check != "none":
        with pytest.raises(Refused) as caught:
            content_check(body, DEFAULTS)
        assert caught.value.field == parameter


def test_every_error_has_a_code_and_one_of_the_documents_statuses() -> None:
    assert CODES.keys() == STATUS.keys()
    full, stranger = render_error(QueueFull("x"), SOMEWHERE), render_error(Unauthorized("x"), SOMEWHERE)
    assert (full.status_code, full.headers["Retry-After"]) == (429, "10")
    assert (stranger.status_code, stranger.headers["Connection"]) == (401, "close")
    assert render_error(InvalidRequest("x", field="num_frames"), SOMEWHERE).body == (
        b'{"errors":[{"code":"invalidParameter","message":"x","parameter":"duration"}]}'
    )


def test_it_speaks_at_its_two_paths_and_nowhere_else() -> None:
    assert owns("/v1")
    assert owns("/v1/")
    assert not owns("/v1/jobs")
    assert not owns("/v")


@pytest.mark.parametrize(
    ("beginning", "key"),
    [
        (b'[{"taskType":"authentication","apiKey":"k"}]', "k"),
        (b' [\n {"apiKey":"k", "taskType":"authentication"} , {"taskType":"videoInf', "k"),
        (b'[{"taskType":"videoInference","apiKey":"k"}]', None),
        (b'[{"taskType":"authentication","apiKey":5}]', None),
        (b'[{"taskType":"authentication","apiKey":"k"', None),
        (b'{"taskType":"authentication","apiKey":"k"}', None),
        (b"[" * 4096, None),
        (b'[{"a":' + b'{"a":' * 800, None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_a_key_is_found_in_the_first_task_alone(beginning: bytes, key: str | None) -> None:
    assert first_key(beginning) == key


@in_loop
async def test_who_shows_no_key_in_time_has_to_go(tmp_path: Path) -> None:
    async with running_studio(tmp_path, api_keys="key-a") as (studio, _):
        sent: list[Message] = []
        coming = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": '[{"taskType":"x"}]'}]

        async def receive() -> Message:
            if coming:
                return coming.pop(0)
            await studio.draining.wait()  # a client who says nothing more
            return {"type": "websocket.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "headers": [], "path": "/v1", "state": {"owner": None, "request_id": "r"}}
        await Sockets(studio, Desk(studio), stranger_seconds=0.1).serve(WebSocket(scope, receive, send))
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
        assert sent[-1]["code"] == POLICY


# over HTTP


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
def test_a_clip_is_acknowledged_made_and_found(fake_server: Server, path: str) -> None:
    wanted = task(seed=3, providerSettings={"lightricks": {"generateAudio": True}})
    uuid = wanted["taskUUID"]
    assert post(fake_server, wanted, path=path) == {"data": [{"taskType": "videoInference", "taskUUID": uuid}]}
    (item,) = finished(fake_server, uuid)
    assert (item["taskType"], item["taskUUID"], item["seed"]) == ("videoInference", uuid, 3)
    assert (item["progress"], "cost" in item, item["fake"]) == (100, False, True)
    clip = http.get(item["videoURL"])
    assert (clip.status_code, clip.headers["Content-Type"], clip.content[4:8]) == (200, "video/mp4", b"ftyp")
    # the same job everywhere else
    job = job_of(fake_server, item)
    assert (job["status"], job["params"]["num_frames"], job["params"]["generate_audio"]) == ("succeeded", 10, True)
    polled = http.get(f"{fake_server.url}/v1/video/tasks/{job['id']}").json()
    assert polled["url"] == item["videoURL"]
    # and one of another dialect here
    other = http.post(f"{fake_server.url}/v1/video/async_t2v", json={"prompt": "x", "width": 64, "height": 64}).json()
    (seen,) = finished(fake_server, uuid_of(other["task_id"]))
    assert seen["seed"] == 42


def test_the_clips_of_a_batch_have_seeds_of_their_own_and_share_their_images(fake_server: Server) -> None:
    given, random = task(numberResults=4, seed=2**63 - 2, inputs={"frameImages": [GREY]}), task(numberResults=3)
    post(fake_server, given, random)
    items = finished(fake_server, given["taskUUID"])
    assert [item["seed"] for item in items] == [2**63 - 2, 2**63 - 1, 0, 1]
    assert len({item["videoUUID"] for item in items}) == 4
    assert len({job_of(fake_server, item)["params"]["image"]["file_id"] for item in items}) == 1
    assert len({item["seed"] for item in finished(fake_server, random["taskUUID"])}) == 3


def test_the_same_task_again_is_the_same_clips(fake_server: Server) -> None:
    wanted = task(numberResults=2, inputs={"frameImages": [GREY]})
    upper = wanted | {"taskUUID": wanted["taskUUID"].upper()}
    for each in (wanted, upper, wanted):
        assert post(fake_server, each)["data"][0]["taskUUID"] == each["taskUUID"]
    items = finished(fake_server, wanted["taskUUID"])
    assert [item["videoUUID"] for item in finished(fake_server, upper["taskUUID"])] == [i["videoUUID"] for i in items]
    assert len(items) == 2
    for changed in ({"positivePrompt": "another"}, {"numberResults": 1}, {"ttl": 60}, {"inputs": None}):
        error = error_of(fake_server, wanted | changed)
        assert (error["code"], error["parameter"], error["taskUUID"]) == (
            "conflictTaskUUID",
            "taskUUID",
            wanted["taskUUID"],
        )


def test_a_task_whose_first_clip_was_deleted_is_sent_again(fake_server: Server) -> None:
    wanted = task(numberResults=3, inputs={"frameImages": [GREY]}, deliveryMethod="sync")
    first, *others = [item["videoUUID"] for item in post(fake_server, wanted)["data"]]
    http.delete(f"{fake_server.url}/v1/jobs/{own_id_of('job', first)}").raise_for_status()
    again, *same = [item["videoUUID"] for item in post(fake_server, wanted)["data"]]
    assert again != first
    assert same == others


def test_a_header_that_cannot_be_used_is_called_that(fake_server: Server) -> None:
    (error,) = post(fake_server, task(), status=400, **{"Idempotency-Key": "x" * 256})["errors"]
    assert (error["code"], error["parameter"]) == ("invalidParameter", "Idempotency-Key")


def test_one_wrong_task_does_not_stop_the_others(fake_server: Server) -> None:
    good, bad = task(), task(width=65)
    answer = post(fake_server, good, bad, 5, {"taskType": "ping", "ping": True})
    assert [item["taskType"] for item in answer["data"]] == ["videoInference", "ping"]
    first, second = answer["errors"]
    assert (first["taskUUID"], first["taskType"], first["parameter"]) == (bad["taskUUID"], "videoInference", "width")
    assert second["code"] == "invalidTask"


def test_a_batch_is_accepted_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with running_server(tmp_path, {"LTX2_QUEUE_LIMIT": "2", "LTX2_SHUTDOWN_SECONDS": "1"}, engine="fake") as server:
        wait_until_warm(server)
        busy, whole = task(positivePrompt="seconds=60"), task(numberResults=4)
        post(server, busy)
        answer = http.post(f"{server.url}/v1", json=[whole])
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (429, "rateLimitExceeded")
        assert answer.headers["Retry-After"] == "10"
        assert error_of(server, {"taskType": "getResponse", "taskUUID": whole["taskUUID"]})["code"] == "taskNotFound"
        assert len(http.get(f"{server.url}/v1/jobs").json()["data"]) == 1
        # sockets that watch, wait and do nothing leave when the server ends
        with listening(server) as idle, listening(server) as waiting:
            waiting.send(json.dumps([busy | {"deliveryMethod": "sync"}]))
            assert said(waiting, busy)["data"]
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            for each in (idle, waiting):
                with pytest.raises(ConnectionClosed) as caught:
                    each.recv(10)
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1001
            assert time.monotonic() - began < 1
            assert server.process.wait(10) == -signal.SIGTERM  # the clip that takes a minute waits for the next start
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "invalidRequestBody"),
        (b"[]", "invalidRequestBody"),
        (b"[" + b"1," * 200 + b"1]", "maxTasksExceeded"),
        (b"[{", "invalidParameter"),
        (b"\xff", "invalidParameter"),
        (b'[{"taskUUID":"x"}]', "missingParameter"),
        (b'[{"taskType":"imageInference"}]', "unsupportedTaskType"),
        (b'[{"taskType":["x"]}]', "unsupportedTaskType"),
        (b'[{"taskType":"videoInference"}]', "missingParameter"),
    ],
)
def test_what_is_no_task_is_called_that(fake_server: Server, body: bytes, code: str) -> None:
    answer = http.post(f"{fake_server.url}/v1", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, code)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain;charset=UTF-8"}])
def test_what_a_page_from_elsewhere_may_send_is_no_task(fake_server: Server, headers: dict[str, str]) -> None:
    answer = http.post(f"{fake_server.url}/v1", content=json.dumps([task()]), headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "invalidRequestBody")


def test_an_unknown_task_a_failed_one_and_a_cancelled_one_are_errors(fake_server: Server) -> None:
    look = {"taskType": "getResponse", "taskUUID": str(uuid4())}
    assert error_of(fake_server, look)["code"] == "taskNotFound"
    wanted = task(positivePrompt="fail=out_of_memory", deliveryMethod="sync")
    error = error_of(fake_server, wanted)
    assert (error["code"], error["status"], error["taskType"]) == ("inferenceError", "error", "videoInference")
    assert error_of(fake_server, look | {"taskUUID": wanted["taskUUID"]}) == error
    stopped = task(positivePrompt="seconds=60")
    post(fake_server, stopped)
    (item,) = post(fake_server, look | {"taskUUID": stopped["taskUUID"]})["data"]
    assert (item["status"], 0 <= item["progress"] < 100) == ("processing", True)
    http.post(f"{fake_server.url}/v1/jobs/{own_id_of('job', item['videoUUID'])}/cancel")
    deadline = time.monotonic() + 10
    while True:
        answer = http.post(f"{fake_server.url}/v1", json=[look | {"taskUUID": stopped["taskUUID"]}])
        if answer.status_code == 400:
            break
        assert time.monotonic() < deadline
    assert answer.json()["errors"][0]["code"] == "taskCancelled"


def test_images_and_sounds_are_uploaded_used_and_removed(fake_server: Server, data: Path) -> None:
    upload = {"taskType": "imageUpload", "taskUUID": str(uuid4()), "image": f"data:image/jpeg;base64,{GREY}"}
    sound = base64.b64encode((data / "speech.mp3").read_bytes()).decode()
    keep = {"taskType": "mediaStorage", "taskUUID": str(uuid4()), "operation": "upload", "media": sound}
    image, media = post(fake_server, upload, keep)["data"]
    assert (image["taskUUID"], media["operation"]) == (upload["taskUUID"], "upload")
    assert http.get(image["imageURL"]).headers["Content-Type"] == "image/jpeg"
    wanted = task(inputs={"frameImages": [image["imageUUID"]], "audio": media["mediaUUID"]}, deliveryMethod="sync")
    (item,) = post(fake_server, wanted)["data"]
    params = job_of(fake_server, item)["params"]
    assert params["image"]["file_id"] == own_id_of("file", image["imageUUID"])
    assert params["audio"]["file_id"] == own_id_of("file", media["mediaUUID"])
    remove = keep | {"operation": "delete", "media": media["mediaUUID"]}
    assert post(fake_server, remove)["data"][0]["mediaUUID"] == media["mediaUUID"]
    assert error_of(fake_server, remove)["code"] == "mediaNotFound"
    gone = task(inputs={"frameImages": ["a" * 8 + "-aaaa-aaaa-aaaa-" + "a" * 12]})
    error = error_of(fake_server, gone)
    assert (error["code"], error["parameter"]) == ("mediaNotFound", "inputs.frameImages[0]")
    for wrong_one, code in (
        (upload | {"image": sound}, "unsupportedMediaFormat"),
        (upload | {"image": "http://127.0.0.1:1/x.png"}, "invalidMediaURL"),
        (upload | {"image": "no base64!"}, "unsupportedMediaFormat"),
        (task(inputs={"frameImages": ["http://127.0.0.1:1/x.png"]}), "invalidMediaURL"),
        (keep | {"media": None}, "missingParameter"),
        (keep | {"operation": "delete", "media": "x"}, "invalidParameter"),
    ):
        assert error_of(fake_server, wrong_one)["code"] == code


def test_what_is_too_large_for_this_server_is_refused_by_the_callers_names(fake_server: Server) -> None:
    for fields, parameter in (
        ({"width": 3840, "height": 2160}, "width"),
        ({"duration": 1000}, "duration"),
        ({"steps": 101}, "steps"),
        ({"webhookURL": "http://127.0.0.1:1/"}, "webhookURL"),
        ({"uploadEndpoint": "ftp://example.com"}, "uploadEndpoint"),
    ):
        assert error_of(fake_server, task(**fields))["parameter"] == parameter


@pytest.mark.parametrize("name", ["WEBM", "MOV", "GIF", "WAV", "FLAC", "MP3"])
def test_every_format_is_made(fake_server: Server, name: str) -> None:
    (item,) = post(fake_server, task(outputFormat=name, outputQuality=50, deliveryMethod="sync"))["data"]
    assert item["videoURL"].endswith("." + name.lower())
    assert http.get(item["videoURL"]).status_code == 200


# with keys, and what goes out


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.calls.append((self.command, self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_POST  # noqa: N815 - as the base class wants it

            def log_message(self, *_: object) -> None:
                pass

        self.calls: list[tuple[str, str, bytes]] = []
        super().__init__(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def got(self, method: str, number: int) -> list[tuple[str, bytes]]:
        deadline = time.monotonic() + 10
        while len(found := [(path, body) for how, path, body in self.calls if how == method]) < number:
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.01)
        return found


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Server]:
    """A server that wants keys, has a price, and allows 4K."""
    settings = {
        "LTX2_API_KEYS": "key-a,key-b",
        "LTX2_MAX_PIXELS": str(3840 * 2160),
        "LTX2_PRICE_PER_SECOND": "0.5",
        "LTX2_URL_ALLOW": f"127.0.0.1:{receiver.server_port}",
        "LTX2_LOG_LEVEL": "DEBUG",
    }
    with running_server(tmp_path_factory.mktemp("keyed"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running


KEY_A, KEY_B = ({"Authorization": f"Bearer key-{name}"} for name in "ab")
LOGIN = {"taskType": "authentication", "apiKey": "key-a"}


def test_a_key_comes_in_a_header_or_in_the_first_task(keyed: Server) -> None:
    wanted = task(inputs={"frameImages": [GREY]})
    assert len(json.dumps(wanted)) > 10_000
    auth, ack = post(keyed, LOGIN, wanted)["data"]
    assert (auth["taskType"], len(auth["connectionSessionUUID"]), ack["taskUUID"]) == (
        "authentication",
        36,
        wanted["taskUUID"],
    )
    (item,) = finished(keyed, wanted["taskUUID"], **KEY_A)
    assert finished(keyed, wanted["taskUUID"], **{"X-API-Key": "key-a"})[0]["videoUUID"] == item["videoUUID"]
    # the link works without a key, and another key sees nothing
    assert "token=" in item["videoURL"]
    assert http.get(item["videoURL"]).status_code == 200
    look = {"taskType": "getResponse", "taskUUID": wanted["taskUUID"]}
    assert post(keyed, look, status=400, **KEY_B)["errors"][0]["code"] == "taskNotFound"
    stolen = look | {"taskUUID": item["videoUUID"]}
    assert post(keyed, stolen, status=400, **KEY_B)["errors"][0]["code"] == "taskNotFound"


def test_without_a_key_nothing_is_done(keyed: Server) -> None:
    for headers, tasks, code in (
        ({}, [task()], "missingApiKey"),
        ({"Authorization": "Bearer wrong"}, [task()], "invalidApiKey"),
        ({}, [LOGIN | {"apiKey": "wrong"}, task()], "invalidApiKey"),
        ({}, [task(), LOGIN], "missingApiKey"),
        ({}, {}, "missingApiKey"),
    ):
        answer = http.post(f"{keyed.url}/v1", json=tasks, headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (401, code)
    assert http.get(f"{keyed.url}/v1/jobs", headers=KEY_B).json()["data"] == []


def test_of_a_strangers_body_only_the_beginning_is_read(keyed: Server) -> None:
    with socket.create_connection(("127.0.0.1", int(keyed.url.rpartition(":")[2])), timeout=5) as raw:
        raw.sendall(b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n[" + b" " * 5000)
        answer = raw.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer.lower()


def test_4k_is_accepted_where_it_is_allowed(keyed: Server) -> None:
    wanted = task(width=3840, height=2160, positivePrompt="seconds=60")
    post(keyed, wanted, **KEY_A)
    (item,) = post(keyed, {"taskType": "getResponse", "taskUUID": wanted["taskUUID"]}, **KEY_A)["data"]
    assert http.delete(f"{keyed.url}/v1/jobs/{own_id_of('job', item['videoUUID'])}", headers=KEY_A).is_success


def test_results_are_announced_and_put_and_have_a_price_and_an_end(keyed: Server, receiver: Receiver) -> None:
    wanted = task(
        numberResults=2,
        includeCost=True,
        ttl=60,
        webhookURL=receiver.url + "/told",
        uploadEndpoint=receiver.url + "/clip.mp4",
    )
    post(keyed, wanted, **KEY_A)
    items = finished(keyed, wanted["taskUUID"], **KEY_A)
    for item in items:
        total = job_of(keyed, item, **KEY_A)["result"]["timings"]["total_s"]
        assert item["cost"] == pytest.approx(total / 2, abs=0.001)
    clips = [http.get(item["videoURL"]).content for item in items]
    assert sorted(receiver.got("PUT", 2)) == sorted(("/clip.mp4", clip) for clip in clips)
    told = [json.loads(body) for path, body in receiver.got("POST", 2) if path == "/told"]
    for item in items:
        (entry,) = (each["data"][0] for each in told if each["data"][0]["videoUUID"] == item["videoUUID"])
        assert entry["videoURL"].startswith(item["videoURL"].partition("?")[0])
        assert {**entry, "videoURL": ""} == {**item, "videoURL": ""}
    failing = task(positivePrompt="fail=out_of_memory", webhookURL=receiver.url + "/failed")
    post(keyed, failing, **KEY_A)
    (error,) = json.loads(receiver.got("POST", 3)[-1][1])["errors"]
    assert (error["code"], error["taskUUID"]) == ("inferenceError", failing["taskUUID"])


# over websockets


def listening(server: Server, path: str = "/v1", **headers: str) -> ClientConnection:
    return connect(server.url.replace("http", "ws", 1) + path, additional_headers=headers, proxy=None)


def said(client: ClientConnection, *tasks: Any) -> dict[str, Any]:
    """What is answered to an array of tasks."""
    client.send(json.dumps(tasks))
    return dict(json.loads(client.recv(10)))


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
def test_a_socket_does_the_same_tasks(fake_server: Server, path: str) -> None:
    with listening(fake_server, path) as client:
        assert said(client, {"taskType": "ping", "ping": True}) == {"data": [{"taskType": "ping", "pong": True}]}
        session = str(uuid4())
        (item,) = said(client, LOGIN | {"connectionSessionUUID": session})["data"]
        assert item["connectionSessionUUID"] == session
        for broken in ("{", "[1", "\0", '{"taskType":"ping"}'):
            client.send(broken)
            assert json.loads(client.recv(5))["errors"][0]["code"].startswith("invalid")
        client.send(b'[{"taskType":"ping","ping":true}]')
        assert "pong" in client.recv(5)
        wanted = [task() for _ in range(20)]
        for each in wanted:
            client.send(json.dumps([each]))
        answers = [json.loads(client.recv(10))["data"][0]["taskUUID"] for _ in wanted]
        assert answers == [each["taskUUID"] for each in wanted]  # in their order
        waiting, pinging = task(deliveryMethod="sync", positivePrompt="seconds=0.3", numberResults=2), time.monotonic()
        client.send(json.dumps([waiting]))
        assert "pong" in json.dumps(said(client, {"taskType": "ping", "ping": True}))
        assert time.monotonic() - pinging < 0.3
        items = json.loads(client.recv(10))["data"]
        assert [(each["taskUUID"], each["status"]) for each in items] == [(waiting["taskUUID"], "success")] * 2
    # whoever comes back finds what the session has made
    assert finished(fake_server, wanted[-1]["taskUUID"])


def test_a_socket_wants_a_key(keyed: Server) -> None:
    with listening(keyed, **KEY_A) as client:
        assert said(client, task())["data"]
    with listening(keyed, Authorization="Bearer wrong") as client:
        assert said(client, {"taskType": "ping", "ping": True})["data"][0]["pong"]
        (error,) = said(client, task())["errors"]
        assert (error["code"], error["taskType"]) == ("missingApiKey", "videoInference")
        (error,) = said(client, LOGIN | {"apiKey": "wrong"})["errors"]
        assert error == {
            "code": "invalidApiKey",
            "message": "this API key is not known here",
            "parameter": "apiKey",
            "taskType": "authentication",
        }
        auth, ack = said(client, LOGIN, task())["data"]
        assert (auth["taskType"], ack["taskType"]) == ("authentication", "videoInference")
    with listening(keyed) as client:
        client.send(json.dumps([LOGIN | {"apiKey": "x" * STRANGER_BYTES}]))
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    assert "key-a" not in keyed.log
    assert "Traceback" not in keyed.log


def test_what_comes_right_behind_a_key_is_not_a_strangers(keyed: Server) -> None:
    with listening(keyed) as client:
        wanted = task(inputs={"frameImages": [GREY]})
        client.send(json.dumps([LOGIN]))
        client.send(json.dumps([wanted]))
        assert json.loads(client.recv(5))["data"][0]["taskType"] == "authentication"
        assert json.loads(client.recv(5))["data"][0]["taskUUID"] == wanted["taskUUID"]


def test_strangers_do_not_keep_others_out(keyed: Server) -> None:
    with ExitStack() as stack:
        first, *others = (stack.enter_context(listening(keyed)) for _ in range(1 + MOST_STRANGERS))
        with pytest.raises(ConnectionClosed) as caught:
            first.recv(5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
        assert said(others[-1], LOGIN)["data"]


def test_a_message_may_be_large_but_not_too_large(fake_server: Server) -> None:
    before = fake_server.log.count("Traceback")
    with listening(fake_server) as client:
        big = task(inputs={"frameImages": ["A" * (15 * 2**20)]})
        assert said(client, big)["errors"][0]["code"] == "unsupportedMediaFormat"
        # more is refused while it is still being sent
        with pytest.raises(ConnectionClosed):
            said(client, "x" * 2**24)
    assert fake_server.log.count("Traceback") == before


# with the libraries

Libraries = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def library(client_python: Callable[[str], Path], data: Path) -> Libraries:
    """Runs a program of ``tests/clients`` in the environment of its library, and says what it saw."""

    def run(name: str, url: str, key: str = "none", *, photo: bool = True) -> dict[str, Any]:
        program = ROOT / "tests" / "clients" / f"{name.replace('-', '_')}_client.py"
        command = [client_python(name), program, url, key, *([data / "photo.jpg"] if photo else [])]
        quick = os.environ | {"RUNWARE_VIDEO_POLLING_DELAY": "50"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=quick, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


def socket_url(server: Server) -> str:
    return server.url.replace("http", "ws", 1) + "/v1"


def test_the_older_library_works(fake_server: Server, library: Libraries, tmp_path: Path) -> None:
    seen = library("runware", socket_url(fake_server))
    assert seen["pong"]
    assert seen["session"]
    (text,) = seen["text"]
    assert (text["status"], text["cost"]) == ("success", 0.0)
    for name, frames in (("image", {"image"}), ("uploaded", {"image", "end_image"})):
        (item,) = seen[name]
        assert frames == {"image", "end_image"} & job_of(fake_server, item)["params"].keys()
    upload = seen["upload"]["image"]
    assert http.get(upload["imageURL"]).headers["Content-Type"] == "image/jpeg"
    assert [item["seed"] for item in seen["four"]] == [7, 8, 9, 10]
    for number, item in enumerate(seen["four"]):
        clip = tmp_path / f"{number}.mp4"
        clip.write_bytes(http.get(item["videoURL"]).content)
        assert (probe_video(clip).width, probe_video(clip).num_frames) == (64, 10)
    assert len({item["videoUUID"] for item in seen["four"]}) == 4
    assert seen["sound"][0]["videoURL"].endswith(".webm")
    assert job_of(fake_server, seen["sound"][0])["result"]["has_audio"]
    again = job_of(fake_server, seen["retake"][0])
    assert (again["result"]["mode"], again["result"]["prompt"]) == ("Retake", "another lamp, in detail")
    assert again["params"]["retake"] == {"start": 0.0, "end": 1.0, "streams": "picture"}
    assert again["params"]["loras"] == [{"name": "film", "scale": 0.5}]
    assert len({item["videoUUID"] for item in seen["sync"]}) == 2
    assert len({item["videoUUID"] for item in seen["together"]}) == 5
    codes = {name: error["code"] for name, error in seen["errors"].items()}
    assert codes == {
        "model": "unsupportedModel",
        "size": "invalidParameter",
        "failed": "inferenceError",
        "one of two": "inferenceError",
        "unknown": "taskNotFound",
    }
    assert max(error["seconds"] for error in seen["errors"].values()) < 2


def test_the_newer_library_works_by_both_of_its_transports(fake_server: Server, library: Libraries) -> None:
    both = library("runware-sdk", f"{fake_server.url}/v1")
    for seen in both.values():
        assert [(item["seed"], item["status"]) for item in seen["three"]] == [(n, "success") for n in (1, 2, 3)]
        assert {item["videoUUID"] for item in seen["results"]} == {item["videoUUID"] for item in seen["three"]}
        assert {item["status"] for item in seen["progress"]} == {"processing"}
        (image,) = seen["image"]
        assert image["cost"] == 0.0
        assert job_of(fake_server, image)["params"]["image"]["file_id"] == own_id_of(
            "file", seen["upload"]["imageUUID"]
        )
        assert [item["status"] for item in seen["sync"]] == ["success", "success"]
        (again,) = seen["retake"]
        assert again["positivePrompt"] == "a lamp, in detail"
        part = job_of(fake_server, again)["params"]["retake"]
        assert (part["start"], part["end"], part["streams"]) == (0.1, pytest.approx(0.3), "sound")
        assert seen["removed"][0]["mediaUUID"] == seen["stored"]["mediaUUID"]
        codes = {name: seen[name]["code"] for name in ("model", "field", "failed", "sync failed", "unknown", "other")}
        assert codes == {
            "model": "validation",
            "field": "validation",
            "failed": "provider",
            "sync failed": "provider",
            "unknown": "notFound",
            "other": "validation",
        }
        assert seen["field"]["parameter"] == "colour"


def test_the_libraries_raise_when_their_key_is_wrong(keyed: Server, library: Libraries) -> None:
    old = library("runware", socket_url(keyed), "wrong", photo=False)
    assert (old["session"], old["error"]) == (None, "this API key is not known here")
    assert "error" not in library("runware", socket_url(keyed), "key-b", photo=False)
    for seen in library("runware-sdk", f"{keyed.url}/v1", "wrong", photo=False).values():
        assert (seen["code"], seen["message"].partition(" (")[0]) == ("auth", "this API key is not known here")


@pytest.mark.parametrize(
    ("name", "beginning"), [("runware-sdk", "Runware\n"), ("runware", "IVideoInference, Runware\n")]
)
def test_what_the_document_shows_works(
    fake_server: Server, client_python: Callable[[str], Path], name: str, beginning: str
) -> None:
    begin = "```python\nimport asyncio\n\nfrom runware import " + beginning
    written = (ROOT / "docs" / "clients.md").read_text().split(begin)[1].split("```")[0]
    place = fake_server.url.removeprefix("http://")
    code = begin.removeprefix("```python\n") + written.replace("127.0.0.1:8000", place)
    quick = os.environ | {"RUNWARE_VIDEO_POLLING_DELAY": "50"}
    command = [client_python(name), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=quick, check=False)
    assert done.returncode == 0, done.stderr
    links = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(links) == (2 if name == "runware-sdk" else 1)
    assert http.get(links[0]).content[4:8] == b"ftyp"


def test_the_libraries_work_with_a_model(server: Server, library: Libraries, tmp_path: Path) -> None:
    old = library("runware", socket_url(server), photo=False)
    new = library("runware-sdk", f"{server.url}/v1", photo=False)
    for seen in (old, new["rest"], new["websocket"]):
        (video,) = seen["text"]
        assert video["status"] == "success"
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(http.get(video["videoURL"]).content)
        facts = probe_video(clip)
        assert (facts.width, facts.height, facts.num_frames, facts.audio_codec) == (64, 64, 10, None)
