"""LoRAs, written-out prompts, loops, second tries and videos to be changed, by every dialect: what each makes of them,
and the same clips over HTTP."""

import base64
import json
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import ValidationError

from ltx2.dialects import kiapi_bodies, tasks
from ltx2.dialects.kiapi_bodies import GenerateRequest
from ltx2.dialects.openai_bodies import CreateVideo, ExtendVideo
from ltx2.dialects.openai_media import name_of
from ltx2.dialects.openai_request import extension, from_texts, read, to_request
from ltx2.dialects.runware_answers import Refused, refusal
from ltx2.dialects.runware_bodies import VideoInference, own_id_of, uuid_of
from ltx2.dialects.runware_request import to_request as of_task
from ltx2.errors import InvalidRequest
from ltx2.payload import OF_THE_VIDEO, invalid, parse
from ltx2.request import Extend, GenerationRequest, LoraChoice, Retake
from ltx2.settings import Settings
from processes import Server

FILE, JOB = "file_" + "1a" * 16, "job_" + "2b" * 16
SETTINGS = Settings()
LORAS = [{"name": "film"}, {"name": "slow", "scale": -0.5}]
ASKED: dict[str, Any] = {
    "loop": True,
    "loras": LORAS,
    "enhance_prompt": True,
    "retry_if": ["frozen", "silent"],
}
READ: dict[str, Any] = {
    "loop": True,
    "loras": (LoraChoice(name="film"), LoraChoice(name="slow", scale=-0.5)),
    "enhance_prompt": True,
    "retry_if": ("frozen", "silent"),
}
REF = {"type": "file_id", "file_id": FILE}

