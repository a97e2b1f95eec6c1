"""Where a clip comes from: in the result, in the file, and what is made of it again."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from ltx2 import __version__
from ltx2.engine import CancelFlag, Clip, ClipFacts
from ltx2.errors import InvalidRequest
from ltx2.fake import FakeEngine
from ltx2.formats import MEDIA_TYPES, OutputFormat
from ltx2.imprint import asked_again, explicit, imprinted, read_imprint, settled
from ltx2.media.tags import read_comment
from ltx2.payload import Facts, parse, view
from ltx2.plan import make_plan
from ltx2.provenance import LIBRARIES, Provenance, digest, file_digest, versions
from ltx2.recipes import NEGATIVE_PROMPT, recipe_for
from ltx2.request import AudioTrack, GenerationRequest, Guidance, Keyframe, LoraChoice, Output
from ltx2.settings import Settings

# SHA-256 of "abc", from FIPS 180-2
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
NOTED = Provenance(model="m", seed=5, versions={"torch": "2"}, settings={"video_preset": "fast"}, device="cpu")


def make(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a cat", "width": 64, "height": 64, "num_frames": 9, "seed": 1} | fields)


def test_a_hash_is_sha_256(tmp_path: Path) -> None:
    assert digest(b"abc") == ABC
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == ABC
    (tmp_path / "a").write_bytes(b"abcd")
    assert file_digest(tmp_path / "a") == digest(b"abcd")


def test_versions_are_those_that_are_installed() -> None:
    told = versions(*LIBRARIES)
    assert told["ltx2"] == __version__
    assert told["torch"] == metadata.version("torch")
    assert set(told) == {"ltx2", *LIBRARIES}


@pytest.mark.parametrize("kind", ["dev", "distilled"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance": Guidance(video_cfg=2.0, audio_cfg=1.0), "num_inference_steps": 3},
        {"negative_prompt": "dogs", "output": Output(format="webm", quality=70)},
        {"audio": AudioTrack(source="audio")},
        {"pipeline": "two_stage", "output": Output(format="wav")},
    ],
)
def test_a_settled_request_comes_to_the_same_whatever_the_defaults_are(kind: Any, fields: dict[str, Any]) -> None:
    request = make(**fields, enhance_prompt=True, retry_if=("silent",), content_check="fast")
    plan = make_plan(request, recipe_for("2.3", kind), can_refine=True)
    again = settled(request, plan, default_crf=23)
    assert (again.enhance_prompt, again.retry_if, again.content_check) == (False, (), "none")
    assert (again.num_inference_steps, again.seed) == (plan.steps, 1)
    is_guided = plan.video.cfg != 1 or plan.audio.cfg != 1
    assert again.negative_prompt == (plan.negative_prompt if is_guided else None)
    if again.output.format in ("mp4", "webm"):
        assert again.output.x264_crf(0) == request.output.x264_crf(23)
    # a checkpoint with other defaults altogether, and none of what was said of the first one's
    for other in (recipe_for("2.0", kind), recipe_for("2.3", kind)):
        planned = make_plan(again, other, can_refine=True)
        same = replace(planned, warnings=(), negative_prompt="")
        assert same == replace(plan, warnings=(), negative_prompt="")
        assert not any("no effect" in warning for warning in planned.warnings)
    if is_guided and "negative_prompt" not in fields:
        assert again.negative_prompt == NEGATIVE_PROMPT


def test_differences_are_named() -> None:
    assert list(NOTED.differences(NOTED)) == []
    here = NOTED.model_copy(update={"model": "n", "versions": {"torch": "3", "av": "1"}, "device": None})
    assert list(NOTED.differences(here)) == [
        "The clip was made with model m, and here it is n.",
        "The clip was made with device cpu, and here it is unknown.",
        "The clip was made with versions av unknown, and here it is 1.",
        "The clip was made with versions torch 2, and here it is 3.",
    ]


def test_settings_that_show_are_taken_over_and_no_others() -> None:
    settings = Settings(video_preset="slow", video_encoder="auto", model="tiny-2.3")
    told = {"video_preset": "fast", "video_encoder": "libx264", "piece_seconds": "7.5", "model": "/etc/passwd"}
    taken = NOTED.model_copy(update={"settings": told}).applied_to(settings)
    changed = {"video_preset": "fast", "video_encoder": "libx264", "piece_seconds": 7.5}
    assert taken == settings.model_copy(update=changed)
    # a machine without that one must be able to make the clip all the same
    hardware = NOTED.model_copy(update={"settings": {"video_encoder": "h264_nvenc"}}).applied_to(settings)
    assert hardware == settings
    with pytest.raises(InvalidRequest, match="another video_preset"):
        NOTED.model_copy(update={"settings": {"video_preset": "warp"}}).applied_to(settings)


def test_what_is_written_is_the_request_the_origin_or_nothing() -> None:
    request, hashes = explicit(make(keyframes=(Keyframe(image="my image", frame="last"),)), 18), {"my image": ABC}
    full = json.loads(imprinted(request, hashes, NOTED, "full") or "")
    assert full["request"]["keyframes"] == [{"image": f"sha256:{ABC}", "frame": "last", "strength": 1.0}]
    origin = imprinted(request, hashes, NOTED, "origin") or ""
    assert json.loads(origin).keys() == {"ltx2", "provenance"}
    assert "a cat" not in origin
    assert imprinted(request, hashes, NOTED, "none") is None


@pytest.mark.parametrize("text", [None, "", "a holiday", "[]", '{"seed": 7}', '{"ltx2": "1", "request": {}}'])
def test_a_file_that_says_nothing_of_it_is_told_so(text: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"a\.mp4 does not say how it was made"):
        read_imprint(text, "a.mp4")
    with pytest.raises(InvalidRequest, match="and not what was asked for"):
        read_imprint(imprinted(make(), {}, NOTED, "origin"), "a.mp4")


def test_media_must_be_those_it_was_made_of() -> None:
    first = make(keyframes=(Keyframe(image="i", frame="first"),), audio=AudioTrack(source="s"))
    text = imprinted(explicit(first, 18), {"i": ABC, "s": digest(b"sound")}, NOTED, "full")
    imprint = read_imprint(text, "a.mp4")
    given = {"keyframes[0].image": b"abc", "audio": b"sound"}
    request, sources = asked_again(imprint, given)
    assert sources == given
    assert request.keyframes == (Keyframe(image="keyframes[0].image", frame="first"),)
    for wrong, field, reason in (
        ({"audio": b"sound"}, "keyframes[0].image", "media that are not here: keyframes"),
        ({}, "keyframes[0].image", r"not here: keyframes\[0\].image, audio"),
        (given | {"video": b"x"}, "video", r"made of keyframes\[0\].image, audio"),
        (given | {"audio": b"song"}, "audio", "not what the clip was made of"),
    ):
        with pytest.raises(InvalidRequest, match=reason) as caught:
            asked_again(imprint, wrong)
        assert caught.value.field == field


# Through the engine


def made(folder: Path, request: GenerationRequest) -> Clip:
    return FakeEngine(Settings(data_dir=folder)).generate(request, {}, lambda _progress: None, CancelFlag())


@pytest.mark.parametrize("output_format", MEDIA_TYPES)
def test_a_clip_of_any_format_says_the_request_that_makes_it_to_the_byte(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    prompt = '"😀" \\ é\n\u2028 ' * 1000
    clip = made(tmp_path, make(prompt=prompt, output=Output(format=output_format)))
    text = read_comment(clip.path)
    if output_format == "gif":
        assert text is None
        return
    imprint = read_imprint(text, clip.path.name)
    assert imprint.provenance == clip.provenance
    request, sources = asked_again(imprint, {})
    assert (request.prompt, request.seed, request.num_frames, sources) == (prompt, 1, 9, {})
    again = made(tmp_path, request)
    assert again.path != clip.path
    assert again.path.read_bytes() == clip.path.read_bytes()


def test_what_goes_with_the_result_lasts(tmp_path: Path) -> None:
    clip = made(tmp_path, make())
    libraries = {"ltx2": __version__, "av": metadata.version("av")}
    assert clip.provenance == Provenance(model="fake", versions=libraries, seed=1)
    adapter = TypeAdapter(ClipFacts)
    assert adapter.validate_json(adapter.dump_json(clip.facts)) == clip.facts
    told = json.loads(json.dumps(view(make(), clip)))
    assert Facts.model_validate(told).provenance == clip.provenance
    # a worker of another version says more, or nothing
    told["provenance"]["weather"] = "fine"
    assert Facts.model_validate(told).provenance == clip.provenance
    del told["provenance"]
    assert Facts.model_validate(told).provenance is None


def test_loras_are_in_the_request() -> None:
    request = make(loras=(LoraChoice(name="film look", scale=0.5),))
    body = json.loads(imprinted(request, {}, NOTED, "full") or "")["request"]
    assert parse(body)[0].loras == request.loras
