"""The kiapi dialect: its bodies and views by themselves, and all of it over HTTP."""

import base64
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from pydantic import ValidationError

from ltx2.dialects.base import STATUS
from ltx2.dialects.kiapi import check, owns, prefers_json, render_error
from ltx2.dialects.kiapi_bodies import GenerateRequest, UnknownModel, to_request
from ltx2.dialects.kiapi_views import view
from ltx2.dialects.openai_media import name_of
from ltx2.engine import ClipFacts, Progress
from ltx2.errors import Failure, InvalidRequest, LTX2Error, OutOfMemory, QueueFull, TimedOut, UnknownFile
from ltx2.media.probe import probe_video
from ltx2.payload import invalid, parse
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.job import Job, Order
from ltx2.studio.store import fingerprint
from processes import Server, running_server, wait_until_warm

GENERATE = "/v1/video/ltx2/generate"
SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9}
ID = "file_" + "1a" * 16
FILE = {"type": "file_id", "file_id": ID}
URL = {"type": "url", "url": "https://example.com/input.png"}
DATA = {"type": "data_url", "data_url": "data:image/png;base64,iVBORw0KGgo="}


def understood(**fields: Any) -> tuple[GenerationRequest, Mapping[str, Any]]:
    return to_request(GenerateRequest.model_validate({"prompt": "a lamp"} | fields))


def refused(**fields: Any) -> str | None:
    """The field at fault, as the application finds it."""
    try:
        understood(**fields)
    except ValidationError as error:
        return invalid(error.errors(include_url=False, include_input=False)[0]).field
    except InvalidRequest as error:
        return error.field
    raise AssertionError("it was accepted")


def job_of(request: GenerationRequest, **changes: Any) -> Job:
    """A job that succeeded, with a file for each media."""
    names = [keyframe.image for keyframe in request.keyframes] + ([request.audio.source] if request.audio else [])
    names += [request.video] if request.video else []
    done = Job(
        id="job_" + "0" * 32,
        order=Order(dialect="kiapi"),
        request=request if request.seed is not None else request.model_copy(update={"seed": 7}),
        inputs={name: f"file_{number:032x}" for number, name in enumerate(names)},
        state="succeeded",
        created_at=100.0,
        started_at=101.5,
        finished_at=109.0,
        tries=1,
        progress=Progress("muxing"),
        result=ClipFacts(
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            fps=Fraction(24),
            audio_sample_rate=24_000 if request.include_audio else None,
            seed=7,
            steps=8,
            stages=1,
            model="tiny",
            warnings=("a doubt",),
            seconds={"denoising": 1.23456, "muxing": 0.1},
        ),
        file_id=ID,
        file_size=4321,
    )
    return replace(done, **changes)


def asked(path: str, method: str = "POST", **path_params: str) -> Request:
    return Request({"type": "http", "method": method, "path": path, "headers": [], "path_params": path_params})


def told(error: LTX2Error, request: Request, status: int | None = None) -> tuple[int, Any]:
    answer = render_error(error, request, status)
    return answer.status_code, json.loads(answer.body)["detail"]


# ---- bodies


def test_a_prompt_alone_is_a_silent_square_of_four_seconds() -> None:
    request, sources = understood()
    assert (request.width, request.height, request.num_frames, request.fps) == (512, 512, 97, 24)
    assert (request.include_audio, request.seed, request.mode) == (False, None, "T2V")
    assert sources == {}


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "T2V"),
        ({"generate_audio": True}, "T2V+Audio"),
        ({"image": URL}, "I2V"),
        ({"image": URL, "end_image": DATA}, "I2V(first+last)"),
        ({"end_image": FILE}, "I2V(last)"),
        ({"audio": FILE}, "A2V"),
        ({"audio": URL, "image": FILE}, "A2V+I2V"),
    ],
)
def test_the_mode_follows_from_what_is_attached(fields: dict[str, Any], mode: str) -> None:
    request, sources = understood(**fields)
    assert sources.keys() == fields.keys() - {"generate_audio"}
    result = view(job_of(request)).result
    assert result is not None
    assert result.mode == mode
    assert result.has_audio == ("audio" in fields or "generate_audio" in fields)


def test_media_may_be_named_by_id_by_url_and_as_data() -> None:
    _, sources = understood(image=URL, end_image=DATA, audio=FILE)
    assert sources == {"image": URL["url"], "end_image": DATA["data_url"], "audio": ID}


def test_everything_of_a_body_arrives_and_what_is_unknown_is_ignored() -> None:
    request, _ = understood(
        model=None,
        mode="async",
        width=768,
        height=64,
        num_frames=721,
        fps=120,
        seed=2**63 - 1,
        image=FILE | {"comment": 1},
        image_strength=0.7,
        end_image=FILE,
        end_image_strength=0,
        audio=None,
        negative_prompt="blur",
        num_inference_steps=4,
        webhook_url=None,
        x={"a": [1]},
    )
    assert (request.width, request.height, request.num_frames, request.fps) == (768, 64, 721, 120)
    assert (request.seed, request.negative_prompt, request.num_inference_steps) == (2**63 - 1, "blur", 4)
    assert [(k.image, k.frame, k.strength) for k in request.keyframes] == [
        ("image", "first", 0.7),
        ("end_image", "last", 0.0),
    ]


