"""The operator's LoRAs: found, read, kept, worn by a clip, and gone after it."""

import gc
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_clips import INPUTS, Calls, make, planned
from small_loras import LINEAR, error, linear_of, noise, write_lora
from torch import Tensor

from ltx2.errors import InvalidRequest
from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts
from ltx2.model.lora import Lora, applied
from ltx2.model.lora_library import LoraLibrary
from ltx2.model.original import OriginalFiles
from ltx2.model.pipeline import generate
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.prompts import encode_prompts
from ltx2.model.tiny import build_tiny
from ltx2.request import LoraChoice

Tiny = Callable[[str], Components]
Checkpoints = Callable[[str], Path]
Worn = Sequence[tuple[Lora, float]]

CPU = torch.device("cpu")
PLENTY = 2**30
SMALLEST = {"width": 64, "height": 64, "num_frames": 9}


def ask(*names: str, scale: float = 1.0) -> tuple[LoraChoice, ...]:
    return tuple(LoraChoice(name=name, scale=scale) for name in names)


def clip(components: Components, worn: Worn = (), report: Any = lambda *_: None, **fields: Any) -> list[np.ndarray]:
    """The pictures and the sound of a clip."""
    request = make(**SMALLEST | fields)
    inputs = replace(INPUTS, loras=tuple(worn))
    result = generate(components, request, planned(components, request), inputs, report)
    assert result.pictures is not None
    assert result.sound is not None
    return [result.pictures.numpy().copy(), result.sound.samples.copy()]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(map(np.array_equal, one, other))


def hooks(components: Components) -> int:
    """Of what may wear one. The text encoder has some of its own."""
    modules = [*components.transformer.modules(), *components.connectors.modules()]
    return sum(len(module._forward_hooks) for module in modules)


