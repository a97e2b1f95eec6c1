"""Float8 linears: what they store, how far they are off, and what they survive."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2.model.components import Components
from ltx2.model.fp8 import (
    FIRST_CAPABLE,
    FP8,
    LARGEST,
    Fp8Linear,
    has_fp8_matmul,
    in_range,
    is_block_linear,
    quantise,
    quantise_blocks,
    scale_for,
    set_compute,
    store_linears,
)
from ltx2.model.inputs import Inputs
from ltx2.model.known import Shot
from ltx2.model.pipeline import encode_texts, sample
from ltx2.model.tiny import build_tiny
from ltx2.plan import make_plan
from ltx2.request import GenerationRequest

HALF_STEP = 2**-4
"""How far an e4m3 value can be from what it stands for, relative: half of a step of three bits of mantissa."""
CPU = torch.device("cpu")
BLOCK = [
    *(f"{attention}.to_{end}" for attention in ("attn1", "attn2") for end in ("q", "k", "v", "out.0")),
    *(f"audio_{attention}.to_{end}" for attention in ("attn1", "attn2") for end in ("q", "k", "v", "out.0")),
    *(f"{attention}.to_{end}" for attention in ("audio_to_video_attn", "video_to_audio_attn") for end in "qkv"),
    *(f"{attention}.to_out.0" for attention in ("audio_to_video_attn", "video_to_audio_attn")),
    *(f"{layer}.net.{part}" for layer in ("ff", "audio_ff") for part in ("0.proj", "2")),
]
"""The linears of a block, by name."""
needs_matmul = pytest.mark.skipif(not has_fp8_matmul(CPU), reason="this CPU multiplies no float8 matrices")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_linear(
    inputs: int = 64, outputs: int = 48, dtype: torch.dtype = torch.float32, *, bias: bool = True
) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)
    linear.weight.copy_(noise(outputs, inputs, seed=1) / inputs**0.5)
    if bias:
        linear.bias.copy_(noise(outputs, seed=2) / 10)
    return linear


def computing(linear: nn.Linear, input_scale: float | None = None) -> Fp8Linear:
    layer = Fp8Linear.quantised(linear)
    layer.compute = True
    if input_scale is not None:
        layer.input_scale = torch.tensor(input_scale)
    return layer


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative, over all numbers together."""
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_reaches_the_cast_is_within_range_however_large_the_input(dtype: torch.dtype) -> None:
    x = noise(32, 64, dtype=dtype)
    scale = scale_for(x)
    assert in_range(x, scale).abs().max() <= LARGEST
    assert (10 * x / scale).abs().max() > LARGEST
    assert in_range(10 * x, scale).abs().max() == LARGEST
    assert quantise(10 * x, scale).float().abs().max() == LARGEST


def test_a_scale_is_never_zero() -> None:
    assert scale_for(torch.zeros(4)) > 0
    assert not quantise(torch.zeros(4), scale_for(torch.zeros(4))).float().any()


def test_a_quantised_weight_is_within_half_a_step() -> None:
    linear = make_linear(256, 128)
    layer = Fp8Linear.quantised(linear)
    dequantised = layer.weight.float() * layer.weight_scale
    smallest_step = float(layer.weight_scale) * 2**-9
    assert ((dequantised - linear.weight).abs() <= HALF_STEP * linear.weight.abs() + smallest_step / 2).all()
    assert layer.weight.float().abs().max() == LARGEST


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 0.0071062])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_from_weights_is_the_dequantised_linear(
    dtype: torch.dtype, tolerance: float, scale: float | None, bias: bool
) -> None:
    weight, x, given = noise(48, 64, seed=3).to(FP8), noise(2, 5, 64, dtype=dtype), noise(48, dtype=torch.bfloat16)
    layer = Fp8Linear.from_weights(
        weight, None if scale is None else torch.tensor([scale]), given if bias else None, dtype=dtype
    )
    expected = functional.linear(x.double(), weight.double() * (scale or 1), given.double() if bias else None)
    out = layer(x)
    assert out.dtype == dtype
    assert error(out, expected) < tolerance
    assert (layer.in_features, layer.out_features, layer.weight.dtype) == (64, 48, FP8)


def test_from_weights_refuses_what_is_no_float8_matrix() -> None:
    with pytest.raises(ValueError, match="not a float8 matrix"):
        Fp8Linear.from_weights(noise(4, 4), None, None, dtype=torch.float32)
    with pytest.raises(ValueError, match="one number"):
        Fp8Linear.from_weights(noise(4, 4).to(FP8), torch.ones(4), None, dtype=torch.float32)


@needs_matmul
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float8_product_is_about_as_exact_as_float8_numbers(
    dtype: torch.dtype, bias: bool, record_property: Callable[[str, object], None]
) -> None:
    linear = make_linear(1024, 256, dtype, bias=bias)
    x = noise(3, 70, 1024, dtype=dtype)
    expected = linear(x)
    stored, computed = Fp8Linear.quantised(linear)(x), computing(linear)(x)
    record_property("relative error, storage and compute", (error(stored, expected), error(computed, expected)))
    assert stored.dtype == computed.dtype == dtype
    # errors of a sum's terms are independent: the sum is no worse than its terms
    assert error(stored, expected) < HALF_STEP
    assert error(computed, expected) < 2**0.5 * HALF_STEP
    assert not torch.equal(stored, computed)