def test_strengths_are_full_unless_they_are_given() -> None:
    request, _ = understood(image=FILE, end_image=FILE, image_strength=0.5)
    assert [keyframe.strength for keyframe in request.keyframes] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"width": 0}, "width"),
        ({"width": 32}, "width"),
        ({"height": 100}, "height"),
        ({"height": 8256}, "height"),
        ({"height": 64.0}, "height"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 96}, "num_frames"),
        ({"num_frames": True}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"fps": 121}, "fps"),
        ({"fps": 24.5}, "fps"),
        ({"fps": True}, "fps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"image_strength": 1.1}, "image_strength"),
        ({"image_strength": None}, "image_strength"),
        ({"end_image_strength": float("nan")}, "end_image_strength"),
        ({"generate_audio": 1}, "generate_audio"),
        ({"audio": FILE, "generate_audio": True}, "generate_audio"),
        ({"mode": "later"}, "mode"),
        ({"model": 5}, "model"),
        ({"image": "https://example.com/input.png"}, "image"),
        ({"image": {"file_id": ID}}, "image"),
        ({"image": {"type": "path", "path": "/etc/passwd"}}, "image"),
        ({"image": {"type": ["url"]}}, "image"),
        ({"image": {"type": "file_id"}}, "image.file_id.file_id"),
        ({"image": {"type": "url", "url": ID}}, "image.url.url"),
        ({"image": {"type": "url", "url": "file:///etc/passwd"}}, "image.url.url"),
        ({"audio": {"type": "data_url", "data_url": "https://example.com/a"}}, "audio.data_url.data_url"),
        ({"audio": {"type": "data_url", "data_url": "aGVsbG8="}}, "audio.data_url.data_url"),
        ({str(number): 0 for number in range(1000)}, None),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(fields: dict[str, Any], field: str | None) -> None:
    assert refused(**fields) == field


def test_no_message_repeats_what_was_sent() -> None:
    secret = "s3cr3t"
    for ref in ({"type": secret}, {"type": "url", "url": secret}, {"type": "data_url", "data_url": secret}, secret):
        with pytest.raises(ValidationError) as caught:
            understood(image=ref)
        assert secret not in invalid(caught.value.errors(include_url=False, include_input=False)[0]).message


@pytest.mark.parametrize("file_id", ["file_0123456789abcdef", "x", "../../etc/passwd", ID + "\n", ID.upper()])
def test_what_is_no_id_of_a_file_here_is_an_unknown_file(file_id: str) -> None:
    with pytest.raises(UnknownFile) as caught:
        understood(end_image={"type": "file_id", "file_id": file_id})
    assert caught.value.field == "end_image"


@pytest.mark.parametrize("model", [None, "distilled", "org/name"])
def test_the_model_goes_by_two_names(model: str | None) -> None:
    check(GenerateRequest(prompt="a lamp", model=model), Settings(model="org/name"))


def test_a_model_that_is_not_here_is_refused() -> None:
    with pytest.raises(UnknownModel) as caught:
        check(GenerateRequest(prompt="a lamp", model="turbo"), Settings())
    assert caught.value.field == "model"


@pytest.mark.parametrize("field", ["width", "height", "num_frames"])
def test_sizes_and_lengths_have_a_cap_of_their_own(field: str) -> None:
    settings = Settings(kiapi_max_side=128, kiapi_max_frames=128)
    small = {"width": 128, "height": 128, "num_frames": 121}
    check(GenerateRequest(prompt="a lamp", **small), settings)
    with pytest.raises(InvalidRequest) as caught:
        check(GenerateRequest(prompt="a lamp", **small | {field: 1 + 192 if field == "num_frames" else 192}), settings)
    assert caught.value.field == field


# ---- views


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"generate_audio": True, "negative_prompt": "", "num_inference_steps": 3},
        {"image": URL, "image_strength": 0.25},
        {"image": URL, "image_strength": 0.0},
        {"image": DATA, "end_image": FILE, "end_image_strength": 0.5},
        {"end_image": FILE},
        {"end_image": FILE, "num_frames": 1},
        {"image": FILE, "num_frames": 1},
        {"audio": FILE, "width": 128, "height": 192, "num_frames": 25, "fps": 30, "seed": 0},
        {"audio": FILE, "image": FILE, "end_image": FILE, "end_image_strength": 0},
        {"audio": FILE, "audio_dither_db": -40.5, "num_frames": "auto"},
        {"image": FILE, "loop": True, "loras": [{"name": "a"}, {"name": "b", "scale": 0}], "retry_if": ["silent"]},
        {"video": FILE, "retake": {"start": 0, "end": 1.5, "streams": "sound"}, "enhance_prompt": True},
        {"video": DATA, "extend": {"seconds": 2, "side": "start"}, "image": FILE, "generate_audio": False},
    ],
)
def test_posting_the_params_again_asks_for_the_same(fields: dict[str, Any]) -> None:
    request, _ = understood(**fields)
    job = job_of(request)
    shown = view(job)
    assert shown.result is not None
    assert shown.result.params == shown.params
    again, sources = to_request(GenerateRequest.model_validate_json(json.dumps(shown.params)))
    assert again == job.request
    assert sources == job.inputs


