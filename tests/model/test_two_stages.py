"""Clips made at half the size first, then enlarged and refined."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_clips import INPUTS, SOUNDS, Calls, first, latents, make, planned, same, track
from torch import Tensor

from ltx2.errors import InvalidRequest
from ltx2.model.checkpoint import load_components
from ltx2.model.components import Components, video_statistics
from ltx2.model.conditioning import Stream, unpack_video
from ltx2.model.encode import encode_image, encode_sound
from ltx2.model.known import Shot, encode_pictures
from ltx2.model.lora import Lora
from ltx2.model.pipeline import UNGUIDED, Stage, encode_texts, generate, refined
from ltx2.model.upsample import upsample
from ltx2.recipes import REFINE_SIGMAS
from ltx2.request import GenerationRequest, Keyframe
from ltx2.settings import Settings

Tiny = Callable[[str], Components]
NAMES = ["tiny", "tiny-dev", "tiny-2.3", "tiny-2.5"]


def two(**fields: Any) -> GenerationRequest:
    return make(width=128, height=128, pipeline="two_stage", **fields)


def by_hand(components: Components, request: GenerationRequest) -> tuple[Stream, Stream]:
    """Two stages put together from a one-stage run of half the size, an enlargement and a refinement."""
    small = request.model_copy(update={"width": 64, "height": 64, "pipeline": "one_stage"})
    video, audio = latents(components, small)
    noise = torch.Generator().manual_seed(request.seed or 0)
    # what the first stage drew, which the second does not draw again
    for stream in (video, audio):
        torch.randn(stream.tokens.shape, generator=noise)
    with torch.inference_mode():
        larger = upsample(components, unpack_video(video.tokens, planned(components, small).grid))
        plan = planned(components, request)
        images = encode_pictures(components, request, INPUTS, Shot(plan.pieces[0]), plan.grid)
        given = refined(components.recipe.kind, larger, audio.tokens, images, [])
        stage = Stage(plan.grid, REFINE_SIGMAS, UNGUIDED, loras=components.refine_loras)
        return stage.run(components, *given, encode_texts(components, request, plan), noise)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{}, {"keyframes": (*first("a"), Keyframe(image="b", frame=9))}])
def test_they_are_a_small_clip_enlarged_and_refined_with_noise_drawn_on(
    tiny: Tiny, name: str, fields: dict[str, Any]
) -> None:
    components, request = tiny(name), two(**fields)
    assert planned(components, request).stages == 2
    assert same(latents(components, request), by_hand(components, request))


def test_a_strict_image_is_encoded_again_at_the_full_size(tiny: Tiny) -> None:
    components, request = tiny("tiny"), two(keyframes=first("a"))
    grid = planned(components, request).grid
    with Calls(components.vae.encoder) as calls:
        video, _ = latents(components, request)
    assert calls.count == 2
    image = encode_image(components, INPUTS.image("a"), grid)
    assert torch.equal(unpack_video(video.tokens, grid)[:, :, :1], image)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_sound_stays_in_both_stages_and_is_the_track(tiny: Tiny, name: str) -> None:
    components, request = tiny(name), two(audio=track())
    grid = planned(components, request).grid
    _, audio = latents(components, request)
    heard = INPUTS.sound(track(), grid.grid_seconds)
    with torch.inference_mode():
        assert torch.equal(audio.tokens, encode_sound(components, heard, grid))
    result = generate(components, request, planned(components, request), INPUTS)
    assert result.sound is not None
    assert np.array_equal(result.sound.samples, SOUNDS["a"].T[:, : round(17 / 25 * 16_000)])


def test_a_dev_checkpoint_keeps_the_first_stages_sound_and_a_distilled_one_refines_it(tiny: Tiny) -> None:
    for name, kept in (("tiny-dev", True), ("tiny", False)):
        components = tiny(name)
        small = make(width=64, height=64)
        (_, ours), (_, firsts) = latents(components, two()), latents(components, small)
        assert torch.equal(ours.tokens, firsts.tokens) == kept


def test_partly_noised_sound_drives_both_stages(tiny: Tiny) -> None:
    components = tiny("tiny")
    free, half = latents(components, two()), latents(components, two(audio=track(0.5)))
    assert not same(free, half)
    assert float((half[1].mask - 0.5).abs().max()) == 0


def test_the_second_stage_is_three_unguided_steps_with_the_lora_of_a_dev_checkpoint(tiny: Tiny) -> None:
    components, seen = tiny("tiny-dev"), []
    layer = components.transformer.transformer_blocks[0].attn1.to_q
    hooks: list[int] = []

    def report(phase: str, step: int, steps: int) -> None:
        seen.append((phase, step, steps))
        # a LoRA is worn as a hook: by the second stage alone
        hooks.append(len(layer._forward_hooks))

    with Calls(components.transformer) as calls:
        generate(components, two(), planned(components, two()), INPUTS, report)
    assert calls.count == 2 * 4 + 3
    assert seen == [
        ("encoding", 0, 0),
        *(("denoising", step, 5) for step in range(6)),
        ("decoding", 0, 0),
    ]
    assert hooks == [0, 0, 0, 0, 1, 1, 1, 0]


def test_the_lora_matters_and_leaves_nothing_behind(tiny: Tiny) -> None:
    components = tiny("tiny-dev")
    before, refined_once = latents(components, make()), latents(components, two())
    assert same(latents(components, make()), before)
    assert same(latents(components, two()), refined_once)
    bare = replace(components, refine_lora=Lora("empty", {}))
    assert not same(latents(bare, two()), refined_once)
    assert same(latents(bare, make()), before)


def test_a_distilled_checkpoint_wears_none(tiny: Tiny) -> None:
    lora = tiny("tiny-dev").refine_lora
    assert replace(tiny("tiny"), refine_lora=lora).refine_loras == ()


def test_all_images_of_a_stage_bring_the_vae_once() -> None:
    components = load_components(Settings(model="tiny", offload="model"))
    latents(components, two(keyframes=(*first("a"), Keyframe(image="b", frame=9))))
    assert components.residency is not None
    assert components.residency.visits["vae"] == 2  # the decoder is not run here, nor is the upsampler the VAE


def test_enlarging_is_done_on_latents_as_the_decoder_sees_them(tiny: Tiny) -> None:
    components = tiny("tiny")
    given = torch.randn(1, 128, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    mean, std = video_statistics(components.vae, given.device)
    with torch.inference_mode():
        ours = upsample(components, given)
        raw: Tensor = components.upsampler(given * std + mean)
    assert ours.shape == (1, 128, 2, 4, 6)
    assert torch.allclose(ours * std + mean, raw, atol=1e-5)


def test_a_model_without_an_upsampler_makes_no_second_stage(tiny: Tiny) -> None:
    alone = replace(tiny("tiny"), upsampler=None)
    assert not alone.can_refine
    with pytest.raises(InvalidRequest, match="no second stage"):
        planned(alone, two())
    assert not replace(tiny("tiny-dev"), refine_lora=None).can_refine
    assert tiny("tiny-dev").can_refine


@pytest.mark.parametrize("name", NAMES)
def test_sizes_off_the_grid_of_64_are_cut_around_the_centre(tiny: Tiny, name: str) -> None:
    components = tiny(name)
    request = two().model_copy(update={"width": 100, "height": 72, "num_frames": 12})
    result = generate(components, request, planned(components, request), INPUTS)
    assert result.pictures.shape == (1, 3, 12, 72, 100)
    assert bool(result.pictures.isfinite().all())


def test_the_sound_alone_takes_no_stage_that_leaves_it_as_it_is(tiny: Tiny) -> None:
    for name in ("tiny-dev", "tiny"):
        components, sounds, enlarged = tiny(name), [], []
        for output in ("mp4", "wav"):
            request = two(output={"format": output})
            with Calls(components.upsampler) as seen:
                sounds.append(generate(components, request, planned(components, request), INPUTS).sound.samples)
            enlarged.append(seen.count)
        assert enlarged == ([1, 0] if name == "tiny-dev" else [1, 1])
        assert np.array_equal(*sounds)


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_clip_there_is(tiny: Tiny, name: str) -> None:
    components = tiny(name)
    request = make(width=64, height=64, num_frames=1, pipeline="two_stage")
    result = generate(components, request, planned(components, request), INPUTS)
    assert result.pictures.shape == (1, 3, 1, 64, 64)
    assert bool(result.pictures.isfinite().all())