# one for all, and nothing of TLS: reading the certificates takes longer than most answers do
http = httpx.Client(verify=False, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


def kiapi(**fields: Any) -> tuple[GenerationRequest, Any]:
    return kiapi_bodies.to_request(GenerateRequest.model_validate({"prompt": "x"} | fields))


def openai(files: dict[str, bytes] | None = None, **fields: Any) -> tuple[GenerationRequest, Any]:
    return to_request(read(CreateVideo, {"prompt": "x"} | fields), files or {}, SETTINGS)


def longer(files: dict[str, bytes] | None = None, **fields: Any) -> tuple[GenerationRequest, Any]:
    return extension(read(ExtendVideo, {"prompt": "x", "seconds": "4"} | fields), files or {})


def runware(**fields: Any) -> tuple[GenerationRequest, Any]:
    task = {"taskType": "videoInference", "taskUUID": str(uuid4()), "model": "lightricks:3@1", "positivePrompt": "xx"}
    return of_task(VideoInference.model_validate(task | fields), SETTINGS)


def lightricks(**fields: Any) -> dict[str, Any]:
    return {"inputs": {"video": "v"}, "providerSettings": {"lightricks": fields}}


def taken(request: GenerationRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in READ}


# by themselves


def test_what_is_not_asked_for_is_not_done() -> None:
    nothing = {"loop": False, "loras": (), "enhance_prompt": False, "retry_if": ()}
    for request, _ in (kiapi(), openai(), runware(), tasks.to_request(tasks.TextToVideo(prompt="x"))):
        assert taken(request) == nothing
        assert (request.video, request.retake, request.extend) == (None, None, None)


def test_every_dialect_passes_on_what_is_asked() -> None:
    assert kiapi(retry_if=["silent", "silent"])[0].retry_if == ("silent",)
    for request, _ in (kiapi(**ASKED), openai(**ASKED), tasks.to_request(tasks.TextToVideo(prompt="x", **ASKED))):
        assert taken(request) == READ
    request, _ = runware(
        lora=[{"model": "film"}, {"model": "slow", "weight": -0.5}],
        settings={"enhancePrompt": True},
        loop=True,
        retryIf=["frozen", "silent"],
    )
    assert taken(request) == READ


def test_a_form_asks_for_the_same() -> None:
    texts = {"loop": "true", "enhance_prompt": "true", "retry_if": ["frozen", "silent"]}
    loras = [{"name": "film"}, {"name": "slow", "scale": "-0.5"}]
    assert taken(openai(**from_texts(texts | {"loras": loras}))[0]) == READ
    form = tasks.ImageToVideo.model_validate({"prompt": "x", "image": b"i"} | texts | {"loras": loras})
    assert taken(tasks.to_request(form)[0]) == READ


def test_noise_in_a_sound_to_follow() -> None:
    native = parse({"prompt": "x", "audio": FILE, "audio_dither_db": -40})[0].audio
    assert native is not None
    assert native.dither_db == -40
    assert kiapi(audio=REF, audio_dither_db=-40)[0].audio == native
    followed = runware(inputs={"audio": FILE}, audioDitherDb=-40)[0].audio
    assert followed is not None
    assert followed.dither_db == -40


def test_a_length_that_nobody_says() -> None:
    asked = (kiapi(num_frames="auto"), openai(seconds="auto"), openai(num_frames=None), runware(duration="auto"))
    assert [request.num_frames for request, _ in asked] == [None] * 4
    assert tasks.to_request(tasks.TextToVideo(prompt="x", num_frames=None))[0].num_frames is None
    # and where nothing is said it is what it was
    assert [request.num_frames for request, _ in (kiapi(num_frames=None), openai(seconds=None))] == [97, 100]
    with pytest.raises(InvalidRequest, match=r"frameImages\[1\].*say its frame"):
        runware(duration="auto", inputs={"frameImages": ["a", "b", "c"]})
    assert len(runware(duration="auto", inputs={"frameImages": ["a", "b"]})[0].keyframes) == 2
    for length in ("Auto", "", "9"):
        with pytest.raises(ValidationError):
            kiapi(num_frames=length)
    for duration in (None, "Auto", "6"):
        with pytest.raises(ValidationError):
            runware(duration=duration)


RETAKE, EXTEND = {"start": 1, "end": 2.5, "streams": "picture"}, {"seconds": 2, "side": "start"}


def test_a_part_of_a_video_is_made_anew() -> None:
    wanted = Retake(start=1, end=2.5, streams="picture")
    request, sources = kiapi(video=REF, retake=RETAKE)
    assert (request.mode, request.retake, request.video, sources) == ("Retake", wanted, "video", {"video": FILE})
    request, sources = openai(video={"file_id": FILE}, retake=RETAKE)
    assert (request.mode, request.retake, request.video, sources) == ("Retake", wanted, "video", {"video": FILE})
    for mode, streams in (("audio_and_video", "both"), ("video", "picture"), ("audio", "sound")):
        request, sources = runware(**lightricks(startTime=1, duration=1.5, mode=f"replace_{mode}"))
        assert request.retake == Retake(start=1, end=2.5, streams=streams)  # type: ignore[arg-type]
        assert (request.mode, request.video, sources) == ("Retake", "inputs.video", {"inputs.video": "v"})
    assert runware(**lightricks(startTime=0, duration=86_400))[0].retake == Retake(start=0, end=86_400)
    assert runware(**lightricks(startTime=5, duration=86_400))[0].retake == Retake(start=5, end=86_400)


def test_a_video_goes_on() -> None:
    wanted = Extend(seconds=2, side="start")
    for request, sources in (
        kiapi(video=REF, extend=EXTEND),
        openai(video=FILE, extend=EXTEND),
        longer(video=FILE, seconds="2", side="start"),
        longer({"video": b"clip"}, seconds=2, side="start"),
        runware(inputs={"video": uuid_of(FILE)}, extend=EXTEND),
    ):
        assert (request.mode, request.extend, request.prompt.strip("x")) == ("Extend", wanted, "")
        assert list(sources.values()) in ([FILE], [b"clip"])
    assert longer(video=FILE)[0].extend == Extend(seconds=4, side="end")


@pytest.mark.parametrize("said", [{"id": name_of(JOB)}, name_of(JOB), JOB])
def test_a_video_is_named_by_its_id(said: Any) -> None:
    assert longer(video=said)[1] == openai(video=said, retake=RETAKE)[1] == {"video": JOB}
    assert longer(**from_texts({"video": said}, ExtendVideo))[1] == {"video": JOB}


@pytest.mark.parametrize("said", [{"id": JOB}, {"id": 5}, {"id": ""}, {"image_url": "u"}, {"file_id": "x"}, {}, "", 5])
def test_other_names_of_videos_are_refused(said: Any) -> None:
    for read_it in (longer, openai):
        with pytest.raises(InvalidRequest) as refused:
            read_it(video=said)
        assert refused.value.field == "video"


def test_a_video_keeps_its_sound_where_nobody_wants_it_silent() -> None:
    part = lightricks(startTime=0, duration=1)
    for request, _ in (kiapi(video=REF, retake=RETAKE), openai(video=FILE, retake=RETAKE), runware(**part)):
        assert request.include_audio
    assert not kiapi(video=REF, retake=RETAKE, generate_audio=False)[0].include_audio
    assert not runware(**lightricks(startTime=0, duration=1, generateAudio=False))[0].include_audio


def test_a_video_that_is_a_file_goes_beside_the_body() -> None:
    request, sources = openai({"video": b"v", "input_reference": b"i"}, extend=EXTEND)
    assert sources == {"video": b"v", "input_reference": b"i"}
    assert ([keyframe.image for keyframe in request.keyframes], request.video) == (["input_reference"], "video")


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        (kiapi, {"video": REF, "width": 64}),
        (kiapi, {"video": REF, "height": 64}),
        (kiapi, {"video": REF, "num_frames": 9}),
        (kiapi, {"video": REF, "num_frames": "auto"}),
        (kiapi, {"video": REF, "fps": 24}),
        (openai, {"video": FILE, "size": "720x1280"}),
        (openai, {"video": FILE, "seconds": "4"}),
        (openai, {"video": FILE, "fps": 24}),
        (openai, {"video": FILE, "num_frames": 9}),
        (longer, {"video": FILE, "size": "64x64"}),
        (longer, {"video": FILE, "width": 64}),
        (longer, {"video": FILE, "num_frames": 9}),
        (runware, {"inputs": {"video": "v"}, "height": 64}),
        (runware, {"inputs": {"video": "v"}, "duration": 6}),
        (runware, {"inputs": {"video": "v"}, "fps": 25}),
    ],
)
def test_what_the_video_says_is_not_said_again(made: Any, fields: dict[str, Any]) -> None:
    (field,) = fields.keys() - {"video", "inputs"}
    with pytest.raises(InvalidRequest) as refused:
        made(**fields)
    assert (refused.value.field, refused.value.message) == (field, OF_THE_VIDEO)