@torch.inference_mode()
def velocities(transformer: Any, golden: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One call of the transformer with a golden file's inputs, the way the official code makes it."""
    given = {name.removeprefix("transformer."): tensor for name, tensor in golden.items()}
    sigma = given["sigma"].reshape(1) * 1000
    video, audio = transformer(
        hidden_states=given["video_tokens"],
        audio_hidden_states=given["audio_tokens"],
        encoder_hidden_states=given["video_context"],
        audio_encoder_hidden_states=given["audio_context"],
        timestep=given["video_timesteps"] * 1000,
        audio_timestep=given["audio_timesteps"] * 1000,
        sigma=sigma,
        audio_sigma=sigma,
        video_coords=given["video_positions"],
        audio_coords=given["audio_positions"],
        return_dict=False,
    )
    return video, audio


@pytest.mark.parametrize(("version", "model"), [("2.0", "tiny"), ("2.3", "tiny-2.3")])
def test_a_lora_does_what_the_official_code_says(
    version: str, model: str, checkpoints: Checkpoints, tiny: Tiny
) -> None:
    golden = load_file(checkpoints(f"expected-{version}.safetensors"))
    transformer = OriginalFiles([checkpoints(f"ltx-{version}-tiny.safetensors")]).load("transformer", torch.float32)
    folder = checkpoints(f"ltx-{version}-lora-original.safetensors").parent
    library = LoraLibrary(replace(tiny(model), transformer=transformer), folder, PLENTY)
    plain = velocities(transformer, golden)
    for layout in ("original", "peft"):
        with applied(transformer, library.worn(ask(f"ltx-{version}-lora-{layout}", scale=0.8))):
            worn = velocities(transformer, golden)
        for ours, name in zip(worn, ("video", "audio"), strict=True):
            assert error(ours, golden[f"transformer.lora.out_{name}_velocity"]) < 1e-5
        for ours, name, before in zip(velocities(transformer, golden), ("video", "audio"), plain, strict=True):
            assert torch.equal(ours, before)
            assert error(ours, golden[f"transformer.out_{name}_velocity"]) < 1e-5


def test_several_add_up_to_what_merged_weights_do(tiny: Tiny, tmp_path: Path) -> None:
    components, merged = tiny("tiny-2.3"), build_tiny("tiny-2.3", CPU, torch.float32)
    for name, layout, seed, scale in (("one", "original", 1, 0.8), ("other", "diffusers", 2, -0.5)):
        does = write_lora(tmp_path / f"{name}.safetensors", components.transformer, layout=layout, seed=seed)
        for linear, (a, b) in does.items():
            linear_of(merged.transformer, linear).weight.add_(b @ a, alpha=scale)
    choices = (LoraChoice(name="one", scale=0.8), LoraChoice(name="other.safetensors", scale=-0.5))
    worn = LoraLibrary(components, tmp_path, PLENTY).worn(choices)
    seen: list[tuple[Tensor, Tensor]] = []
    for model, loras in ((components, worn), (merged, ()), (components, ())):
        handle = model.transformer.register_forward_hook(lambda _module, _args, out: seen.append(out))
        clip(model, loras, num_inference_steps=1)
        handle.remove()
    for ours, theirs, plain in zip(*seen, strict=True):
        assert error(ours, theirs) < 1e-5
        assert error(plain, theirs) > 1e-2


@pytest.mark.parametrize(("model", "steps"), [("tiny-dev", [1, 1, 2, 2, 2]), ("tiny", [1, 1, 1, 1, 1])])
def test_both_stages_wear_it_and_nothing_is_left(tiny: Tiny, tmp_path: Path, model: str, steps: list[int]) -> None:
    components, seen = tiny(model), {}
    write_lora(tmp_path / "style.safetensors", components.transformer)
    worn = LoraLibrary(components, tmp_path, PLENTY).worn(ask("style"))
    layer = linear_of(components.transformer, LINEAR)

    def report(phase: str, step: int, _steps: int) -> None:
        seen[phase, step] = len(layer._forward_hooks)

    fields = {"width": 128, "height": 128, "pipeline": "two_stage"}
    before = clip(components, **fields)
    dressed = clip(components, worn, report, **fields)
    # a dev checkpoint's second stage wears the one it refines with as well
    assert [seen["denoising", step] for step in range(1, 6)] == steps
    assert hooks(components) == 0
    assert all(np.isfinite(part).all() for part in dressed)
    assert not same(dressed, before)
    assert same(clip(components, **fields), before)


def test_at_a_scale_of_zero_it_is_not_even_read(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"nothing")
    library = LoraLibrary(tiny("tiny"), tmp_path, PLENTY)
    assert library.worn(ask("style", scale=0.0)) == ()
    with pytest.raises(InvalidRequest, match="no LoRA of this name"):
        library.worn(ask("nowhere", scale=0.0))


def test_ten_switches_leave_the_memory_flat_and_the_model_as_it_was(tmp_path: Path) -> None:
    components = build_tiny("tiny-2.3", CPU, torch.float32)
    weights = [weight for part in components.parts.values() for weight in part.parameters()]
    # of nearly 9 MB each, so that one that stayed would show, and only one of them is kept
    for seed, name in enumerate(("one", "other")):
        write_lora(tmp_path / f"{name}.safetensors", components.transformer, seed=seed, rank=2000)
    library = LoraLibrary(components, tmp_path, max_bytes=2**24)

    def switch(number: int) -> list[np.ndarray]:
        worn = library.worn(ask(("one", "other")[number % 2]))
        return clip(components, worn, num_frames=1, num_inference_steps=1)

    def memory() -> tuple[int, int]:
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects()), psutil.Process().memory_info().rss

    touched = [(weight.data_ptr(), weight._version) for weight in weights]
    first = [switch(number) for number in range(2)]
    tensors, resident = memory()
    last = [switch(number) for number in range(10)][-2:]
    tensors_after, resident_after = memory()
    assert tensors_after == tensors
    assert resident_after - resident < 2**25
    assert all(map(same, first, last))
    assert not same(*first)
    assert 2**23 < library.nbytes <= 2**24
    assert hooks(components) == 0
    # neither read again nor written to
    assert [(weight.data_ptr(), weight._version) for weight in weights] == touched