@needs_matmul
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e4, 1.0, 1e-6, 1e-30])
def test_inputs_of_any_size_are_multiplied(magnitude: float, dtype: torch.dtype) -> None:
    linear = make_linear(dtype=dtype, bias=False)
    x = noise(20, 64, dtype=dtype) * magnitude
    assert error(computing(linear)(x), linear(x)) < 2**0.5 * HALF_STEP


@needs_matmul
def test_zeros_give_the_bias() -> None:
    linear = make_linear()
    assert torch.equal(computing(linear)(torch.zeros(3, 64)), linear.bias.expand(3, -1))


@needs_matmul
def test_a_static_scale_is_used_and_what_it_does_not_cover_is_clamped() -> None:
    linear, x = make_linear(), noise(20, 64)
    calibrated = computing(linear, float(scale_for(x)))
    assert torch.equal(calibrated(x), computing(linear)(x))
    clamped = calibrated(10 * x)
    assert error(clamped, calibrated(x.abs().max() * x.div(x.abs().max() / 10).clamp(-1, 1))) < HALF_STEP
    assert clamped.norm() < linear(10 * x).norm()


@needs_matmul
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 4, 64), (0, 64), (2, 0, 64)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    for layer in (Fp8Linear.quantised(make_linear()), computing(make_linear())):
        assert layer(noise(*shape)).shape == (*shape[:-1], 48)


@needs_matmul
def test_an_input_may_lie_anyhow_in_memory() -> None:
    layer, x = computing(make_linear()), noise(64, 20)
    assert torch.equal(layer(x.t()), layer(x.t().contiguous()))


@pytest.mark.parametrize(("inputs", "outputs"), [(33, 48), (64, 47), (7, 5)])
def test_a_layer_of_odd_size_is_dequantised(inputs: int, outputs: int) -> None:
    linear, x = make_linear(inputs, outputs), noise(9, inputs)
    assert torch.equal(computing(linear)(x), Fp8Linear.quantised(linear)(x))
    assert error(computing(linear)(x), linear(x)) < HALF_STEP


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda layer: layer.to(torch.bfloat16), torch.bfloat16),
        (lambda layer: layer.bfloat16(), torch.bfloat16),
        (lambda layer: layer.half(), torch.float16),
        (lambda layer: layer.bfloat16().float(), torch.float32),
        (lambda layer: layer.to("cpu"), torch.float32),
        (lambda layer: nn.Sequential(layer).to("cpu", torch.bfloat16)[0], torch.bfloat16),
        (deepcopy, torch.float32),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cast_changes_what_it_computes_in_but_not_what_it_stores(
    convert: Callable[[Fp8Linear], Fp8Linear], dtype: torch.dtype, bias: bool
) -> None:
    layer = computing(make_linear(bias=bias), input_scale=0.123456789)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items() if name != "bias"}
    layer = convert(layer)
    for name, tensor in before.items():
        after = layer.state_dict()[name]
        assert after.dtype == tensor.dtype
        assert torch.equal(after.float(), tensor.float())
    assert layer.dtype == dtype
    assert layer(noise(4, 64)).dtype == dtype
    assert layer.bias is None or layer.bias.dtype == dtype


def test_a_move_to_another_device_takes_all_along() -> None:
    layer = computing(make_linear(), input_scale=0.1).to("meta", torch.bfloat16)
    assert {name: (tensor.device.type, tensor.dtype) for name, tensor in layer.state_dict().items()} == {
        "weight": ("meta", FP8),
        "weight_scale": ("meta", torch.float32),
        "input_scale": ("meta", torch.float32),
        "bias": ("meta", torch.bfloat16),
    }


def test_its_state_can_be_loaded_into_another() -> None:
    linear, x = make_linear(), noise(4, 64)
    layer = Fp8Linear.quantised(linear)
    linear.weight.mul_(3)
    other = Fp8Linear.quantised(linear)
    assert set(layer.state_dict()) == {"weight", "weight_scale", "bias"}
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    "name",
    [
        "proj_in",
        "audio_proj_out",
        "caption_projection.linear_1",
        "time_embed.linear",
        "av_cross_attn_video_a2v_gate.linear",
        "prompt_adaln.emb.timestep_embedder.linear_1",
        "transformer_blocks.1.attn1.to_gate_logits",
        "transformer_blocks.1.attn1.norm_q",
        "transformer_blocks.1.attn1",
        "video_connector.transformer_blocks.0.attn1.to_q",
    ],
)
def test_nothing_else_is_a_linear_of_the_blocks(name: str) -> None:
    assert not is_block_linear(name)


