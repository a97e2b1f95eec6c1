import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltx2.errors import InvalidRequest
from ltx2.payload import MOST_KEYFRAMES, GenerateBody, GenerateResponse, body_of, file_field, invalid, parse
from ltx2.request import GenerationRequest, Guidance
from ltx2.settings import Settings


def test_media_are_named_by_the_callers_fields_and_travel_beside_the_request() -> None:
    request, sources = parse(
        {
            "prompt": "x",
            "image_start": "S",
            "image_end": "E",
            "image_strength": 0.5,
            "keyframes": [{"image": "K", "frame": 9, "strength": 0.25}],
            "audio": "A",
            "audio_strength": 0.75,
            "audio_start": 1.5,
        }
    )
    assert sources == {"image_start": "S", "image_end": "E", "keyframes[0].image": "K", "audio": "A"}
    assert [(frame.image, frame.index(49), frame.strength) for frame in request.keyframes] == [
        ("image_start", 0, 0.5),
        ("keyframes[0].image", 9, 0.25),
        ("image_end", 48, 0.5),
    ]
    assert request.audio is not None
    assert (request.audio.source, request.audio.strength, request.audio.start) == ("audio", 0.75, 1.5)


GUIDES = st.none() | st.floats(0, 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
BODIES = st.fixed_dictionaries(
    {"prompt": TEXTS.filter(str.strip)},
    optional={
        "negative_prompt": TEXTS,
        "width": st.integers(32, 960).map(lambda half: 2 * half),
        "num_frames": st.none() | st.integers(40, 1441),
        "fps": st.floats(1, 60),
        "seed": st.integers(0, 2**63 - 1),
        "num_inference_steps": st.integers(1, 100),
        "guidance": st.fixed_dictionaries({}, optional=dict.fromkeys(Guidance.model_fields, GUIDES)),
        "image_start": TEXTS,
        "image_end": TEXTS,
        "image_strength": st.floats(0, 1),
        "image_end_strength": st.floats(0, 1),
        "keyframes": st.lists(
            st.fixed_dictionaries({"image": TEXTS, "frame": st.integers(1, 38), "strength": st.floats(0, 1)}),
            max_size=32,
        ),
        "include_audio": st.booleans(),
        "audio": TEXTS,
        "audio_strength": st.floats(0, 1),
        "audio_start": st.floats(0, 100),
        "audio_dither_db": st.floats(-120, 0),
        "loop": st.booleans(),
        "loras": st.just([{"name": "one", "scale": -0.5}, {"name": "two"}]),
        "enhance_prompt": st.booleans(),
        "retry_if": st.lists(st.sampled_from(["silent", "frozen"]), max_size=2),
        "pipeline": st.sampled_from(["auto", "one_stage", "two_stage"]),
        "content_check": st.sampled_from(["none", "fast", "full"]),
        "output_format": st.sampled_from(["mp4", "gif", "wav"]),
        "crf": st.integers(0, 51),
        "quality": st.integers(1, 100),
    },
)


@given(BODIES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_body_of_a_request_makes_the_same_request_and_names_its_media(body: dict[str, Any]) -> None:
    request, sources = parse(body)
    again, names = body_of(request, {name: str(source) for name, source in sources.items()})
    made, made_sources = parse(json.loads(json.dumps(again)))
    assert {names[name]: source for name, source in made_sources.items()} == sources

    def renamed(asked: GenerationRequest, name: Callable[[str], str]) -> dict[str, Any]:
        frames = [frame.model_copy(update={"image": name(frame.image)}) for frame in asked.keyframes]
        track = asked.audio and asked.audio.model_copy(update={"source": name(asked.audio.source)})
        kept = sorted(frames, key=lambda frame: str(frame.frame)) if len(frames) > MOST_KEYFRAMES else frames
        return asked.model_dump(exclude={"keyframes", "audio"}) | {"keyframes": kept, "audio": track}

    assert renamed(made, names.__getitem__) == renamed(request, str)


SECONDS = st.floats(0, 1000)
CHANGES = st.fixed_dictionaries({"start": SECONDS, "end": SECONDS}, optional={"streams": st.sampled_from(["sound"])})
EXTENSIONS = st.fixed_dictionaries({"seconds": st.floats(0.1, 100)}, optional={"side": st.sampled_from(["start"])})


@given(BODIES, TEXTS, CHANGES | EXTENSIONS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_so_does_that_of_one_with_a_video_but_for_what_the_video_settles(
    body: dict[str, Any], video: str, change: dict[str, Any]
) -> None:
    of_the_video = {"width", "height", "fps", "num_frames"}
    body = {name: value for name, value in body.items() if name not in of_the_video | {"keyframes"}}
    request, sources = parse(body | {"video": video, ("retake" if "start" in change else "extend"): change})
    assert (request.video, sources["video"]) == ("video", video)
    settled = request.model_copy(update={"width": 64, "height": 80, "fps": 30.0, "num_frames": 7})
    again, names = body_of(settled, {name: str(source) for name, source in sources.items()})
    assert not again.keys() & of_the_video
    made, made_sources = parse(json.loads(json.dumps(again)))
    assert {names[name]: source for name, source in made_sources.items()} == sources
    media = {"keyframes", "audio"}
    assert made.model_dump(exclude=media) == request.model_dump(exclude=media)


def test_what_nobody_asks_for_is_not_sent_to_those_who_may_not_know_it() -> None:
    request, sources = parse({"prompt": "x", "audio": "A"})
    body, _ = body_of(request, {name: str(source) for name, source in sources.items()})
    assert not body.keys() & {"loop", "loras", "enhance_prompt", "retry_if", "audio_dither_db"}
    # what versions may differ in is said
    assert (body["num_frames"], body["include_audio"], body["output_format"]) == (49, True, "mp4")


def test_image_end_strength_speaks_for_the_end_image_alone() -> None:
    request, _ = parse({"prompt": "x", "image_start": "S", "image_end": "E", "image_end_strength": 0.1})
    assert [frame.strength for frame in request.keyframes] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("fields", "video", "audio"),
    [
        ({}, None, None),
        ({"guidance_scale": 4.5}, 4.5, None),
        ({"guidance_scale": 1}, 1, 1),
        ({"guidance_scale": 1, "guidance": {"audio_cfg": 5}}, 1, 5),
        ({"guidance": {"video_cfg": 1}}, 1, None),
    ],
)
def test_guidance_scale_is_the_cfg_of_the_picture_and_1_turns_all_cfg_off(
    fields: dict[str, Any], video: float | None, audio: float | None
) -> None:
    guidance = parse({"prompt": "x"} | fields)[0].guidance
    assert (guidance.video_cfg, guidance.audio_cfg) == (video, audio)


def test_the_defaults_are_those_of_the_request() -> None:
    assert parse({"prompt": "x"})[0] == GenerationRequest(prompt="x")


def test_every_field_of_the_request_can_be_reached() -> None:
    # what is not of the same name is reached by these
    others = {"keyframes": "image_start", "output": "crf"}
    for name in GenerationRequest.model_fields:
        assert others.get(name, name) in GenerateBody.model_fields


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "keyframes": [{"frame": 1}]}, "keyframes[0].image"),
        ({"prompt": "x", "keyframes": [{"image": "K", "frame": "middle"}]}, "keyframes[0].frame"),
        ({"prompt": "x", "guidance": {"video_stg": "1"}}, "guidance.video_stg"),
        ({"prompt": "x", "output_format": "avi"}, "output_format"),
        ({"prompt": "x", "quality": 0}, "quality"),
        ([], None),
        (None, None),
        ("text", None),
    ],
)
def test_errors_name_the_field_and_repeat_nothing(data: object, field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    assert caught.value.field == field
    assert "text" not in caught.value.message


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"prompt": " "}, "prompt", "must not be empty or contain NUL"),
        ({"loras": [{"name": "../film"}]}, "loras[0].name", "must be the name of a file of the operator's, not a path"),
        ({"loras": ["film"]}, "loras[0]", "must be a JSON object"),
        ({"retake": [0, 1]}, "retake", "must be a JSON object"),
    ],
)
def test_errors_say_what_is_wrong_with_this_very_field(fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "x"} | fields)
    assert (caught.value.field, caught.value.message) == (field, message)
    # the framework's name for the same; only the whole body is sent as anything
    for place, more in ((), ", sent as Content-Type: application/json"), (("retake",), ""):
        said = invalid({"type": "model_attributes_type", "loc": place, "msg": "text"}).message
        assert said == "must be a JSON object" + more