def test_a_job_that_succeeded_is_shown_with_everything() -> None:
    request, _ = understood(image=FILE, fps=30)
    shown = view(job_of(request)).model_dump(mode="json")
    params = {
        "prompt": "a lamp",
        "width": 512,
        "height": 512,
        "num_frames": 97,
        "fps": 30,
        "seed": 7,
        "generate_audio": False,
        "image": {"type": "file_id", "file_id": "file_" + "0" * 32},
        "image_strength": 1.0,
    }
    assert shown == {
        "id": "job_" + "0" * 32,
        "type": "ltx2",
        "status": "succeeded",
        "params": params,
        "result": {
            "file_id": ID,
            "video_bytes": 4321,
            "mode": "I2V",
            "prompt": "a lamp",
            "params": params,
            "has_audio": False,
            "timings": {"total_s": 1.335},
            "model": "tiny",
            "warnings": ["a doubt"],
            "phase_seconds": {"denoising": 1.235, "muxing": 0.1},
        },
        "artifacts": [ID],
        "error": None,
        "created_at": 100.0,
        "started_at": 101.5,
        "finished_at": 109.0,
        "progress": 1.0,
        "progress_label": "done",
    }


def test_only_a_test_card_is_called_one() -> None:
    shown = view(job_of(understood()[0], fake=True)).model_dump()
    assert shown["result"]["fake"] is True


NOT_DONE = {"result": None, "file_id": None, "file_size": 0, "finished_at": None}


@pytest.mark.parametrize(
    ("changes", "progress", "label", "error"),
    [
        ({"state": "queued", "started_at": None, "progress": Progress("queued")}, None, "queued", None),
        # it was begun and put back
        ({"state": "queued", "progress": Progress("queued")}, None, "queued", None),
        ({"state": "running", "progress": Progress("queued")}, 0.0, "running", None),
        ({"state": "running", "progress": Progress("denoising", 4, 8)}, 0.465, "denoising", None),
        (
            {"state": "failed", "failure": Failure("out_of_memory", "no room", hint="less"), "finished_at": 3.0},
            0.465,
            "failed",
            "no room (less)",
        ),
        ({"state": "canceled", "started_at": None, "progress": Progress("queued")}, None, "canceled", None),
        ({"state": "canceled", "finished_at": 3.0}, 0.465, "canceled", None),
    ],
)
def test_a_job_says_how_far_it_is(
    changes: dict[str, Any], progress: float | None, label: str, error: str | None
) -> None:
    halfway = {"progress": Progress("denoising", 4, 8)}
    shown = view(job_of(understood()[0], **NOT_DONE | halfway | changes))
    assert shown.status == changes["state"]
    assert shown.progress == (None if progress is None else pytest.approx(progress))
    assert (shown.progress_label, shown.error) == (label, error)
    assert (shown.result, shown.artifacts, shown.finished_at) == (None, [], changes.get("finished_at"))
    assert (shown.started_at is None) == (progress is None)


def test_jobs_of_other_dialects_are_shown_in_the_fields_of_this_one() -> None:
    request, _ = parse(
        {
            "prompt": "a lamp",
            "fps": 23.976,
            "num_frames": 49,
            "image_start": ID,
            "image_strength": 0.5,
            "keyframes": [{"image": ID, "frame": 8, "strength": 0.2}, {"image": ID, "frame": 48}],
            "audio": ID,
            "audio_strength": 0,
        }
    )
    job = job_of(request)
    params = view(job).params
    ref = {name: {"type": "file_id", "file_id": file_id} for name, file_id in job.inputs.items()}
    assert (params["fps"], params["generate_audio"]) == (23.976, True)
    assert (params["image"], params["image_strength"]) == (ref["image_start"], 0.5)
    assert (params["end_image"], params["end_image_strength"]) == (ref["keyframes[1].image"], 1.0)
    assert params["keyframes"] == [{"image": ref["keyframes[0].image"], "frame": 8, "strength": 0.2}]
    assert "audio" not in params  # of strength 0, so it says nothing


def test_the_way_a_request_is_waited_for_is_no_part_of_it() -> None:
    marks = {
        fingerprint(*to_request(GenerateRequest(prompt="a lamp", mode=mode)), Order()) for mode in ("sync", "async")
    }
    assert len(marks) == 1


# ---- errors, paths, and what is accepted


def test_a_wrong_field_is_told_as_the_framework_tells_it() -> None:
    error = InvalidRequest("must be even", field="image.url.url", hint="ask for less")
    detail = [{"loc": ["body", "image", "url"], "msg": "must be even (ask for less)", "type": "invalid_request"}]
    assert told(error, asked(GENERATE)) == (422, detail)


@pytest.mark.parametrize(
    ("field", "request_", "loc"),
    [
        (None, asked(GENERATE), ["body"]),
        ("num_frames", asked(GENERATE), ["body", "num_frames"]),
        ("Idempotency-Key", asked(GENERATE), ["header", "Idempotency-Key"]),
        ("X-Priority", asked(GENERATE), ["header", "X-Priority"]),
        ("job_id", asked("/v1/jobs/x", "GET", job_id="x"), ["path", "job_id"]),
        ("file_id", asked("/v1/files/x", "DELETE", file_id="x"), ["path", "file_id"]),
        ("limit", asked("/v1/jobs", "GET"), ["query", "limit"]),
        ("loras[1].name", asked(GENERATE), ["body", "loras", 1, "name"]),
        ("retry_if[0]", asked(GENERATE), ["body", "retry_if", 0]),
    ],
)
def test_an_error_says_where_its_field_is(field: str | None, request_: Request, loc: list[str | int]) -> None:
    assert told(InvalidRequest("wrong", field=field), request_)[1][0]["loc"] == loc