@pytest.mark.parametrize("name", ["tiny", "tiny-2.3", "tiny-2.5"])
def test_quantising_touches_the_linears_of_the_blocks_only(name: str) -> None:
    transformer = build_tiny(name, CPU, torch.bfloat16).transformer
    depth = len(transformer.transformer_blocks)
    assert quantise_blocks(transformer) == depth * len(BLOCK)
    quantised = {path for path, module in transformer.named_modules() if isinstance(module, Fp8Linear)}
    assert quantised == {f"transformer_blocks.{index}.{linear}" for index in range(depth) for linear in BLOCK}
    assert quantise_blocks(transformer) == 0
    assert transformer.dtype == torch.bfloat16
    assert not any(module.training for module in transformer.modules())


class Deep(nn.Module):
    """A transformer as far as names go."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        block = {"ff": nn.ModuleDict({"net": nn.ModuleList([nn.Identity(), nn.Identity(), make_linear(16, 16)])})}
        self.transformer_blocks = nn.ModuleList(nn.ModuleDict(deepcopy(block)) for _ in range(depth))


@pytest.mark.parametrize(("depth", "keep_edges", "expected"), [(8, True, 8), (10, True, 8), (10, False, 10)])
def test_a_deep_model_may_keep_its_edges(depth: int, keep_edges: bool, expected: int) -> None:
    model = Deep(depth)
    assert quantise_blocks(model, keep_edges=keep_edges) == expected
    edges = [model.transformer_blocks[index].ff.net[2] for index in (0, -1)]
    assert [isinstance(edge, Fp8Linear) for edge in edges] == [expected == depth] * 2


def test_gates_never_multiply_in_float8() -> None:
    attention = nn.ModuleDict({"to_q": make_linear(16, 16), "to_gate_logits": make_linear(16, 16)})
    model = nn.ModuleDict({name: Fp8Linear.quantised(linear) for name, linear in attention.items()})
    set_compute(model, enabled=True)
    assert (model.to_q.compute, model.to_gate_logits.compute) == (True, False)
    set_compute(model, enabled=False)
    assert not model.to_q.compute


def latents(components: Components, seed: int = 3) -> Tensor:
    """Both streams after two steps, by the functions ``generate`` calls."""
    request = GenerationRequest(prompt="x", width=96, height=64, num_frames=17, seed=seed, num_inference_steps=2)
    plan = make_plan(request, components.recipe)
    with torch.inference_mode():
        streams = sample(
            components,
            request,
            plan,
            Inputs({}, max_image_megapixels=1, max_audio_seconds=10),
            Shot(plan.pieces[0]),
            encode_texts(components, request, plan),
            torch.Generator().manual_seed(seed),
        )
    return torch.cat([stream.tokens.flatten() for stream in streams])


@needs_matmul
@pytest.mark.parametrize(
    ("name", "dtype"), [("tiny", torch.float32), ("tiny-2.3", torch.bfloat16), ("tiny-2.5", torch.bfloat16)]
)
def test_latents_stay_close(name: str, dtype: torch.dtype, record_property: Callable[[str, object], None]) -> None:
    exact = latents(build_tiny(name, CPU, torch.float32))
    plain = build_tiny(name, CPU, dtype)
    quantise_blocks(plain.transformer)
    stored = error(latents(plain), exact)
    set_compute(plain.transformer, enabled=True)
    computed = error(latents(plain), exact)
    record_property("relative error, storage and compute", (stored, computed))
    assert stored < HALF_STEP
    assert computed < 2 * HALF_STEP
    assert stored != computed


@pytest.mark.parametrize("name", ["tiny", "tiny-2.5"])
def test_a_text_encoder_is_stored_in_float8(name: str) -> None:
    exact = build_tiny(name, CPU, torch.float32)
    plain = build_tiny(name, CPU, torch.bfloat16)
    assert store_linears(plain.text_encoder) == 2 * 7
    stored = {path for path, module in plain.text_encoder.named_modules() if isinstance(module, Fp8Linear)}
    assert all(path.startswith("model.language_model.layers.") for path in stored)
    assert plain.text_encoder.dtype == torch.bfloat16
    request = GenerationRequest(prompt="A lighthouse in the fog", num_inference_steps=2)
    with torch.inference_mode():
        (ours, _), (theirs, _) = (
            encode_texts(components, request, make_plan(request, components.recipe)) for components in (plain, exact)
        )
    assert ours.video.dtype == torch.bfloat16
    assert error(ours.video, theirs.video) < HALF_STEP


def test_whether_a_device_multiplies_float8_is_known() -> None:
    layer = Fp8Linear.quantised(make_linear(16, 16)).bfloat16()
    layer.compute = True
    if has_fp8_matmul(CPU):
        layer(torch.ones(1, 16, dtype=torch.bfloat16))
    else:
        with pytest.raises(RuntimeError):
            layer(torch.ones(1, 16, dtype=torch.bfloat16))
    assert not has_fp8_matmul(torch.device("meta"))
    # Ampere (8.0, 8.6) does not, Ada (8.9), Hopper (9.0) and Blackwell (10.0) do
    assert [capability >= FIRST_CAPABLE for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0))] == [
        False,
        False,
        True,
        True,
        True,
    ]