def test_nulls_beside_a_video_say_nothing() -> None:
    unsaid = dict.fromkeys(("width", "height", "num_frames", "fps"))
    assert kiapi(video=REF, retake=RETAKE, **unsaid)[0].num_frames is None
    assert runware(**lightricks(startTime=0, duration=1), width=None)[0].num_frames is None


def field_of(made: Any, fields: dict[str, Any]) -> str | None:
    """The field at fault, as the application finds it."""
    try:
        made(**fields)[0].check_limits(SETTINGS)
    except ValidationError as error:
        return invalid(error.errors(include_url=False, include_input=False)[0]).field
    except InvalidRequest as error:
        return refusal(error).get("parameter") if made is runware else error.field
    raise AssertionError("it was accepted")


START, LONG, MODE = (f"providerSettings.lightricks.{name}" for name in ("startTime", "duration", "mode"))


@pytest.mark.parametrize(
    ("made", "fields", "field"),
    [
        (kiapi, {"video": REF}, "video"),
        (kiapi, {"retake": RETAKE}, "retake"),
        (kiapi, {"video": REF, "retake": RETAKE, "extend": EXTEND}, "extend"),
        (kiapi, {"video": REF, "retake": {"start": 2, "end": 1}}, "retake.end"),
        (kiapi, {"retake": {"start": 0, "end": 1, "colour": "red"}}, "retake.colour"),
        (kiapi, {"retake": {str(number): 0 for number in range(2000)}}, "retake"),
        (kiapi, {"extend": {"seconds": 0}}, "extend.seconds"),
        (kiapi, {"video": FILE}, "video"),
        (kiapi, {"loras": LORAS}, "loras"),
        (kiapi, {"loras": [{"name": "../x"}]}, "loras[0].name"),
        (kiapi, {"loras": [{"name": "a", "b": 1} for _ in range(2000)]}, "loras"),
        (kiapi, {"retry_if": ["boring"]}, "retry_if[0]"),
        (kiapi, {"loop": 1}, "loop"),
        (kiapi, {"enhance_prompt": "yes"}, "enhance_prompt"),
        (kiapi, {"audio_dither_db": 1}, "audio_dither_db"),
        (openai, {"video": FILE}, "video"),
        (openai, {"video": FILE, "extend": EXTEND, "loop": True}, "loop"),
        (longer, {}, "video"),
        (longer, {"video": FILE, "seconds": "auto"}, "seconds"),
        (longer, {"video": FILE, "seconds": "90000"}, "seconds"),
        (longer, {"video": FILE, "side": "left"}, "side"),
        (longer, {"video": FILE, "extend": EXTEND}, "extend"),
        (longer, {"video": FILE, "retake": RETAKE}, "retake"),
        (longer, {"video": FILE, "image_start": FILE}, "image_start"),
        (longer, {"video": FILE, "seeed": 1}, "seeed"),
        (runware, {"inputs": {"video": "v"}}, START),
        (runware, lightricks(startTime=1), LONG),
        (runware, lightricks(mode="replace_audio"), START),
        (runware, lightricks(startTime=86_400, duration=1), LONG),
        (runware, {"providerSettings": {"lightricks": {"startTime": 0, "duration": 1}}}, "inputs.video"),
        (runware, {"extend": EXTEND}, "inputs.video"),
        (runware, lightricks(startTime=0, duration=1) | {"extend": EXTEND}, "extend"),
        (runware, {"lora": [{"model": "film"}]}, "lora"),
        (runware, {"loop": True, "inputs": {"frameImages": ["a", "b"]}}, "inputs.frameImages[1]"),
    ],
)
def test_what_is_wrong_is_told_by_the_callers_name(made: Any, fields: dict[str, Any], field: str) -> None:
    assert field_of(made, fields) == field