def test_every_other_error_is_one_text() -> None:
    assert told(OutOfMemory("no room", hint="less"), asked(GENERATE)) == (503, "no room (less)")
    assert told(TimedOut("not yet"), asked(GENERATE)) == (504, "not yet")
    assert told(UnknownFile("no such file", field="audio"), asked(GENERATE)) == (400, "audio: no such file")
    assert told(InvalidRequest("not that method"), asked(GENERATE), 405) == (405, "not that method")
    assert render_error(QueueFull("full"), asked(GENERATE)).headers["retry-after"]


def test_every_code_has_an_answer() -> None:
    kinds = [LTX2Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # some dialects have kinds of their own, which none of the others ever sees
    ours = [kind for kind in kinds if kind.__module__ == LTX2Error.__module__]
    for kind in (*ours, UnknownModel):
        expected = 400 if kind in (UnknownFile, UnknownModel) else STATUS[kind.code]
        assert render_error(kind("wrong"), asked(GENERATE)).status_code == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("video/mp4", False),
        ("text/html, */*;q=0.8", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json, text/plain, */*", True),
        ("*/*, application/json", True),
        ("video/mp4, application/json", False),
        ("application/json, video/*", True),
        ("video/mp4;q=0.5, application/json", True),
        ("application/json;q=0.4, video/mp4;q=0.5", False),
        ("application/json;q=0", False),
        ("application/json;q=nan, x", True),
        ("application/jsonx", False),
    ],
)
def test_json_is_answered_to_who_prefers_it(accept: str, expected: bool) -> None:
    assert prefers_json(accept) == expected


def test_the_paths_of_this_dialect_are_known() -> None:
    for path in (GENERATE, "/v1/video/ltx2/nothing", "/v1/jobs", "/v1/jobs/job_1", "/v1/files", "/v1/files/"):
        assert owns(path)
    for path in ("/", "/v1", "/v1/videos", "/v1/jobsx", "/v1/video/async_t2v", "/generate"):
        assert not owns(path)


# ---- over HTTP