@pytest.mark.parametrize("crf", [None, 20])
def test_crf_or_quality_but_not_both(crf: int | None) -> None:
    assert parse({"prompt": "x", "quality": 90})[0].output.x264_crf(30) == 18
    assert parse({"prompt": "x", "crf": crf})[0].output.x264_crf(30) == (30 if crf is None else crf)
    request, _ = parse({"prompt": "x", "crf": 0, "quality": 90})
    with pytest.raises(InvalidRequest) as caught:
        request.check_limits(Settings())
    assert caught.value.field == "quality"


@pytest.mark.parametrize(
    ("name", "field"), [("mp4", "video:video/mp4"), ("gif", "video:image/gif"), ("mp3", "audio:audio/mpeg")]
)
def test_the_file_goes_where_its_kind_belongs(name: str, field: str) -> None:
    key, prefix = file_field(parse({"prompt": "x", "output_format": name})[0])
    assert (f"{key}:{prefix.removeprefix('data:')}", key in GenerateResponse.model_fields) == (f"{field};base64,", True)


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "x"} | {f"field{number}": 0 for number in range(200_000)},
        {"prompt": "x", "guidance": {f"field{number}": 0 for number in range(200_000)}},
        {"prompt": "x", "keyframes": [{}] * 200_000},
        {"prompt": "x", "seed": [[[0] * 100] * 100] * 100},
    ],
)
def test_a_heap_of_values_is_refused_as_one(data: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="far more values"):
        parse(data)
    assert time.process_time() - began < 0.1  # one error for each would take seconds
