"""Clips that are made from others: retakes, what goes on, loops, and long ones in pieces."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_clips import INPUTS, Calls, first, make
from small_videos import HERTZ, smooth, tone, video
from torch import Tensor

from ltx2.engine import Progress
from ltx2.geometry import extend_frames
from ltx2.media.videofile import VideoLimits, read_frames, read_sound
from ltx2.model.components import Components
from ltx2.model.conditioning import ImageConditioning, KnownPictures, KnownSound, Stream, unpack_video
from ltx2.model.encode import encode_sound, encode_video
from ltx2.model.known import Shot, encode_pictures, encode_track
from ltx2.model.pipeline import Result, encode_texts, generate, open_footage, sample
from ltx2.model.runner import Runner
from ltx2.plan import Plan, make_plan
from ltx2.request import AudioTrack, Extend, GenerationRequest, Keyframe, Retake
from ltx2.settings import Settings
from ltx2.studio.job import fraction

Tiny = Callable[[str], Components]
LIMITS = VideoLimits(10_000, 60.0, 1000)
LENGTH = 49


def inputs(num_frames: int = LENGTH, **kind: Any) -> Any:
    return replace(INPUTS, media=INPUTS.media | {"v": video(num_frames, **kind)}, video_limits=LIMITS)


def retake(start: float, end: float, streams: Any = "both", **fields: Any) -> GenerationRequest:
    change = Retake(start=start, end=end, streams=streams)
    return make(num_frames=LENGTH, width=64, video="v", retake=change, **fields)


def extend(seconds: float, side: Any = "end", have: int = LENGTH, **fields: Any) -> GenerationRequest:
    length = have + extend_frames(seconds, make().exact_fps)
    change = Extend(seconds=seconds, side=side)
    return make(**{"num_frames": length, "width": 64, "video": "v", "extend": change} | fields)


def planned(components: Components, request: GenerationRequest, piece_seconds: float = 20) -> Plan:
    can_refine = components.can_refine
    return make_plan(request, components.recipe, can_refine=can_refine, piece_seconds=piece_seconds)


def frames_of(result: Result) -> NDArray[np.uint8]:
    return np.concatenate([*(result.chunks() or ())])


def source(first: int = 0, last: int = LENGTH, num_frames: int = LENGTH) -> NDArray[np.uint8]:
    """The frames of the source as they come out of its file."""
    return np.concatenate([*read_frames(video(num_frames), first, last, field="v", limits=LIMITS)])


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    assert one.shape == other.shape
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@torch.inference_mode()
def sampled(components: Components, request: GenerationRequest, **kind: Any) -> tuple[Stream, Stream]:
    """Both streams of the first piece after the last step, by the functions ``generate`` calls."""
    plan, given = planned(components, request), inputs(**kind)
    shot = Shot(plan.pieces[0], None, open_footage(components, request, plan, given))
    prompts = encode_texts(components, request, plan)
    return sample(components, request, plan, given, shot, prompts, torch.Generator().manual_seed(3))


@contextmanager
def counted(components: Components) -> Iterator[Calls]:
    with Calls(components.transformer) as calls:
        yield calls


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [("tiny", "one_stage"), ("tiny", "two_stage"), ("tiny-dev", "two_stage"), ("tiny-2.5", "one_stage")],
)
@torch.inference_mode()
def test_a_retake_leaves_the_latents_outside_of_it_as_they_are(tiny: Tiny, name: str, pipeline: Any) -> None:
    components, request = tiny(name), retake(1.2, 1.8, pipeline=pipeline)
    plan = planned(components, request)
    grid = plan.grid
    pictures, sound = sampled(components, request)
    theirs = encode_video(components, source(), grid)
    ours = unpack_video(pictures.tokens, grid)
    # frames 30 … 44 are asked for; latent frame 4 begins with frame 25, and 6 ends with 48
    assert torch.equal(ours[:, :, :4], theirs[:, :, :4])
    assert not any(torch.equal(ours[:, :, frame], theirs[:, :, frame]) for frame in (4, 5, 6))
    heard = read_sound(video(LENGTH), field="v", limits=LIMITS, max_seconds=60)
    assert heard is not None
    tokens = encode_sound(components, heard, grid)
    # 0.04 s each, all but 0.03 s late: token 30 ends at 1.21 and 45 begins at 1.77
    kept = [*range(30), *range(46, tokens.shape[1])]
    if name == "tiny-dev" and pipeline == "two_stage":
        assert plan.audio.cfg != 1  # guided in the first stage, kept as it was made in the second
    assert torch.equal(sound.tokens[:, kept], tokens[:, kept])
    assert not torch.equal(sound.tokens[:, 30:46], tokens[:, 30:46])


@pytest.mark.parametrize("name", ["tiny", "tiny-2.5"])
def test_the_rest_of_a_retake_is_the_video_itself(tiny: Tiny, name: str) -> None:
    components, request = tiny(name), retake(1.2, 1.8)
    result = generate(components, request, planned(components, request), inputs())
    made = frames_of(result)
    assert np.array_equal(made[:25], source(0, 25))
    assert psnr(made[25:49], source(25, 49)) < 20
    assert result.sound is not None
    ours, theirs = result.sound.samples, read_sound(video(LENGTH), field="v", limits=LIMITS, max_seconds=60)
    assert theirs is not None
    fade = round(0.02 * 48_000)
    before, after = slice(0, round(1.2 * 48_000) - fade), slice(round(1.8 * 48_000) + fade, None)
    end = min(ours.shape[1], theirs.samples.shape[1])
    assert np.array_equal(ours[:, before], theirs.samples[:, before])
    assert np.array_equal(ours[:, after][:, : end - after.start], theirs.samples[:, after][:, : end - after.start])
    assert not np.allclose(ours[:, round(1.25 * 48_000) : round(1.75 * 48_000)], 0)


@pytest.mark.parametrize("streams", ["picture", "sound"])
def test_one_stream_of_a_video_may_be_made_anew_alone(tiny: Tiny, streams: Any) -> None:
    components, request = tiny("tiny"), retake(0.5, 1.0, streams)
    with torch.inference_mode():
        streams_made = sampled(components, request)
    # what stays as a whole has no noise at all, as a sound to follow
    assert [stream.noise for stream in streams_made] == ([1.0, 0.0] if streams == "picture" else [0.0, 1.0])
    result = generate(components, request, planned(components, request), inputs())
    theirs = read_sound(video(LENGTH), field="v", limits=LIMITS, max_seconds=60)
    assert result.sound is not None
    assert theirs is not None
    count = min(result.sound.samples.shape[1], theirs.samples.shape[1])
    is_same = np.array_equal(result.sound.samples[:, :count], theirs.samples[:, :count])
    assert (np.array_equal(frames_of(result), source()), is_same) == ((streams == "sound"), (streams == "picture"))


@torch.inference_mode()
def test_what_stays_as_a_whole_has_no_noise_however_long_it_is(tiny: Tiny) -> None:
    # 46 frames are no whole eights: beyond them there is the padding of the grid
    for streams in ("picture", "sound"):
        request = retake(0.5, 1.0, streams).model_copy(update={"num_frames": 46})
        pictures, sound = sampled(tiny("tiny"), request, num_frames=46)
        kept = sound if streams == "picture" else pictures
        assert kept.noise == 0.0
        assert not kept.mask.any()


def test_where_only_a_sound_is_made_that_a_second_stage_would_keep_there_is_none(tiny: Tiny) -> None:
    components, request = tiny("tiny-dev"), retake(0.5, 1.0, "sound", pipeline="two_stage")
    plan = planned(components, request)
    with counted(components) as calls:
        result = generate(components, request, plan, inputs())
    assert plan.stages == 2
    assert calls.count == plan.passes == 2 * plan.step_passes
    assert np.array_equal(frames_of(result), source())


def test_the_file_of_a_retake_is_as_good_outside_of_it_as_any_copy_of_the_video(tiny: Tiny, tmp_path: Path) -> None:
    runner = Runner(tiny("tiny"), Settings(data_dir=tmp_path, video_encoder="libx264"))
    target = tmp_path / "clip.mp4"
    runner.run(retake(1.2, 1.8), inputs().media, target, lambda *_: None, lambda: False)
    made = np.concatenate([*read_frames(target.read_bytes(), 0, LENGTH, field="v", limits=LIMITS)])
    # the picture is so smooth that nothing but the coding of it at CRF 18 is lost
    assert psnr(made[:25], source(0, 25)) > 36
    assert psnr(made[:25], smooth(25, 64, 64)) > 34


@pytest.mark.parametrize("side", ["end", "start"])
@torch.inference_mode()
def test_what_goes_on_is_shown_the_latents_of_the_video_at_the_joint(tiny: Tiny, side: Any) -> None:
    components, request = tiny("tiny"), extend(0.5, side)
    plan, given = planned(components, request), inputs()
    footage = open_footage(components, request, plan, given)
    grid, shot = plan.grid, Shot(plan.pieces[0], None, footage)
    (known,) = encode_pictures(components, request, given, shot, grid)
    assert isinstance(known, KnownPictures)
    theirs = encode_video(components, source(), grid)
    assert torch.equal(known.latents, theirs)
    pictures, sound = sampled(components, request)
    ours = unpack_video(pictures.tokens, grid)
    # 12 frames are added: two latent frames after seven; or before them, where the eighth is the joint's
    assert ours.shape[2] == 9
    if side == "end":
        assert torch.equal(ours[:, :, :7], theirs)
    else:
        assert torch.equal(ours[:, :, 3:], theirs[:, :, 1:])
        joint = pictures.tokens[:, grid.video_tokens :]
        assert torch.equal(joint, theirs[:, :, :1].flatten(2).transpose(1, 2))
        time = pictures.positions[0, 0, -1] * 25
        assert time.tolist() == pytest.approx([16.0, 17.0])
    (heard,) = encode_track(components, request, shot, grid)
    assert isinstance(heard, KnownSound)
    assert torch.equal(sound.tokens[:, [*heard.kept].index(True)], heard.tokens[:, int(side == "start")])
    # 49 frames are 1.96 s, as 25 tokens a second go; of those that end later none is kept
    assert sum(heard.kept) == 49 if side == "end" else sum(heard.kept) in (47, 48)


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("have", [LENGTH, 46, 3])
def test_a_video_goes_on_and_stays_itself(tiny: Tiny, side: Any, have: int) -> None:
    components, request = tiny("tiny"), extend(0.5, side, have)
    with counted(components) as calls:
        plan = planned(components, request)
        result = generate(components, request, plan, inputs(have))
    assert calls.count == plan.passes == 2
    frames = frames_of(result)
    assert len(frames) == have + round(0.5 * 25)
    kept = slice(0, have) if side == "end" else slice(len(frames) - have, None)
    assert np.array_equal(frames[kept], source(0, have, have))
    assert result.sound is not None
    assert result.sound.samples.shape == (2, round(len(frames) / 25 * 48_000))


@pytest.mark.parametrize("side", ["end", "start"])
def test_a_steady_tone_goes_through_the_joint_without_a_hole_or_a_click(tiny: Tiny, side: Any) -> None:
    components, request = tiny("tiny"), extend(0.5, side)
    result = generate(components, request, planned(components, request), inputs())
    assert result.sound is not None
    begin = 0 if side == "end" else round(extend_frames(0.5, make().exact_fps) / 25 * 48_000)
    length, fade = round(LENGTH / 25 * 48_000), round(0.02 * 48_000)
    kept = result.sound.samples[:, begin : begin + length]
    inner = slice(0, length - fade) if side == "end" else slice(fade, length)
    steady = tone(LENGTH / 25).samples
    # AAC's first and last frames are not quite those of the tone
    middle = slice(max(inner.start, 4096), min(inner.stop, length - 4096))
    assert np.abs(kept[:, middle] - steady[:, middle]).max() < 0.02
    windows = kept[:, : length // 480 * 480].reshape(2, -1, 480)
    assert np.sqrt((windows**2).mean(axis=2)).min() > 0.1
    jumps = np.abs(np.diff(kept, axis=1)).max()
    assert jumps < 3 * 2 * np.pi * HERTZ / 48_000 * 0.25 + 0.3


@pytest.mark.parametrize("name", ["tiny", "tiny-dev"])
def test_a_long_clip_of_three_chained_extensions_is_as_long_as_asked(tiny: Tiny, name: str) -> None:
    components, request = tiny(name), extend(1.92, have=9)
    plan = planned(components, request, piece_seconds=1.0)
    assert len(plan.pieces) == 3
    steps: list[tuple[str, int, int]] = []
    with counted(components) as calls:
        result = generate(components, request, plan, inputs(9), lambda *told: steps.append(told))
    assert calls.count == plan.passes
    frames = frames_of(result)
    assert len(frames) == 9 + 48
    assert np.array_equal(frames[:9], source(0, 9, 9))
    assert result.sound is not None
    assert result.sound.samples.shape[1] == round(57 / 25 * 48_000)
    windows = result.sound.samples[:, : 57 * 1920].reshape(2, -1, 96)
    # the gaps at the ends of generated sounds are filled by what goes on; the last one is silence, as in any clip
    assert (np.abs(windows).max(axis=(0, 2))[: -3 * 10] > 1e-4).all()
    # each piece is encoded, denoised and decoded, and what is done never becomes less
    told = [Progress(*each) for each in steps]
    assert [phase for phase, _ in groupby(each.phase for each in told)] == ["encoding", "denoising", "decoding"] * 3
    done = [fraction(each) for each in told]
    assert done == sorted(done)
    assert [each.step for each in told if each.phase == "denoising"][-1] == plan.all_steps
    assert told[-1] == Progress("decoding")


def test_a_long_clip_from_a_prompt_is_made_in_pieces_too(tiny: Tiny) -> None:
    components = tiny("tiny")
    request = make(num_frames=60, width=64, keyframes=(*first("a"), Keyframe(image="b", frame="last")))
    plan = planned(components, request, piece_seconds=1.0)
    with counted(components) as calls, Calls(components.vae.encoder) as encoded:
        result = generate(components, request, plan, INPUTS)
    assert len(plan.pieces) == 4
    assert calls.count == plan.passes == 8
    # an image for the first piece and one for the last, and what there is for each but the first
    assert encoded.count == 5
    assert frames_of(result).shape == (60, 64, 64, 3)
    assert result.sound is not None
    assert result.sound.seconds == 60 / 25


def test_a_long_clip_follows_a_sound_through_all_its_pieces(tiny: Tiny) -> None:
    components, request = tiny("tiny"), make(num_frames=41, width=64, audio=AudioTrack(source="sound a", start=0.1))
    plan = planned(components, request, piece_seconds=0.9)
    result = generate(components, request, plan, INPUTS)
    assert len(plan.pieces) > 1
    whole = INPUTS.sound(AudioTrack(source="sound a", start=0.1), 41 / 25)
    assert result.sound is not None
    assert np.array_equal(result.sound.samples, whole.samples)
    for piece in plan.pieces:
        heard = INPUTS.heard(request, plan, piece)
        assert heard is not None
        begin = round((0.1 + piece.start / 25) * 16_000)
        part = whole_sound_of_a()[:, begin : begin + 1000]
        assert np.array_equal(heard.samples[:, : part.shape[1]], part)


def whole_sound_of_a() -> NDArray[np.float32]:
    return INPUTS.sound(AudioTrack(source="sound a"), 1.0).samples


@pytest.mark.parametrize("given", [True, False])
@torch.inference_mode()
def test_a_loop_ends_with_the_latents_it_begins_with(tiny: Tiny, given: bool) -> None:
    components = tiny("tiny")
    request = make(loop=True, keyframes=first("a") if given else ())
    plan = planned(components, request)
    assert plan.makes_still == (not given)
    seen: list[Tensor] = []
    with counted(components) as calls, Calls(components.vae.encoder) as encoded:
        handle = components.transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        )
        generate(components, request, plan, INPUTS)
        handle.remove()
    assert calls.count == plan.passes == (2 if given else 4)
    assert encoded.count == 1
    area = plan.grid.latent_height * plan.grid.latent_width
    for tokens in seen[-2:]:
        assert tokens.shape[1] == plan.grid.video_tokens + area
        assert torch.equal(tokens[:, :area], tokens[:, -area:])
    shown = [ImageConditioning] * (2 if given else 0)
    assert [
        type(each) for each in encode_pictures(components, request, INPUTS, Shot(plan.pieces[0]), plan.grid)
    ] == shown


@pytest.mark.parametrize("kind", [{"sound": False}])
def test_a_video_without_sound_gets_one_where_it_goes_on(tiny: Tiny, kind: dict[str, Any]) -> None:
    components, request = tiny("tiny"), extend(0.5)
    result = generate(components, request, planned(components, request), inputs(**kind))
    assert result.sound is not None
    joint, fade = (round(seconds * result.sound.sample_rate) for seconds in (LENGTH / 25, 0.02))
    assert not result.sound.samples[:, : joint - fade].any()
    assert result.sound.samples[:, joint:].any()


def test_a_size_that_is_not_on_the_grid_and_an_image_where_it_goes_on(tiny: Tiny) -> None:
    components = tiny("tiny")
    request = extend(0.4, have=9, width=100, height=70, keyframes=(Keyframe(image="a", frame="last"),))
    result = generate(components, request, planned(components, request), inputs(9, width=100, height=70))
    frames = frames_of(result)
    assert frames.shape == (19, 70, 100, 3)
    given = inputs(9, width=100, height=70).media["v"]
    assert np.array_equal(frames[:9], np.concatenate([*read_frames(given, 0, 9, field="v", limits=LIMITS)]))
