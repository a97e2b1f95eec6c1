"""LoRAs: read in both layouts, fitting or refused, worn and taken off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_loras import LINEAR, ORIGINAL_CONNECTORS, ORIGINAL_NAMES, RANK, error, linear_of, noise, tensors_for
from torch import Tensor, nn

from ltx2.errors import NotReady
from ltx2.model.components import Components
from ltx2.model.fp8 import quantise_blocks
from ltx2.model.inputs import Inputs
from ltx2.model.known import Shot
from ltx2.model.lora import Lora, applied, load_lora
from ltx2.model.pipeline import encode_texts, sample
from ltx2.model.tiny import build_tiny
from ltx2.plan import make_plan
from ltx2.request import GenerationRequest

Tiny = Callable[[str], Components]
Checkpoints = Callable[[str], Path]

CPU = torch.device("cpu")


def random_lora(transformer: Any, seed: int = 0) -> Lora:
    """One beside every linear of the transformer, strong enough to show."""
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    pairs = {
        name: (
            noise(RANK, linear.in_features, seed=seed) / linear.in_features**0.5,
            noise(linear.out_features, RANK, seed=seed + 1) / RANK**0.5 / 10,
            1.0,
        )
        for name, linear in linears.items()
    }
    return Lora.from_pairs("random.safetensors", pairs)


@pytest.fixture
def transformer(tiny: Tiny) -> Any:
    return tiny("tiny").transformer


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "style.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
        return path

    return write


def latents(components: Components) -> Tensor:
    """Both streams after two steps, by the functions ``generate`` calls."""
    request = GenerationRequest(prompt="x", width=96, height=64, num_frames=17, seed=3, num_inference_steps=2)
    plan = make_plan(request, components.recipe)
    prompts = encode_texts(components, request, plan)
    inputs = Inputs({}, max_image_megapixels=1, max_audio_seconds=10)
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        streams = sample(components, request, plan, inputs, Shot(plan.pieces[0]), prompts, generator)
    return torch.cat([stream.tokens.flatten() for stream in streams])


@pytest.mark.parametrize(("lora", "model"), [("2.0", "tiny-2.3"), ("2.3", "tiny")])
@pytest.mark.parametrize("layout", ["original", "peft"])
def test_a_lora_of_another_generation_is_refused(
    lora: str, model: str, layout: str, checkpoints: Checkpoints, tiny: Tiny
) -> None:
    name = f"ltx-{lora}-lora-{layout}.safetensors"
    with pytest.raises(NotReady, match="belongs to another LTX-2") as refused:
        load_lora(checkpoints(name), tiny(model).transformer)
    assert name in refused.value.message
    assert "/" not in refused.value.message


def test_both_layouts_are_read(transformer: Any, save: Callable[..., Path]) -> None:
    original = load_lora(save(tensors_for(transformer, ORIGINAL_NAMES, "diffusion_model.")), transformer)
    same_names = {path: path for path in ORIGINAL_NAMES.values()}
    diffusers = load_lora(save(tensors_for(transformer, same_names, "transformer.")), transformer)
    assert original.name == "style.safetensors"
    assert len(original.pairs) == len(ORIGINAL_NAMES)
    assert set(original.pairs) == set(diffusers.pairs) == set(ORIGINAL_NAMES.values())
    for name, pair in original.pairs.items():
        assert torch.equal(pair.a, diffusers.pairs[name].a)
        assert torch.equal(pair.b, diffusers.pairs[name].b)
        assert pair.scale == 1
    assert original.parameters == sum(pair.a.numel() + pair.b.numel() for pair in original.pairs.values())
    assert original.nbytes == 4 * original.parameters
    assert original.to(CPU, torch.bfloat16).nbytes == 2 * original.parameters


def test_an_alpha_scales_a_pair(transformer: Any, save: Callable[..., Path]) -> None:
    tensors = tensors_for(transformer, {LINEAR: LINEAR}, "diffusion_model.")
    renamed = {
        name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor for name, tensor in tensors.items()
    }
    lora = load_lora(save(renamed | {f"diffusion_model.{LINEAR}.alpha": torch.tensor(2.0)}), transformer)
    assert lora.pairs[LINEAR].scale == 2 / RANK

    settings = json.dumps({"transformer.lora_alpha": 8, "transformer.r": RANK})
    tensors = tensors_for(transformer, {LINEAR: LINEAR}, "transformer.")
    assert load_lora(save(tensors, {"lora_adapter_metadata": settings}), transformer).pairs[LINEAR].scale == 8 / RANK
    for alpha in ("NaN", "Infinity", "1" + 400 * "0"):
        settings = f'{{"transformer.lora_alpha": {alpha}}}'
        with pytest.raises(NotReady, match="no numbers to compute with"):
            load_lora(save(tensors, {"lora_adapter_metadata": settings}), transformer)


def test_a_lora_of_the_connectors_needs_them(tiny: Tiny, save: Callable[..., Path]) -> None:
    components = tiny("tiny-2.3")
    inside = "video_connector.transformer_blocks.0.attn1.to_q"
    of_transformer = tensors_for(components.transformer, ORIGINAL_NAMES, "diffusion_model.")
    path = save(of_transformer | tensors_for(components.connectors, ORIGINAL_CONNECTORS, ""))
    with pytest.raises(NotReady, match=r"style\.safetensors changes the connectors"):
        load_lora(path, components.transformer)
    lora = load_lora(path, components.transformer, components.connectors)
    assert lora.connectors is not None
    assert set(lora.pairs) == set(ORIGINAL_NAMES.values())
    assert set(lora.connectors.pairs) == {inside, "audio_text_proj_in"}
    assert lora.to(CPU, torch.bfloat16).nbytes == lora.nbytes / 2

    x = noise(2, components.connectors.audio_text_proj_in.in_features)
    plain = components.connectors.audio_text_proj_in(x)
    with applied(components.connectors, [(lora.connectors, 1.0)]):
        assert not torch.equal(components.connectors.audio_text_proj_in(x), plain)

    diffusers = tensors_for(components.connectors, {inside: inside}, "connectors.")
    alone = load_lora(save(diffusers), components.transformer, components.connectors)
    assert alone.connectors is not None
    assert not alone.pairs
    assert list(alone.connectors.pairs) == [inside]


A, B = f"transformer.{LINEAR}.lora_A.weight", f"transformer.{LINEAR}.lora_B.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_unet_x.lora_down.weight": noise(RANK, 8)},
            "is not a LoRA this server understands; it has: lora_unet_x",
        ),
        ({f"transformer.{LINEAR}.dora_scale": noise(1)}, "is not a LoRA this server understands"),
        ({f"diffusion_model.{LINEAR}.lora_A.weight": noise(RANK, 64)}, f"changes {LINEAR} twice"),
        ({B: None}, f"lacks half of: {LINEAR}"),
        ({A: None, B: None}, "is empty"),
        (
            {A: noise(RANK, 128)},
            rf"another LTX-2 of other sizes: {LINEAR} takes 64 and gives 64 numbers, not \[4, 128\]",
        ),
        ({B: noise(64, RANK + 1)}, "other sizes"),
        ({A: noise(RANK, 64, 1, 1)}, "other sizes"),
        ({A: torch.tensor(1.0)}, "other sizes"),
        ({A: noise(0, 64), B: noise(64, 0)}, "other sizes"),
        ({A: torch.ones(RANK, 64, dtype=torch.int32)}, "no numbers to compute with"),
        ({f"transformer.{LINEAR}.alpha": torch.tensor(torch.nan)}, "no numbers to compute with"),
        ({f"transformer.{LINEAR}.alpha": noise(2)}, "no numbers to compute with"),
        ({"transformer.nowhere.lora_A.weight": noise(RANK, 64)}, "the transformer of this one has no: nowhere"),
        ({f"transformer.{LINEAR[:-5]}.norm_q.lora_A.weight": noise(RANK, 64)}, "of this one has no"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Tensor | None], message: str, transformer: Any, save: Callable[..., Path]
) -> None:
    tensors: dict[str, Tensor | None] = {**tensors_for(transformer, {LINEAR: LINEAR}, "transformer."), **changes}
    path = save({name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(NotReady, match=message) as refused:
        load_lora(path, transformer)
    assert refused.value.message.startswith("style.safetensors ")
    assert str(path.parent) not in refused.value.message


def test_a_way_of_training_nobody_here_knows_is_refused(transformer: Any, save: Callable[..., Path]) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}
    with pytest.raises(NotReady, match="does not understand: use_dora"):
        load_lora(save(tensors_for(transformer, {LINEAR: LINEAR}, "transformer."), metadata), transformer)


def test_a_damaged_file_is_refused(transformer: Any, save: Callable[..., Path]) -> None:
    path = save(tensors_for(transformer, {LINEAR: LINEAR}, "transformer."))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NotReady, match=r"style\.safetensors is damaged"):
        load_lora(path, transformer)
    with pytest.raises(NotReady, match=r"no file nowhere\.safetensors"):
        load_lora(path.with_name("nowhere.safetensors"), transformer)


@pytest.mark.parametrize("name", ["tiny", "tiny-2.3", "tiny-2.5"])
def test_latents_are_the_same_before_and_after(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        components = build_tiny(name, CPU, dtype)
        lora = random_lora(components.transformer)
        before = latents(components)
        with applied(components.transformer, [(lora, 1.0)]):
            worn = latents(components)
        assert worn.isfinite().all()
        assert error(worn, before) > 1e-3
        assert torch.equal(latents(components), before)


def test_a_branch_is_a_change_of_the_weights(tiny: Tiny) -> None:
    components, merged = tiny("tiny-2.3"), build_tiny("tiny-2.3", CPU, torch.float32)
    one, other = random_lora(merged.transformer), random_lora(merged.transformer, seed=10)
    for lora, scale in ((one, 0.8), (other, -0.5)):
        for name, (a, b, _) in lora.pairs.items():
            linear_of(merged.transformer, name).weight.add_(b @ a, alpha=scale)
    with applied(components.transformer, [(one, 0.8), (other, -0.5)]):
        assert error(latents(components), latents(merged)) < 1e-4


def test_the_files_own_scale_counts(transformer: Any) -> None:
    x, pair = noise(2, 3, 64), random_lora(transformer).pairs[LINEAR]
    linear = linear_of(transformer, LINEAR)
    expected = linear(x) + 0.8 * 0.25 * x @ pair.a.t() @ pair.b.t()
    with applied(transformer, [(Lora.from_pairs("x", {LINEAR: (pair.a, pair.b, 0.25)}), 0.8)]):
        assert error(linear(x), expected) < 1e-6


def test_a_scale_of_zero_is_no_lora(transformer: Any) -> None:
    with applied(transformer, [(random_lora(transformer), 0.0)]):
        assert not any(module._forward_hooks for module in transformer.modules())


def test_it_is_taken_off_whatever_happens(transformer: Any) -> None:
    lora = random_lora(transformer)
    with pytest.raises(RuntimeError), applied(transformer, [(lora, 1.0)]):
        linear_of(transformer, "proj_in")(noise(1))
    for_another = Lora.from_pairs("x", {"nowhere": lora.pairs[LINEAR]})
    with pytest.raises(AttributeError), applied(transformer, [(lora, 1.0), (for_another, 1.0)]):
        pass
    assert not any(module._forward_hooks for module in transformer.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_worn_over_float8(dtype: torch.dtype) -> None:
    exact = build_tiny("tiny-2.3", CPU, torch.float32)
    lora = random_lora(exact.transformer)
    plain = build_tiny("tiny-2.3", CPU, dtype)
    quantise_blocks(plain.transformer)
    before = latents(plain)
    with applied(exact.transformer, [(lora, 1.0)]), applied(plain.transformer, [(lora, 1.0)]):
        worn = latents(plain)
        # as close as float8 alone is, in tests of the linears
        assert (worn - latents(exact)).norm() / latents(exact).norm() < 2**-4
    assert torch.equal(latents(plain), before)
    assert not torch.equal(worn, before)


def test_it_fits_float8_linears_too(save: Callable[..., Path]) -> None:
    components = build_tiny("tiny", CPU, torch.bfloat16)
    path = save(tensors_for(components.transformer, {LINEAR: LINEAR}, "transformer."))
    quantise_blocks(components.transformer)
    assert list(load_lora(path, components.transformer).pairs) == [LINEAR]
