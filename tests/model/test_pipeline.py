"""Whole generations of the tiny models, down to the latents."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_clips import INPUTS, SOUNDS, Calls, first, latents, make, planned, same, track
from torch import Tensor

from ltx2.errors import Canceled
from ltx2.media.audio import Waveform, fit
from ltx2.model.components import Components
from ltx2.model.conditioning import Stream
from ltx2.model.decode import decode_sound
from ltx2.model.encode import encode_sound
from ltx2.model.pipeline import generate
from ltx2.model.tiny import build_tiny
from ltx2.plan import make_plan
from ltx2.recipes import NEUTRAL
from ltx2.request import AudioTrack, GenerationRequest, Guidance, Keyframe

Tiny = Callable[[str], Components]


def test_the_same_seed_gives_the_same_latents_and_frames(tiny: Tiny) -> None:
    for name in ("tiny", "tiny-2.5"):  # the latter draws noise at every step
        components, request = tiny(name), make()
        assert same(latents(components, request), latents(components, request))
        assert not same(latents(components, request), latents(components, make(seed=4)))
    frames = [generate(tiny("tiny"), make(), make_plan(make(), tiny("tiny").recipe), INPUTS) for _ in range(2)]
    assert torch.equal(frames[0].pictures, frames[1].pictures)
    assert np.array_equal(frames[0].sound.samples, frames[1].sound.samples)


def test_another_image_changes_the_picture_and_another_sound_too(tiny: Tiny) -> None:
    components = tiny("tiny")
    a, b = (latents(components, make(keyframes=first(name)))[0].tokens for name in ("a", "b"))
    beyond = slice(6, None)  # the tokens that are generated: the first six are the image
    assert not torch.allclose(a[:, beyond], b[:, beyond])
    a, b = (latents(components, make(audio=track(name=name)))[0].tokens for name in ("a", "b"))
    assert not torch.allclose(a, b)


def test_a_strict_image_stays_and_a_weak_one_moves(tiny: Tiny) -> None:
    components = tiny("tiny")
    moved = []
    for strength in (1.0, 0.9, 0.4):
        video, _ = latents(components, make(keyframes=first("a", strength)))
        moved.append(float((video.tokens - video.clean)[:, :6].abs().mean()))
    assert moved[0] == 0
    assert 0 < moved[1] < moved[2]


def test_an_image_of_strength_0_says_nothing_wherever_it_is(tiny: Tiny) -> None:
    free = latents(tiny("tiny"), make())
    for frame in ("first", 5, "last"):
        ignored = (Keyframe(image="a", frame=frame, strength=0.0),)
        assert same(latents(tiny("tiny"), make(keyframes=ignored)), free)


def test_frozen_sound_ends_equal_to_its_encoding(tiny: Tiny) -> None:
    components, request = tiny("tiny"), make(audio=track())
    grid = planned(components, request).grid
    heard = fit(Waveform(SOUNDS["a"].T, 16_000), 0.0, grid.grid_seconds)
    _, audio = latents(components, request)
    assert torch.equal(audio.tokens, encode_sound(components, heard, grid))


@pytest.mark.parametrize("name", ["tiny", "tiny-dev", "tiny-2.3", "tiny-2.5"])
def test_partly_noised_sound_meets_the_frozen_and_the_free_case_at_its_ends(tiny: Tiny, name: str) -> None:
    components = tiny(name)
    almost = 1e-6
    free, frozen = latents(components, make()), latents(components, make(audio=track(1.0)))
    assert same(latents(components, make(audio=track(0.0))), free)

    def distance(one: tuple[Stream, Stream], other: tuple[Stream, Stream]) -> float:
        return max(float((a.tokens - b.tokens).abs().max()) for a, b in zip(one, other, strict=True))

    assert distance(latents(components, make(audio=track(almost))), free) < 1e-2
    near = latents(
        components, make(audio=track(1 - almost), guidance=Guidance(audio_cfg=1, audio_stg=0, audio_modality=1))
    )
    assert distance(near, frozen) < 1e-2
    half = latents(components, make(audio=track(0.5)))
    assert distance(half, free) > 0.1 < distance(half, frozen)


def test_an_image_in_the_middle_is_appended_with_its_own_time_and_not_decoded(tiny: Tiny) -> None:
    components = tiny("tiny")
    request = make(keyframes=(Keyframe(image="a", frame=11),))
    video, _ = latents(components, request)
    clip, image = planned(components, request).grid.video_tokens, 6
    assert video.tokens.shape[1] == clip + image
    assert torch.allclose(video.positions[0, 0, clip:], torch.tensor([11 / 25, 12 / 25]).expand(image, 2))
    assert torch.equal(video.positions[:, 1:, clip:], video.positions[:, 1:, :image])
    result = generate(components, request, planned(components, request), INPUTS)
    assert result.pictures.shape == (1, 3, 17, 64, 96)


def test_the_end_image_lies_on_the_last_asked_frame(tiny: Tiny) -> None:
    request = make(num_frames=10, keyframes=(Keyframe(image="a", frame="last"),))
    video, _ = latents(tiny("tiny"), request)
    assert planned(tiny("tiny"), request).grid.grid_frames == 17
    assert float(video.positions[0, 0, -1, 0]) == pytest.approx(9 / 25)


@pytest.mark.parametrize(
    ("name", "fields", "passes"),
    [
        ("tiny", {}, 1),
        ("tiny", {"guidance": Guidance(video_cfg=3)}, 2),
        ("tiny-dev", {}, 4),
        ("tiny-dev", {"guidance": Guidance(video_cfg=1, audio_cfg=1)}, 3),
        ("tiny-dev", {"guidance": Guidance(video_stg=0, audio_stg=0)}, 3),
        ("tiny-dev", {"guidance": Guidance(video_modality=1, audio_modality=1)}, 3),
        ("tiny-dev", {"guidance": Guidance(video_cfg=1, video_stg=0, video_modality=1), "audio": track()}, 1),
    ],
)
def test_only_passes_with_a_scale_that_is_not_neutral_are_run(
    tiny: Tiny, name: str, fields: dict[str, Any], passes: int
) -> None:
    components = tiny(name)
    with Calls(components.transformer) as calls:
        latents(components, make(num_inference_steps=3, **fields))
    assert calls.count == 3 * passes


def test_the_negative_prompt_is_encoded_only_when_it_is_used(tiny: Tiny) -> None:
    for name, prompts in (("tiny", 1), ("tiny-dev", 2)):
        components = tiny(name)
        with Calls(components.connectors) as calls:
            latents(components, make())
        assert calls.count == prompts


def test_the_negative_prompt_repels(tiny: Tiny) -> None:
    components = tiny("tiny-dev")
    one, other = (latents(components, make(negative_prompt=text)) for text in ("fog", "rain"))
    assert not same(one, other)


def test_the_sound_track_is_the_given_sound_the_generated_one_or_none(tiny: Tiny) -> None:
    components = tiny("tiny")

    def sound(**fields: Any) -> Waveform | None:
        request = make(**fields)
        return generate(components, request, planned(components, request), INPUTS).sound

    given = sound(audio=AudioTrack(source="sound a", start=0.1))
    assert given is not None
    assert given.sample_rate == 16_000
    assert np.array_equal(given.samples, SOUNDS["a"].T[:, 1600 : 1600 + round(17 / 25 * 16_000)])
    for fields in ({}, {"audio": track(0.5)}, {"audio": track(0.0)}):
        made = sound(**fields)
        assert made is not None
        assert made.sample_rate == 24_000
        assert made.samples.shape[0] == 2
        assert 0 < made.seconds < 17 / 25  # a little shorter than the pictures
    assert sound(include_audio=False) is None
    assert sound(output={"format": "gif"}) is None
    assert sound(audio=track(), include_audio=False) is None


def test_the_sound_alone_is_that_of_the_video_and_no_picture_is_decoded(tiny: Tiny) -> None:
    components = tiny("tiny")
    made, calls = {}, {}
    for output in ("mp4", "wav"):
        request = make(output={"format": output})
        with Calls(components.vae.decoder) as seen:
            made[output] = generate(components, request, planned(components, request), INPUTS)
        calls[output] = seen.count
    assert calls["mp4"] > 0 == calls["wav"]
    assert (made["mp4"].pictures is None, made["wav"].pictures is None) == (False, True)
    assert np.array_equal(made["wav"].sound.samples, made["mp4"].sound.samples)


def test_the_sound_alone_needs_no_diffusion_decoder(tiny: Tiny) -> None:
    components, request = tiny("tiny-2.5"), make(output={"format": "mp3"}, num_inference_steps=1)
    with Calls(components.diffusion_decoder.decoder) as seen:
        made = generate(components, request, planned(components, request), INPUTS)
    assert (made.pictures, seen.count) == (None, 0)
    alone = decode_sound(components, latents(components, request)[1].tokens)
    assert np.array_equal(made.sound.samples, alone.samples)


def test_2_3_and_2_5_sound_at_48_khz(tiny: Tiny) -> None:
    for name in ("tiny-2.3", "tiny-2.5"):
        components = tiny(name)
        result = generate(components, make(), make_plan(make(), components.recipe), INPUTS)
        assert result.sound is not None
        assert result.sound.sample_rate == 48_000


def test_the_picture_is_cut_around_the_centre_and_at_the_end(tiny: Tiny) -> None:
    components = tiny("tiny")
    whole, cut = make(width=96, height=64, num_frames=17), make(width=92, height=66, num_frames=12)
    grid = planned(components, cut).grid
    assert (grid.grid_width, grid.grid_height, grid.grid_frames) == (96, 96, 17)
    whole = replace_size(whole, 96, 96)
    pictures: list[Tensor] = [
        generate(components, request, planned(components, request), INPUTS).pictures for request in (whole, cut)
    ]
    assert torch.equal(pictures[0][:, :, :12, 15:81, 2:94], pictures[1])


def replace_size(request: GenerationRequest, width: int, height: int) -> GenerationRequest:
    return request.model_copy(update={"width": width, "height": height})


def test_a_cancelled_generation_stops_before_the_next_step(tiny: Tiny) -> None:
    components, request = tiny("tiny"), make(num_inference_steps=8)
    seen: list[int] = []

    def report(phase: str, step: int, _steps: int) -> None:
        if phase == "denoising":
            seen.append(step)

    with pytest.raises(Canceled), Calls(components.transformer) as calls:
        generate(
            components,
            request,
            planned(components, request),
            INPUTS,
            report,
            cancelled=lambda: bool(seen) and seen[-1] == 3,
        )
    assert seen == [0, 1, 2, 3]
    assert calls.count == 3


def test_progress_names_each_phase_and_counts_each_step(tiny: Tiny) -> None:
    components, seen = tiny("tiny"), []
    generate(components, make(), make_plan(make(), components.recipe), INPUTS, lambda *report: seen.append(report))
    assert seen == [
        ("encoding", 0, 0),
        ("denoising", 0, 2),
        ("denoising", 1, 2),
        ("denoising", 2, 2),
        ("decoding", 0, 0),
    ]


@pytest.mark.parametrize("name", ["tiny", "tiny-dev", "tiny-2.3", "tiny-2.5"])
def test_bfloat16_goes_all_the_way(name: str) -> None:
    components = build_tiny(name, torch.device("cpu"), torch.bfloat16)
    request = make(keyframes=first("a"), audio=track(0.5))
    result = generate(components, request, planned(components, request), INPUTS)
    assert result.pictures.dtype == torch.bfloat16
    assert bool(result.pictures.isfinite().all())
    assert result.sound is not None
    assert np.isfinite(result.sound.samples).all()


def test_a_plan_without_any_guidance_is_neutral(tiny: Tiny) -> None:
    plan = make_plan(make(), tiny("tiny").recipe)
    assert (plan.video, plan.audio) == (NEUTRAL, replace(NEUTRAL))