@pytest.mark.parametrize(
    ("field", "parameter"),
    [
        ("retake", START),
        ("retake.start", START),
        ("retake.end", LONG),
        ("retake.streams", MODE),
        ("loras", "lora"),
        ("loras[3].name", "lora[3].model"),
        ("enhance_prompt", "settings.enhancePrompt"),
        ("retry_if", "retryIf"),
        ("extend.seconds", "extend.seconds"),
    ],
)
def test_errors_of_the_engine_have_the_names_of_runware(field: str, parameter: str) -> None:
    assert refusal(InvalidRequest("x", field=field))["parameter"] == parameter


def test_a_missing_part_of_a_task_is_called_that() -> None:
    with pytest.raises(Refused) as refused:
        runware(inputs={"video": "v"})
    assert refused.value.said == "missingParameter"


# over HTTP: a clip, then what becomes of it by each dialect

SIZE = {"width": 64, "height": 64}
CLIP = SIZE | {"prompt": "a lamp", "num_frames": 17, "fps": 10, "seed": 5}
KIAPI = "/v1/video/ltx2/generate"


@pytest.fixture(scope="module")
def clip(fake_server: Server) -> tuple[str, bytes]:
    """A job of 1.7 seconds, and its clip."""
    answer = http.post(fake_server.url + "/generate", json=CLIP).raise_for_status()
    return answer.headers["X-Job-Id"], base64.b64decode(answer.json()["video"].partition(",")[2])


