import json
from typing import Any

import pytest
from pydantic import ValidationError

from ltx2.errors import InvalidRequest
from ltx2.geometry import make_grid
from ltx2.request import AudioTrack, GenerationRequest, Keyframe, Retake
from ltx2.settings import Settings

FIRST = Keyframe(image="a", frame="first")
LAST = Keyframe(image="b", frame="last")
SOUND = AudioTrack(source="c")
SOUND_ANEW = Retake(start=0, end=1, streams="sound")
PICTURE_ANEW = Retake(start=0, end=1, streams="picture")


def make(**fields: Any) -> GenerationRequest:
    return GenerationRequest(prompt="x", **fields)


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "T2V+Audio"),
        ({"include_audio": False}, "T2V"),
        ({"output": {"format": "gif"}}, "T2V"),
        ({"output": {"format": "wav"}}, "T2V+Audio"),
        ({"keyframes": (FIRST,)}, "I2V"),
        ({"keyframes": (FIRST, LAST)}, "I2V(first+last)"),
        ({"keyframes": (LAST,)}, "I2V(last)"),
        ({"keyframes": (Keyframe(image="m", frame=20),)}, "I2V"),
        ({"keyframes": (Keyframe(image="m", frame=48),)}, "I2V(last)"),
        ({"keyframes": (LAST,), "num_frames": 1}, "I2V"),
        ({"audio": SOUND}, "A2V"),
        ({"audio": SOUND, "keyframes": (LAST,)}, "A2V+I2V"),
        ({"audio": AudioTrack(source="c", strength=0)}, "T2V+Audio"),
    ],
)
def test_mode(fields: dict[str, Any], mode: str) -> None:
    assert make(**fields).mode == mode


def test_a_keyframe_belongs_on_the_asked_frames_not_on_the_generated_ones() -> None:
    request = make(num_frames=150, keyframes=(LAST,))
    assert make_grid(288, 512, request.num_frames, request.exact_fps).grid_frames == 153
    assert request.keyframes[0].index(request.num_frames) == 149


def test_a_request_is_frozen_and_holds_no_payload() -> None:
    request = make(keyframes=(FIRST,), audio=SOUND)
    with pytest.raises(ValidationError):
        request.prompt = "y"  # type: ignore[misc]
    assert GenerationRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    "fields",
    [{"width": True}, {"fps": float("nan")}, {"fps": float("inf")}, {"seed": 1.0}, {"num_frames": "9"}, {"size": 1}],
)
def test_nothing_is_converted(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 1920, "height": 1090}, "width"),
        ({"width": 1090, "height": 1920}, "height"),
        ({"num_frames": 1442}, "num_frames"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"negative_prompt": "x" * 10_001}, "negative_prompt"),
        ({"keyframes": (Keyframe(image="k", frame=49),)}, "k"),
        ({"keyframes": (FIRST, Keyframe(image="k", frame=0))}, "k"),
        ({"keyframes": (FIRST, LAST), "num_frames": 1}, "b"),
        ({"video": "v", "retake": SOUND_ANEW, "include_audio": False}, "retake.streams"),
        ({"video": "v", "retake": SOUND_ANEW, "output": {"format": "gif"}}, "retake.streams"),
        ({"video": "v", "retake": PICTURE_ANEW, "output": {"format": "wav"}}, "retake.streams"),
        ({"output": {"crf": 20, "quality": 80}}, "quality"),
        ({"output": {"format": "flac"}, "include_audio": False}, "output_format"),
        ({"output": {"format": "mp3"}, "audio": {"source": "audio"}}, "audio"),
        ({"video": "v"}, "v"),
        ({"video": "v", "retake": PICTURE_ANEW, "loop": True}, "loop"),
    ],
)
def test_limits_name_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make(**fields).check_limits(Settings())
    assert caught.value.field == named


def test_a_request_from_before_there_were_formats_is_still_read() -> None:
    stored = {"prompt": "x", "include_audio": False, "output": {"crf": 20}}
    output = GenerationRequest.model_validate_json(json.dumps(stored)).output
    assert (output.format, output.crf, output.quality) == ("mp4", 20, None)


def test_a_silent_gif_and_a_sound_are_allowed() -> None:
    for name, include_audio in (("gif", False), ("gif", True), ("wav", True)):
        request = make(output={"format": name}, include_audio=include_audio)
        request.check_limits(Settings())
        assert (request.wants_sound, request.is_sound_only) == (name == "wav", name == "wav")


def test_the_largest_allowed_request_is_allowed() -> None:
    make(width=1920, height=1088, num_frames=1441, num_inference_steps=100).check_limits(Settings())