@pytest.mark.parametrize(("lora", "model"), [("2.0", "tiny-2.3"), ("2.3", "tiny")])
def test_one_of_another_generation_is_refused_with_the_reason(
    lora: str, model: str, checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path
) -> None:
    for layout in ("original", "peft"):
        name = f"ltx-{lora}-lora-{layout}.safetensors"
        (tmp_path / name).symlink_to(checkpoints(name))
    write_lora(tmp_path / "fits.safetensors", tiny(model).transformer)
    library = LoraLibrary(tiny(model), tmp_path, PLENTY)
    for layout in ("original", "peft"):
        with pytest.raises(InvalidRequest, match="belongs to another LTX-2") as refused:
            library.worn(ask("fits", f"ltx-{lora}-lora-{layout}"))
        assert refused.value.field == "loras[1].name"
        assert "/" not in str(refused.value)


def test_what_a_file_says_it_is_for_counts(tiny: Tiny, tmp_path: Path) -> None:
    components = tiny("tiny-2.3")
    for name, version in (("ours", "2.3.0"), ("theirs", "2.5"), ("nobodys", "3.1")):
        write_lora(tmp_path / f"{name}.safetensors", components.transformer, metadata={"model_version": version})
    library = LoraLibrary(components, tmp_path, PLENTY)
    assert len(library.worn(ask("ours"))) == 1
    with pytest.raises(InvalidRequest, match=r"theirs\.safetensors .* is for LTX-2\.5, and this is LTX-2\.3"):
        library.worn(ask("theirs"))
    with pytest.raises(InvalidRequest, match=r"is of LTX-3\.1"):
        library.worn(ask("nobodys"))


def test_a_damaged_one_is_refused_and_read_when_it_was_mended(tiny: Tiny, tmp_path: Path) -> None:
    library, path = LoraLibrary(tiny("tiny"), tmp_path, PLENTY), tmp_path / "style.safetensors"
    write_lora(path, tiny("tiny").transformer)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InvalidRequest, match=r"style\.safetensors is damaged") as refused:
        library.worn(ask("style"))
    assert refused.value.field == "loras[0].name"
    assert str(tmp_path) not in str(refused.value)
    path.write_bytes(whole)
    assert len(library.worn(ask("style"))) == 1


@pytest.mark.parametrize(
    ("number", "dtype"), [(math.nan, torch.float32), (math.inf, torch.bfloat16), (1e300, torch.float64)]
)
def test_one_that_makes_no_numbers_of_numbers_is_refused(
    tiny: Tiny, tmp_path: Path, number: float, dtype: torch.dtype
) -> None:
    path = tmp_path / "style.safetensors"
    write_lora(path, tiny("tiny").transformer)
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name].to(dtype)
    tensors[name][-1, -1] = number
    save_file(tensors, path)
    with pytest.raises(InvalidRequest, match=r"style\.safetensors is damaged: .* not finite") as refused:
        LoraLibrary(tiny("tiny"), tmp_path, PLENTY).worn(ask("style"))
    assert refused.value.field == "loras[0].name"


def test_a_folder_that_is_nowhere_offers_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "nowhere"):
        library = LoraLibrary(tiny("tiny"), folder, PLENTY)
        assert library.worn(()) == ()
        with pytest.raises(InvalidRequest, match="there are none here yet"):
            library.worn(ask("style"))


def test_those_used_last_are_kept_within_the_bound(tiny: Tiny, tmp_path: Path) -> None:
    components = tiny("tiny")
    for seed, name in enumerate("abc"):
        write_lora(tmp_path / f"{name}.safetensors", components.transformer, seed=seed)
    one = LoraLibrary(components, tmp_path).worn(ask("a"))[0][0].nbytes
    library = LoraLibrary(components, tmp_path, max_bytes=2 * one)

    def get(name: str) -> Lora:
        return library.worn(ask(name))[0][0]

    a, b = get("a"), get("b")
    assert get("a.safetensors") is a
    get("c")
    assert library.nbytes == 2 * one
    assert get("a") is a
    assert get("b") is not b
    small = LoraLibrary(components, tmp_path, max_bytes=one - 1)
    assert small.worn(ask("a"))[0][0] is not small.worn(ask("a"))[0][0]
    assert small.nbytes == 0