def done(server: Server, job: str) -> dict[str, Any]:
    """A job as the kiapi dialect shows it when it is over."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        shown: dict[str, Any] = http.get(f"{server.url}/v1/jobs/{job}").json()
        if shown["status"] in ("succeeded", "failed"):
            return shown
        time.sleep(0.02)
    raise AssertionError("it does not end")


def seen_by_all(server: Server, job: str) -> dict[str, Any]:
    """What each dialect says of a job."""
    look = [{"taskType": "getResponse", "taskUUID": uuid_of(job)}]
    return {
        "openai": http.get(f"{server.url}/v1/videos/{name_of(job)}").raise_for_status().json(),
        "tasks": http.get(f"{server.url}/v1/video/tasks/{job}").raise_for_status().json(),
        "runware": http.post(f"{server.url}/v1", json=look).raise_for_status().json()["data"][0],
        "runpod": http.get(f"{server.url}/v2/x/status/{job}").raise_for_status().json()["output"],
    }


def by_native(server: Server, video: str) -> str:
    body = {"prompt": "more", "video": video, "extend": {"seconds": 0.8}, "seed": 7}
    return str(http.post(server.url + "/generate", json=body).raise_for_status().headers["X-Job-Id"])


def by_runpod(server: Server, video: str) -> str:
    body = {"prompt": "more", "video": video, "extend": {"seconds": 0.8}, "seed": 7}
    return str(http.post(server.url + "/v2/x/runsync", json={"input": body}).raise_for_status().json()["id"])


def by_kiapi(server: Server, video: str) -> str:
    (file,) = done(server, video)["artifacts"]
    ref = {"type": "file_id", "file_id": file}
    body = {"prompt": "more", "video": ref, "extend": {"seconds": 0.8}, "seed": 7, "mode": "async"}
    return str(http.post(server.url + KIAPI, json=body).raise_for_status().json()["job_id"])


def by_openai(server: Server, video: str) -> str:
    body = {"prompt": "more", "video": {"id": name_of(video)}, "seconds": "0.8", "seed": 7}
    made = http.post(server.url + "/v1/videos/extensions", json=body).raise_for_status().json()
    assert (made["prompt"], made["seconds"], made["size"]) == ("more", "2.5", "64x64")
    return str(made["id"]).replace("video", "job")


def by_runware(server: Server, video: str) -> str:
    task = {"taskType": "videoInference", "taskUUID": str(uuid4()), "model": "lightricks:2@1", "positivePrompt": "more"}
    task |= {"inputs": {"video": uuid_of(video)}, "extend": {"seconds": 0.8}, "seed": 7, "deliveryMethod": "sync"}
    (item,) = http.post(server.url + "/v1", json=[task]).raise_for_status().json()["data"]
    return own_id_of("job", item["videoUUID"])


@pytest.mark.parametrize("by", [by_native, by_runpod, by_kiapi, by_openai, by_runware])
def test_a_clip_goes_on_by_every_dialect_and_all_say_the_same_of_it(
    fake_server: Server, clip: tuple[str, bytes], by: Any
) -> None:
    job = by(fake_server, clip[0])
    shown = done(fake_server, job)
    (source,) = done(fake_server, clip[0])["artifacts"]
    assert (shown["status"], shown["result"]["mode"], shown["result"]["has_audio"]) == ("succeeded", "Extend", True)
    assert shown["params"]["video"] == {"type": "file_id", "file_id": source}
    assert shown["params"]["extend"] == {"seconds": 0.8, "side": "end"}
    assert not {"width", "height", "num_frames", "fps", "retake", "loop"} & shown["params"].keys()
    said = seen_by_all(fake_server, job)
    assert (said["openai"]["seconds"], said["openai"]["size"]) == ("2.5", "64x64")
    assert (said["runware"]["status"], said["tasks"]["status"]) == ("success", "completed")
    facts = {"mode": "Extend", "num_frames": 25, "fps": 10, "resolution": "64x64", "seed": 7}
    assert {name: said["runpod"][name] for name in facts} == facts


def test_the_params_of_a_kiapi_job_make_the_same_clip_again(fake_server: Server, clip: tuple[str, bytes]) -> None:
    (source,) = done(fake_server, clip[0])["artifacts"]
    body = {"prompt": "new", "video": {"type": "file_id", "file_id": source}, "retake": {"start": 0.4, "end": 1.0}}
    body |= {"enhance_prompt": True, "loras": [{"name": "film"}], "retry_if": ["silent"], "seed": 3}
    clips = []
    for _ in range(2):
        accepted = http.post(fake_server.url + KIAPI, json=body | {"mode": "async"}).raise_for_status().json()
        shown = done(fake_server, accepted["job_id"])
        assert shown["status"] == "succeeded", shown["error"]
        assert shown["params"] == shown["result"]["params"]
        # the prompt that was used is the result's, and the one that was asked for makes it again
        assert (shown["result"]["prompt"], shown["params"]["prompt"]) == ("new, in detail", "new")
        clips.append(http.get(f"{fake_server.url}/v1/files/{shown['artifacts'][0]}/download").content)
        body = shown["params"]
    wanted = {"retake": {"start": 0.4, "end": 1.0, "streams": "both"}, "loras": [{"name": "film", "scale": 1.0}]}
    assert {name: body[name] for name in wanted} == wanted
    assert clips[0] == clips[1]
    said = seen_by_all(fake_server, accepted["job_id"])
    assert (said["openai"]["prompt"], said["runware"]["positivePrompt"]) == ("new, in detail", "new, in detail")
    assert said["runpod"]["prompt"] == "new, in detail"


def test_a_length_that_nobody_said_is_told_when_it_is_known(fake_server: Server) -> None:
    body = SIZE | {"prompt": "a lamp", "num_frames": "auto", "mode": "async"}
    job = http.post(fake_server.url + KIAPI, json=body).raise_for_status().json()["job_id"]
    assert done(fake_server, job)["params"]["num_frames"] == 49
    made = http.post(
        fake_server.url + "/v1/videos", json={"prompt": "a lamp", "size": "64x64", "seconds": "auto"}
    ).raise_for_status()
    assert made.json()["seconds"] == "auto"
    done(fake_server, made.json()["id"].replace("video", "job"))
    assert seen_by_all(fake_server, made.json()["id"].replace("video", "job"))["openai"]["seconds"] == "1.96"


def test_a_second_try_and_what_was_measured_are_told(fake_server: Server) -> None:
    body = CLIP | {"prompt": "flaw=silent@5", "include_audio": True, "retry_if": ["silent"]}
    native = http.post(fake_server.url + "/generate", json=body).raise_for_status()
    result = done(fake_server, native.headers["X-Job-Id"])["result"]
    assert result["retried_for"] == native.json()["retried_for"] == ["silent"]
    assert (result["quality"], result["provenance"]) == (native.json()["quality"], native.json()["provenance"])
    assert result["params"]["seed"] == 5  # by which it is made again, second try included


def test_a_form_of_the_tasks_dialect_takes_lists_as_json(fake_server: Server, clip: tuple[str, bytes]) -> None:
    photo = http.get(f"{fake_server.url}/v1/videos/{name_of(clip[0])}/content?variant=thumbnail").content
    fields = {"prompt": "a lamp", "width": "64", "height": "64", "num_frames": "9", "loop": "true"}
    lists = {"loras": json.dumps(LORAS), "retry_if": '["frozen"]'}
    made = http.post(f"{fake_server.url}/v1/video/i2v", data=fields | lists, files={"image": ("a.webp", photo)})
    params = done(fake_server, made.raise_for_status().json()["task_id"])["params"]
    assert (params["loop"], params["retry_if"]) == (True, ["frozen"])
    assert params["loras"] == [{"name": "film", "scale": 1.0}, {"name": "slow", "scale": -0.5}]
    for wrong in ("[", '"silent"', "silent", '["boring"]'):
        refused = http.post(
            f"{fake_server.url}/v1/video/i2v", data=fields | {"retry_if": wrong}, files={"image": ("a.webp", photo)}
        )
        assert (refused.status_code, refused.json()["detail"].startswith("retry_if")) == (422, True)


def test_a_video_comes_as_a_file_of_a_form(fake_server: Server, clip: tuple[str, bytes]) -> None:
    video = {"video": ("clip.mp4", clip[1], "video/mp4")}
    longer = http.post(f"{fake_server.url}/v1/videos/extensions", data={"prompt": "x", "seconds": "0.8"}, files=video)
    fields = {"prompt": "x", "retake[start]": "0.4", "retake[end]": "1", "retake[streams]": "picture"}
    anew = http.post(f"{fake_server.url}/v1/videos", data=fields, files=video)
    shown = [done(fake_server, made.raise_for_status().json()["id"].replace("video", "job")) for made in (longer, anew)]
    assert [one["result"]["mode"] for one in shown] == ["Extend", "Retake"]
    assert shown[1]["params"]["retake"] == {"start": 0.4, "end": 1.0, "streams": "picture"}
    again = http.post(f"{fake_server.url}/v1/videos/{longer.json()['id']}/remix", json={"prompt": "y"})
    remixed = done(fake_server, again.raise_for_status().json()["id"].replace("video", "job"))
    assert remixed["params"] == shown[0]["params"] | {"prompt": "y"}


def test_only_a_completed_video_of_ones_own_goes_on(fake_server: Server) -> None:
    waiting = http.post(f"{fake_server.url}/v1/videos", json={"prompt": "seconds=60", "size": "64x64"}).json()["id"]
    for name, words in ((waiting, "only a completed video"), ("video_" + "0" * 32, "there is no such video")):
        for path, more in (("/extensions", {"seconds": "1"}), ("", {"retake": RETAKE})):
            body = {"prompt": "x", "video": {"id": name}} | more
            refused = http.post(f"{fake_server.url}/v1/videos{path}", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "video")
            assert refused.json()["error"]["message"].startswith(words)
    http.delete(f"{fake_server.url}/v1/videos/{waiting}").raise_for_status()


def test_what_is_too_long_is_told_by_the_callers_name(fake_server: Server, clip: tuple[str, bytes]) -> None:
    body: dict[str, Any] = {"prompt": "x", "video": {"id": name_of(clip[0])}, "seconds": "80000"}
    refused = http.post(f"{fake_server.url}/v1/videos/extensions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "seconds")
    task = {"taskType": "videoInference", "taskUUID": str(uuid4()), "model": "lightricks:3@1", "positivePrompt": "xx"}
    task |= {"inputs": {"video": uuid_of(clip[0])}, "providerSettings": {"lightricks": {"startTime": 1, "duration": 5}}}
    (error,) = http.post(f"{fake_server.url}/v1", json=[task]).json()["errors"]
    assert (error["code"], error["parameter"]) == ("invalidParameter", LONG)