@pytest.fixture
def kiapi(fake_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fake_server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys, where nobody waits long and there is little room."""
    settings = {
        "LTX2_API_KEYS": "one,two",
        "LTX2_SYNC_SECONDS": "0.3",
        "LTX2_MAX_BODY_MB": "1",
        "LTX2_FILES_MAX_GB": "0.001",
    }
    with running_server(tmp_path_factory.mktemp("guarded"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running


def uploaded(client: httpx.Client, path: Path) -> dict[str, str]:
    answer = client.post("/v1/files", files={"file": (path.name, path.read_bytes())}).raise_for_status()
    return {"type": "file_id", "file_id": answer.json()["file_id"]}


def ended(client: httpx.Client, job_id: str, *states: str) -> dict[str, Any]:
    """The job, once it is in one of these states, or over."""
    states = (*states, "succeeded", "failed", "canceled")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        if job["status"] in states:
            return job
        time.sleep(0.02)
    raise AssertionError("it did not end")


def started(client: httpx.Client, **fields: Any) -> str:
    answer = client.post(GENERATE, json=SMALL | {"mode": "async"} | fields)
    assert answer.status_code == 202, answer.text
    assert answer.json().keys() == {"job_id", "type", "status"}
    return str(answer.json()["job_id"])


def test_a_clip_is_answered_raw_with_the_ids_of_its_file_and_job(kiapi: httpx.Client, tmp_path: Path) -> None:
    answer = kiapi.post(GENERATE, json=SMALL | {"generate_audio": True, "fps": 12, "seed": 3}).raise_for_status()
    assert answer.headers["content-type"] == "video/mp4"
    path = tmp_path / "clip.mp4"
    path.write_bytes(answer.content)
    facts = probe_video(path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (64, 64, 9, 12)
    assert facts.audio_codec == "aac"
    file_id, job_id = answer.headers["x-kiapi-file-id"], answer.headers["x-kiapi-job-id"]
    assert kiapi.get(f"/v1/files/{file_id}/download").content == answer.content
    record = kiapi.get(f"/v1/files/{file_id}").json()
    assert (record["file_id"], record["content_type"], record["size"]) == (file_id, "video/mp4", len(answer.content))
    assert kiapi.get(f"/v1/jobs/{job_id}").json()["artifacts"] == [file_id]


def test_a_clip_is_answered_as_its_job_to_who_wants_json(kiapi: httpx.Client) -> None:
    answer = kiapi.post(GENERATE, json=SMALL | {"seed": 3}, headers={"Accept": "application/json"})
    assert answer.status_code == 200
    job = answer.json()
    assert job == kiapi.get(f"/v1/jobs/{job['id']}").json()
    assert (job["type"], job["status"], job["progress"], job["progress_label"]) == ("ltx2", "succeeded", 1.0, "done")
    assert (job["result"]["mode"], job["result"]["fake"], job["error"]) == ("T2V", True, None)
    assert job["result"]["video_bytes"] == kiapi.get(f"/v1/files/{job['result']['file_id']}").json()["size"]
    assert 0 < job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_a_job_is_followed_and_its_clip_downloaded_in_parts(kiapi: httpx.Client) -> None:
    job_id = started(kiapi, prompt="seconds=0.5")
    seen = ended(kiapi, job_id, "running")
    assert seen["result"] is None
    while seen["status"] == "running":
        assert seen["progress_label"] in ("running", "loading", "encoding", "denoising", "decoding", "muxing")
        assert 0 <= seen["progress"] <= 1
        seen = kiapi.get(f"/v1/jobs/{job_id}").json()
    assert seen["status"] == "succeeded"
    link = f"/v1/files/{seen['artifacts'][0]}/download"
    whole = kiapi.get(link)
    assert whole.headers["content-type"] == "video/mp4"
    part = kiapi.get(link, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    assert kiapi.head(link).headers["content-length"] == str(len(whole.content))


def test_the_newest_jobs_and_files_are_listed_first(kiapi: httpx.Client, data: Path) -> None:
    made = [kiapi.post(GENERATE, json=SMALL).headers["x-kiapi-job-id"] for _ in range(2)]
    listed = kiapi.get("/v1/jobs", params={"limit": 2}).json()
    assert listed["object"] == "list"
    assert [job["id"] for job in listed["data"]] == made[::-1]
    sent = [uploaded(kiapi, data / name)["file_id"] for name in ("photo.jpg", "speech.mp3")]
    listed = kiapi.get("/v1/files", params={"limit": 2}).json()
    assert listed["object"] == "list"
    assert [file["file_id"] for file in listed["data"]] == sent[::-1]


def test_lists_go_on_where_they_ended(kiapi: httpx.Client) -> None:
    for path, name in (("/v1/jobs", "id"), ("/v1/files", "file_id")):
        for _ in range(3):
            kiapi.post(GENERATE, json=SMALL).raise_for_status()
        whole = [each[name] for each in kiapi.get(path, params={"limit": 5}).json()["data"]]
        first = [each[name] for each in kiapi.get(path, params={"limit": 2}).json()["data"]]
        rest = [each[name] for each in kiapi.get(path, params={"limit": 3, "after": first[-1]}).json()["data"]]
        assert first + rest == whole
        kind = path.removeprefix("/v1/").removesuffix("s")
        unknown = kiapi.get(path, params={"after": f"{kind}_" + "0" * 32})
        assert unknown.status_code == 404
        assert "there is no such" in unknown.json()["detail"]
        wrong = kiapi.get(path, params={"after": "\0"})
        assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["query", "after"])


def test_jobs_of_all_dialects_are_listed(kiapi: httpx.Client) -> None:
    native = kiapi.post("/generate", json=SMALL | {"fps": 12.5}).raise_for_status().headers["x-job-id"]
    job = kiapi.get(f"/v1/jobs/{native}").json()
    assert (job["type"], job["params"]["fps"], job["result"]["mode"]) == ("ltx2", 12.5, "T2V+Audio")


def test_a_file_is_kept_told_of_downloaded_and_removed(kiapi: httpx.Client, data: Path) -> None:
    photo = (data / "photo.jpg").read_bytes()
    record = kiapi.post("/v1/files", files={"file": ("a/../Foto ä.png", photo, "text/html")}).json()
    assert record.keys() == {"file_id", "filename", "content_type", "size", "created_at", "meta"}
    assert (record["filename"], record["content_type"], record["size"]) == ("Foto ä.png", "image/jpeg", len(photo))
    link = f"/v1/files/{record['file_id']}"
    assert kiapi.get(link).json() == record
    download = kiapi.get(link + "/download")
    assert (download.content, download.headers["content-type"]) == (photo, "image/jpeg")
    assert kiapi.delete(link).json() == {"deleted": True, "file_id": record["file_id"]}
    for gone in (kiapi.get(link), kiapi.get(link + "/download"), kiapi.delete(link)):
        assert gone.status_code == 404
        assert gone.json()["detail"].startswith("there is no such file")


def test_uploaded_files_are_what_a_clip_is_made_of(kiapi: httpx.Client, data: Path) -> None:
    photo, speech = uploaded(kiapi, data / "photo.jpg"), uploaded(kiapi, data / "speech.mp3")
    body = SMALL | {"image": photo, "end_image": photo, "image_strength": 0.5, "audio": speech}
    job = kiapi.post(GENERATE, json=body, headers={"Accept": "application/json"}).json()
    assert (job["result"]["mode"], job["result"]["has_audio"]) == ("A2V+I2V", True)
    assert {name: job["params"][name] for name in ("image", "end_image", "audio", "image_strength")} == {
        "image": photo,
        "end_image": photo,
        "audio": speech,
        "image_strength": 0.5,
    }


def test_posting_params_again_makes_the_same_clip(kiapi: httpx.Client, data: Path) -> None:
    inline = "data:image/jpeg;base64," + base64.b64encode((data / "photo.jpg").read_bytes()).decode()
    body = SMALL | {"end_image": {"type": "data_url", "data_url": inline}, "num_inference_steps": 2}
    wanted = {"Accept": "application/json"}
    first = kiapi.post(GENERATE, json=body, headers=wanted).raise_for_status().json()
    again = kiapi.post(GENERATE, json=first["params"], headers=wanted).raise_for_status().json()
    assert again["id"] != first["id"]
    assert again["params"] == first["params"]
    assert again["result"]["mode"] == "I2V(last)"
    clips = [kiapi.get(f"/v1/files/{job['result']['file_id']}/download").content for job in (first, again)]
    assert clips[0] == clips[1]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"num_frames": 10}, ["body", "num_frames"]),
        ({"width": 832}, ["body", "width"]),
        ({"num_frames": 729}, ["body", "num_frames"]),
        ({"image": {"type": "url", "url": "/etc/passwd"}}, ["body", "image", "url"]),
        ({"image": {"type": "url", "url": "http://127.0.0.1:1/x.png"}}, ["body", "image"]),
        ({"image": {"type": "data_url", "data_url": "data:image/png;base64,aGVsbG8="}}, ["body", "image"]),
        ({"webhook_url": "http://127.0.0.1:1/"}, ["body", "webhook_url"]),
        ({"upload_url": "nowhere"}, ["body", "upload_url"]),
    ],
)
def test_a_wrong_body_is_answered_with_the_place_in_it(
    kiapi: httpx.Client, body: dict[str, Any], loc: list[str]
) -> None:
    answer = kiapi.post(GENERATE, json=SMALL | body)
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert detail["loc"] == loc
    assert detail.keys() == {"loc", "msg", "type"}


def test_broken_json_and_missing_files_are_wrong_bodies_too(kiapi: httpx.Client) -> None:
    answers = {
        "body": kiapi.post(GENERATE, content=b"{", headers={"Content-Type": "application/json"}),
        "no form": kiapi.post("/v1/files"),
        "file": kiapi.post("/v1/files", files={"other": ("a.png", b"x")}),
        "empty": kiapi.post("/v1/files", files={"file": ("a.png", b"")}),
        "no name": kiapi.post("/v1/files", files={"file": (None, b"text")}),
        "two": kiapi.post("/v1/files", files=[("file", ("a.png", b"a")), ("file", ("b.png", b"b"))]),
    }
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 422)
    assert answers["body"].json()["detail"][0]["loc"] == ["body"]
    assert answers["no form"].json()["detail"][0]["loc"] == ["body"]
    said = {
        "file": "Field required",
        "empty": "it is empty",
        "no name": "must be sent as a file",
        "two": "was sent more than once",
    }
    for name, message in said.items():
        (detail,) = answers[name].json()["detail"]
        assert (detail["loc"], detail["type"]) == (["body", "file"], "invalid_request")
        assert detail["msg"].startswith(message)


def test_a_form_of_a_thousand_parts_keeps_no_file(kiapi: httpx.Client) -> None:
    newest = kiapi.get("/v1/files", params={"limit": 1}).json()["data"]
    parts = [("file", ("a.png", b"a"))] + [(f"other{number}", (None, b"x")) for number in range(1000)]
    answer = kiapi.post("/v1/files", files=parts)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body"])
    assert "Too many fields" in answer.json()["detail"][0]["msg"]
    assert kiapi.get("/v1/files", params={"limit": 1}).json()["data"] == newest


@pytest.mark.parametrize(("path", "name"), [("/v1/jobs/x", "job_id"), ("/v1/files/file_x/download", "file_id")])
def test_an_id_of_the_wrong_form_is_told_from_an_unknown_one(kiapi: httpx.Client, path: str, name: str) -> None:
    answer = kiapi.get(path)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["path", name])


@pytest.mark.parametrize("path", ["/v1/jobs/job_0", "/v1/files/file_0", "/v1/files/file_0/download", "/v1/jobs/a/b/c"])
def test_what_is_nowhere_is_not_found(kiapi: httpx.Client, path: str) -> None:
    answer = kiapi.get(path)
    assert answer.status_code == 404
    assert isinstance(answer.json()["detail"], str)


def test_a_model_or_a_file_that_is_not_here_is_a_bad_request(kiapi: httpx.Client, data: Path) -> None:
    removed = uploaded(kiapi, data / "photo.jpg")
    kiapi.delete(f"/v1/files/{removed['file_id']}").raise_for_status()
    for fields in ({"model": "turbo"}, {"end_image": removed}, {"audio": {"type": "file_id", "file_id": "file_1"}}):
        answer = kiapi.post(GENERATE, json=SMALL | fields)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith(next(iter(fields)) + ": there is no such ")


def test_the_one_model_is_listed_and_goes_by_its_names(kiapi: httpx.Client) -> None:
    (model,) = kiapi.get("/v1/video/ltx2/models").json()
    assert model == {
        "name": "distilled",
        "family": "ltx2",
        "domain": "video",
        "aliases": ["fake"],
        "default": True,
        "features": ["text", "image", "audio", "video"],
    }
    for name in (model["name"], *model["aliases"]):
        kiapi.post(GENERATE, json=SMALL | {"model": name}).raise_for_status()


def test_a_failed_job_has_the_status_of_its_error(kiapi: httpx.Client) -> None:
    answer = kiapi.post(GENERATE, json=SMALL | {"prompt": "fail=out_of_memory"})
    assert answer.status_code == 503
    job = ended(kiapi, started(kiapi, prompt="fail=out_of_memory"))
    assert (job["status"], job["progress_label"], job["result"], job["artifacts"]) == ("failed", "failed", None, [])
    assert job["error"] == answer.json()["detail"]


def test_deleting_a_job_cancels_it_whether_it_runs_or_waits(kiapi: httpx.Client) -> None:
    running = started(kiapi, prompt="seconds=30")
    assert ended(kiapi, running, "running")["status"] == "running"
    waiting = started(kiapi, prompt="seconds=30")
    assert kiapi.get(f"/v1/jobs/{waiting}").json()["progress_label"] == "queued"
    for job_id, was_running in ((waiting, False), (running, True)):
        answer = kiapi.delete(f"/v1/jobs/{job_id}")
        assert answer.json() == {"deleted": True, "job_id": job_id, "was_running": was_running}
        assert kiapi.get(f"/v1/jobs/{job_id}").status_code == 404
        assert kiapi.delete(f"/v1/jobs/{job_id}").status_code == 404
    began = time.monotonic()
    kiapi.post(GENERATE, json=SMALL).raise_for_status()
    assert time.monotonic() - began < 5


def test_who_waits_for_a_job_is_told_that_it_was_deleted(kiapi: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, str(kiapi.base_url) + GENERATE, json=SMALL | {"prompt": "seconds=30"})
        newest = {"status": "none yet"}
        while newest["status"] != "running" and not answer.done():
            time.sleep(0.02)
            newest = kiapi.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
        kiapi.delete(f"/v1/jobs/{newest['id']}").raise_for_status()
        assert (answer.result().status_code, answer.result().json()) == (409, {"detail": "the job was cancelled"})


def test_a_request_sent_again_with_its_key_is_the_same_job(kiapi: httpx.Client) -> None:
    key = {"Idempotency-Key": f"key-{time.time_ns()}"}
    first = kiapi.post(GENERATE, json=SMALL, headers=key).raise_for_status()
    again = kiapi.post(GENERATE, json=SMALL | {"mode": "async"}, headers=key)
    assert (again.status_code, again.json()["status"]) == (202, "succeeded")
    assert again.json()["job_id"] == first.headers["x-kiapi-job-id"]
    third = kiapi.post(GENERATE, json=SMALL, headers=key).raise_for_status()
    assert third.content == first.content
    changed = kiapi.post(GENERATE, json=SMALL | {"prompt": "another"}, headers=key)
    assert changed.status_code == 422
    assert changed.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]


def test_who_cannot_wait_so_long_is_told_where_the_job_is(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.url, headers={"X-API-Key": "one"}, timeout=30) as client:
        answer = client.post(GENERATE, json=SMALL | {"prompt": "seconds=1"})
        assert answer.status_code == 504
        (job,) = client.get("/v1/jobs").json()["data"]
        assert job["id"] in answer.json()["detail"]
        assert ended(client, job["id"])["status"] == "succeeded"


def test_nobody_sees_what_is_not_theirs(guarded: Server, data: Path) -> None:
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    with httpx.Client(base_url=guarded.url, headers=one) as client:
        photo = uploaded(client, data / "photo.jpg")
        job_id = started(client, image=photo)
    with httpx.Client(base_url=guarded.url, headers=two) as other:
        for path in (f"/v1/jobs/{job_id}", f"/v1/files/{photo['file_id']}"):
            assert other.get(path).status_code == 404
            assert other.delete(path).status_code == 404
        assert other.get(f"/v1/files/{photo['file_id']}/download").status_code == 404
        assert other.get("/v1/jobs").json()["data"] == other.get("/v1/files").json()["data"] == []
        assert other.post(GENERATE, json=SMALL | {"image": photo}).status_code == 400
    without = httpx.get(guarded.url + "/v1/jobs")
    assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
    assert isinstance(without.json()["detail"], str)


def test_a_file_over_the_limit_is_refused(guarded: Server) -> None:
    files = {"file": ("a.bin", bytes(2**20 + 1))}
    answer = httpx.post(guarded.url + "/v1/files", files=files, headers={"X-API-Key": "one"})
    assert answer.status_code == 413
    assert isinstance(answer.json()["detail"], str)


def test_nothing_is_kept_where_there_is_no_room(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.url, headers={"X-API-Key": "one"}) as client:
        large = client.post("/v1/files", files={"file": ("a.bin", bytes(10**6))}).raise_for_status().json()["file_id"]
        answer = client.post("/v1/files", files={"file": ("b.bin", b"b")})
        assert answer.status_code == 507
        assert "GB" in answer.json()["detail"]
        client.delete(f"/v1/files/{large}").raise_for_status()
        client.post("/v1/files", files={"file": ("b.bin", b"b")}).raise_for_status()


@pytest.fixture(scope="module", params=["kiapi-ltx2", "kiapi-common"])
def document(request: pytest.FixtureRequest, data: Path) -> dict[str, Any]:
    """What kiapi publishes about itself."""
    loaded: dict[str, Any] = json.loads((data / "seed" / f"{request.param}.openapi.json").read_text())
    return loaded


RENAMED = {"Job": "JobVideoResponse", "_Timings": "Timings"}
INLINE = {"FileID", "FileRef", "JobID", "JobResult", "JobStatus", "JobType", "HTTPValidationError", "ValidationError"}
INLINE |= {"Body_upload_v1_files_post"}
ELSEWHERE = {"HealthResponse", "MemoryStats", "ResidentModelStats"}


def test_every_route_of_the_document_is_there(kiapi: httpx.Client, document: dict[str, Any]) -> None:
    ours = kiapi.get("/openapi.json").json()["paths"]
    for path, operations in document["paths"].items():
        for method, theirs in operations.items():
            if path == "/health":
                continue
            mine = ours[path][method]
            assert mine["operationId"] == theirs["operationId"]
            assert theirs["responses"].keys() <= mine["responses"].keys()
            for status, answer in theirs["responses"].items():
                assert answer.get("headers", {}).keys() <= mine["responses"][status].get("headers", {}).keys()
            parameters = {(given["name"], given["in"]): given for given in mine.get("parameters", [])}
            for given in theirs.get("parameters", []):
                found = parameters[given["name"], given["in"]]
                assert found["schema"].get("pattern") == given["schema"].get("pattern")
                assert found["required"] == given["required"]


def test_every_field_of_the_document_is_there(kiapi: httpx.Client, document: dict[str, Any]) -> None:
    ours = kiapi.get("/openapi.json").json()["components"]["schemas"]
    for name, theirs in document["components"]["schemas"].items():
        if name in INLINE | ELSEWHERE:
            continue
        mine = ours[RENAMED.get(name, name)]
        assert theirs.get("properties", {}).keys() <= mine["properties"].keys(), name
        assert {*theirs.get("required", [])} <= {*mine.get("required", [])}, name
    if "GenerateRequest" in document["components"]["schemas"]:
        assert ours["GenerateRequest"]["required"] == ["prompt"]


def test_an_upload_is_described_as_in_the_document(kiapi: httpx.Client, data: Path) -> None:
    theirs = json.loads((data / "seed" / "kiapi-common.openapi.json").read_text())
    expected = theirs["components"]["schemas"]["Body_upload_v1_files_post"]
    body = kiapi.get("/openapi.json").json()["paths"]["/v1/files"]["post"]["requestBody"]
    schema = body["content"]["multipart/form-data"]["schema"]
    schema["properties"]["file"]["description"] = expected["properties"]["file"]["description"]
    assert (schema, body["required"]) == (expected, True)


def shrunk(path: str, example: Any) -> Any:
    """An example of a body, for a clip that is made in no time."""
    small = {"width": 64, "height": 64, "num_frames": 9}
    if path.startswith("/v2/"):
        return example | {"input": example["input"] | small}
    if path == "/v1/videos":
        return example | {"size": "64x64", "seconds": "0.4"}
    if path == "/v1":
        return [task | ({"width": 64, "height": 64} if "width" in task else {}) for task in example]
    if path == "/v1/videos/extensions":
        return example | {"seconds": "0.4"}
    if "video" in example:
        return example | ({"retake": {"start": 0.1, "end": 0.3}} if "retake" in example else {})
    return example | small


def test_every_route_that_makes_something_shows_an_example_and_its_headers(kiapi: httpx.Client) -> None:
    paths = kiapi.get("/openapi.json").json()["paths"]
    making = [
        path for path, methods in paths.items() if "requestBody" in methods.get("post", {}) and "_id}" not in path
    ]
    assert {"/generate", "/v1", "/v1/files", "/v1/videos", "/v1/video/t2v", "/v2/{endpoint}/run"} < {*making}
    clip = kiapi.post("/generate", json=SMALL).raise_for_status().headers["x-job-id"]
    for path in making:
        operation = paths[path]["post"]
        for media_type, content in operation["requestBody"]["content"].items():
            assert content["examples"], path
            if media_type == "application/json":
                for example in content["examples"].values():
                    body = shrunk(path, example["value"])
                    if path == "/v1/videos/extensions":
                        body["video"] = {"id": name_of(clip)}
                    elif "video" in body:
                        body["video"] = clip
                    kiapi.post(path.replace("{endpoint}", "local"), json=body).raise_for_status()
        if path not in ("/v1", "/v1/files", "/plan"):
            named = {parameter["name"] for parameter in operation["parameters"]}
            assert {"Idempotency-Key", "X-Priority"} <= named
            assert "Retry-After" in operation["responses"]["429"]["headers"]


def test_every_example_of_the_document_is_understood(data: Path) -> None:
    schemas = json.loads((data / "seed" / "kiapi-ltx2.openapi.json").read_text())["components"]["schemas"]
    (prompt,) = schemas["GenerateRequest"]["properties"]["prompt"]["examples"]
    for name in ("FileURLRef", "FileDataURLRef"):
        (ref,) = schemas[name]["examples"]
        assert understood(prompt=prompt, image=ref)[1] == {"image": ref[ref["type"]]}
    (ref,) = schemas["FileIDRef"]["examples"]
    assert ref == {"type": "file_id", "file_id": "file_0123456789abcdef"}  # shorter than ours, so it is unknown