def test_one_that_changed_is_read_again_and_what_was_read_is_our_own(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    does = write_lora(path, tiny("tiny").transformer, seed=1)
    library = LoraLibrary(tiny("tiny"), tmp_path, PLENTY)
    (old, _), size = library.worn(ask("style"))[0], library.nbytes
    later = write_lora(tmp_path / "later.safetensors", tiny("tiny").transformer, seed=2)
    # into the same file, as a copy does: what is still mapped from it would change
    with path.open("r+b") as file:
        file.write((tmp_path / "later.safetensors").read_bytes())
    os.utime(path, ns=(1, 1))
    new, _ = library.worn(ask("style"))[0]
    assert torch.equal(old.pairs[LINEAR].a, does[LINEAR][0])
    assert torch.equal(new.pairs[LINEAR].a, later[LINEAR][0])
    assert library.nbytes == size


def test_it_is_kept_as_the_model_computes(tmp_path: Path) -> None:
    components = build_tiny("tiny", CPU, torch.bfloat16)
    write_lora(tmp_path / "style.safetensors", components.transformer)
    lora, _ = LoraLibrary(components, tmp_path, PLENTY).worn(ask("style"))[0]
    assert {tensor.dtype for tensor in lora.tensors} == {torch.bfloat16}


def test_prompts_read_by_changed_connectors_are_remembered_apart(tiny: Tiny, tmp_path: Path) -> None:
    components = replace(tiny("tiny-2.3"), prompt_cache=PromptCache(2**23))
    connectors = components.connectors
    for seed, name in enumerate(("one", "other")):
        write_lora(tmp_path / f"{name}.safetensors", components.transformer, seed=seed, connectors=connectors)
    write_lora(tmp_path / "look.safetensors", components.transformer)
    # the same under another name
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "copy.safetensors")
    library = LoraLibrary(components, tmp_path, PLENTY)
    one, other, copy, look = ((library.worn(ask(name))[0][0]) for name in ("one", "other", "copy", "look"))

    def read(*worn: tuple[Lora, float]) -> Contexts:
        with torch.inference_mode():
            return encode_prompts(components, "a lighthouse", loras=worn)[0]

    different: list[Worn] = [(), [(one, 1.0)], [(one, 0.5)], [(other, 1.0)], [(one, 1.0), (other, 1.0)]]
    with Calls(components.text_encoder.model.language_model) as calls:
        contexts = [read(*worn) for worn in different]
        assert calls.count == len(different)
        for kept, worn in zip(contexts, different, strict=True):
            assert torch.equal(read(*worn).video, kept.video)
        # what leaves the connectors alone has nothing to be told apart by, and neither has a name
        assert torch.equal(read((look, 1.0)).video, contexts[0].video)
        assert torch.equal(read((other, 0.0)).video, contexts[0].video)
        assert torch.equal(read((copy, 1.0)).video, contexts[1].video)
        assert calls.count == len(different)
    for index, kept in enumerate(contexts):
        assert not any(torch.equal(kept.audio, later.audio) for later in contexts[index + 1 :])
    assert hooks(components) == 0
    # and what is remembered is what is computed
    forgetful = replace(components, prompt_cache=PromptCache(0))
    with torch.inference_mode():
        assert torch.equal(encode_prompts(forgetful, "a lighthouse")[0].audio, contexts[0].audio)
        assert torch.equal(encode_prompts(forgetful, "a lighthouse", loras=different[1])[0].audio, contexts[1].audio)


def test_a_clip_wears_it_from_the_prompt_on(tiny: Tiny, tmp_path: Path) -> None:
    components = replace(tiny("tiny-2.3"), prompt_cache=PromptCache(2**23))
    path = tmp_path / "words.safetensors"
    inside = "video_connector.transformer_blocks.0.attn1.to_q"
    linear = linear_of(components.connectors, inside)
    pair = {"A": noise(4, linear.in_features), "B": noise(linear.out_features, 4, seed=1)}
    save_file({f"connectors.{inside}.lora_{role}.weight": tensor for role, tensor in pair.items()}, path)
    worn = LoraLibrary(components, tmp_path, PLENTY).worn(ask("words"))
    before = clip(components)
    assert not same(clip(components, worn), before)
    assert same(clip(components), before)
