"""Parts that come and go, shown on a CPU: there a copy is another piece of memory, as it is on a GPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_clips import INPUTS, first, latents, make, planned, same, track
from torch import Tensor

from ltx2.model.components import Components
from ltx2.model.fp8 import quantise_blocks, store_linears
from ltx2.model.lora import Lora, applied
from ltx2.model.memory import MINIATURE, typical_grid
from ltx2.model.parts import PARTS, Module, Part
from ltx2.model.pipeline import generate
from ltx2.model.placement import OFFLOADS, PROMPT_PARTS, Card, Offload, Placement
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.residency import STREAMED_BLOCKS, Residency
from ltx2.model.tiny import build_tiny
from ltx2.request import GenerationRequest

CPU = torch.device("cpu")
MOVING = OFFLOADS[1:]


def build(name: str, offload: Offload, prepare: Callable[[Components], object] = lambda _: None) -> Components:
    """An embedded model that is placed as asked."""
    components = build_tiny(name, CPU, torch.float32)
    prepare(components)
    card = Card("cpu", total_bytes=10**12, free_bytes=10**12)
    placement = Placement("fp32", offload, card, {}, typical_grid(64, 64, 9), MINIATURE)
    return replace(components, residency=Residency(components.parts, placement, CPU))


def short(**fields: Any) -> GenerationRequest:
    return make(width=64, height=64, num_frames=9, num_inference_steps=1, **fields)


def addresses(module: Module) -> list[int]:
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return [tensor.data_ptr() for tensor in tensors if tensor.numel()]


def residency_of(components: Components) -> Residency:
    assert components.residency is not None
    return components.residency


@pytest.mark.parametrize("name", ["tiny", "tiny-2.3", "tiny-2.5"])
def test_wherever_parts_are_the_clip_is_the_same_to_the_last_bit(name: str) -> None:
    request = short(keyframes=first("a"), audio=track(0.5))
    clips = []
    for offload in OFFLOADS:
        components = build(name, offload)
        clips.append(generate(components, request, planned(components, request), INPUTS))
    for clip in clips[1:]:
        assert torch.equal(clip.pictures, clips[0].pictures)
        assert clip.sound is not None
        assert np.array_equal(clip.sound.samples, clips[0].sound.samples)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_every_part_is_where_the_plan_says(offload: Offload) -> None:
    components = build("tiny-2.5", offload)
    residency = residency_of(components)
    home = {part: addresses(module) for part, module in components.parts.items()}
    assert set(home) == set(PARTS)
    for part, module in components.parts.items():
        moves = offload in ("model", "group") or (offload == "text-encoder" and part in PROMPT_PARTS)
        assert residency.where(part) == ("host" if moves else "device")
        with components.using(part):
            assert residency.where(part) == "device"
            away = set(addresses(module)) - set(home[part])
            streamed = offload == "group" and part in STREAMED_BLOCKS
            assert bool(away) == moves
            assert (len(away) == len(set(home[part]))) == (moves and not streamed)
            others = {other: addresses(there) for other, there in components.parts.items() if other != part}
            assert all(where == home[other] for other, where in others.items())
        assert addresses(module) == home[part]
        assert residency.visits[part] == moves


def test_what_stays_is_not_copied() -> None:
    components = build_tiny("tiny", CPU, torch.float32)
    before = {part: addresses(module) for part, module in components.parts.items()}
    placement = Placement("fp32", "none", Card("cpu", 1, 1), {}, typical_grid(64, 64, 9), MINIATURE)
    Residency(components.parts, placement, CPU)
    assert {part: addresses(module) for part, module in components.parts.items()} == before


def test_a_part_leaves_with_its_last_user_and_absent_ones_are_ignored() -> None:
    components = build("tiny", "model")
    residency, home = residency_of(components), addresses(components.vae)
    with components.using("vae", "diffusion_decoder"):
        there = addresses(components.vae)
        with components.using("vae", "audio_vae"):
            assert addresses(components.vae) == there
        assert residency.where("vae") == "device"
        assert residency.where("audio_vae") == "host"
        assert addresses(components.vae) == there
    assert addresses(components.vae) == home
    assert residency.visits == {"vae": 1, "audio_vae": 1}


@pytest.mark.parametrize("offload", MOVING)
def test_an_error_sends_everything_home(offload: Offload) -> None:
    components = build("tiny", offload)
    home = {part: addresses(module) for part, module in components.parts.items()}
    expected = latents(components, short())
    block = components.transformer.transformer_blocks[1]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = block.attn1.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        latents(components, short())
    handle.remove()
    assert {part: addresses(module) for part, module in components.parts.items()} == home
    assert same(latents(components, short()), expected)


def test_a_part_that_cannot_come_is_sent_home(monkeypatch: pytest.MonkeyPatch) -> None:
    components = build("tiny", "model")
    home = addresses(components.vae)
    real = torch.empty_like
    calls = iter(range(3))

    def scarce(*args: Any, **kwargs: Any) -> Tensor:
        if next(calls, None) is None:
            raise torch.OutOfMemoryError
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", scarce)
        with pytest.raises(torch.OutOfMemoryError), components.using("vae"):
            pass
    assert addresses(components.vae) == home
    assert residency_of(components).where("vae") == "host"


def test_one_block_is_there_at_a_time_and_a_broken_pass_does_not_disturb_the_next() -> None:
    components = build("tiny", "group")
    blocks = list(components.transformer.transformer_blocks)
    homes = [addresses(block) for block in blocks]
    seen: list[tuple[int, ...]] = []

    def look(*_: object) -> None:
        seen.append(tuple(index for index, block in enumerate(blocks) if addresses(block) != homes[index]))
        if len(seen) == 2:
            raise RuntimeError("broken off")

    for block in blocks:
        block.attn1.register_forward_hook(look)
    with components.using("transformer", "text_encoder", "connectors"):
        with pytest.raises(RuntimeError, match="broken off"):
            latents(components, short())
        one = latents(components, short())
    assert seen == [(0,), (1,), (0,), (1,), (2,)]
    assert [addresses(block) for block in blocks] == homes
    assert same(one, latents(build("tiny", "none"), short()))


@pytest.mark.parametrize("offload", MOVING)
def test_float8_weights_loras_and_guidance_work_wherever_parts_are(offload: Offload) -> None:
    """Dev guidance hooks into the blocks, and so does a LoRA."""

    def quantise(components: Components) -> None:
        assert quantise_blocks(components.transformer)
        assert store_linears(components.text_encoder)

    draw = torch.Generator().manual_seed(1)
    inner = 64
    pair = (torch.randn(4, inner, generator=draw), torch.randn(inner, 4, generator=draw), 0.5)
    lora = Lora.from_pairs("test", {f"transformer_blocks.{index}.attn1.to_q": pair for index in range(3)})
    request = short()

    def run(offload: Offload, *, wears: bool) -> Any:
        components = build("tiny-dev", offload, quantise)
        with applied(components.transformer, [(lora, 1.0)] if wears else []):
            return latents(components, request)

    expected = run("none", wears=True)
    assert same(run(offload, wears=True), expected)
    assert not same(run(offload, wears=False), expected)


@pytest.mark.parametrize("offload", MOVING)
def test_parts_may_come_in_inference_mode_and_be_used_outside(offload: Offload) -> None:
    components = build("tiny", offload)
    parts: tuple[Part, ...] = ("text_encoder", "transformer")
    with components.using(*parts):
        inside = latents(components, short())
    with torch.inference_mode():
        entered = components.using(*parts)
        entered.__enter__()
    assert not any(weight.is_inference() for weight in components.transformer.parameters())
    assert same(latents(components, short()), inside)
    entered.__exit__(None, None, None)
    assert not any(weight.is_inference() for weight in components.transformer.parameters())


def test_a_prompt_that_is_remembered_brings_no_text_encoder() -> None:
    components = replace(build("tiny", "text-encoder"), prompt_cache=PromptCache(max_bytes=2**20))
    for _ in range(3):
        latents(components, short())
    assert residency_of(components).visits == dict.fromkeys(PROMPT_PARTS, 1)
