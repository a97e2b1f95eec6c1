"""Checkpoints of every layout, precision and placement, from ``LTX2_MODEL`` to latents."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import edit, lay_out, save, save_gemma_3
from small_clips import INPUTS, first, latents, make, planned, track
from torch import Tensor

from ltx2.errors import NotReady
from ltx2.model.checkpoint import find_checkpoint, load_components
from ltx2.model.components import Components
from ltx2.model.fp8 import Fp8Linear
from ltx2.model.pipeline import generate
from ltx2.model.tiny import TINY_MODELS
from ltx2.request import Guidance
from ltx2.settings import Settings

Find = Callable[[str], Path]
Tiny = Callable[[str], Components]

OFFLOADS = ("none", "text-encoder", "model", "group")
PARTS_2_5 = ("transformer", "text-encoder", "audio-vae", "duration-head")
FP8_ERROR = 2**-4
"""Of one float8 number with its three bits of mantissa, rounded: relative, at worst."""


def load(**settings: Any) -> Components:
    return load_components(Settings(device="cpu", **settings))


def both(components: Components, **fields: Any) -> list[Tensor]:
    return [stream.tokens for stream in latents(components, make(**fields))]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Relative, in the root mean square."""
    return max(float((one - other).norm() / other.norm()) for one, other in zip(ours, theirs, strict=True))


# Precisions and placements


@pytest.mark.parametrize(
    ("model", "precision"),
    [("tiny-dev", "fp32"), ("tiny-dev", "fp8"), ("tiny-2.3", "bf16"), ("tiny-2.5", "fp32"), ("tiny-2.5", "fp8")],
)  # on a CPU fp8 is stored, not multiplied
def test_wherever_the_parts_are_the_latents_are_the_same(model: str, precision: str) -> None:
    fields = {"keyframes": first("a"), "audio": track(0.5), "pipeline": "two_stage", "width": 128, "height": 64}
    placed = {offload: load(model=model, precision=precision, offload=offload) for offload in OFFLOADS}
    made = {offload: both(components, **fields) for offload, components in placed.items()}
    for offload in OFFLOADS[1:]:
        for ours, theirs in zip(made[offload], made["none"], strict=True):
            assert torch.equal(ours, theirs), offload
        assert placed[offload].residency.where("text_encoder") == "host"  # type: ignore[union-attr]
        assert placed[offload].residency.visits["text_encoder"] > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("model", TINY_MODELS)
def test_every_precision_is_near_float32(model: str) -> None:
    # guidance would multiply every error
    names = ("cfg", "modality", "stg", "rescale")
    off = {f"{stream}_{name}": float(name in names[:2]) for stream in ("video", "audio") for name in names}
    guidance = Guidance(**off)
    exact = both(load(model=model, precision="fp32"), guidance=guidance)
    bf16 = both(load(model=model, precision="bf16"), guidance=guidance)
    assert 0 < distance(bf16, exact) < 2**-6  # 8 bits of mantissa, over two steps
    for precision in ("fp8", "fp8-storage"):
        components = load(model=model, precision=precision)
        assert 0 < distance(both(components, guidance=guidance), exact) < FP8_ERROR
        layers = [module for module in components.transformer.modules() if isinstance(module, Fp8Linear)]
        assert layers
        assert any(isinstance(module, Fp8Linear) for module in components.text_encoder.modules())
        assert next(components.vocoder.parameters()).dtype == torch.float32


def test_a_repeated_prompt_does_not_bring_the_text_encoder_back() -> None:
    components = load(model="tiny", offload="text-encoder")
    for _ in range(2):
        both(components)
    assert components.residency.visits["text_encoder"] == 1  # type: ignore[union-attr]
    without = load(model="tiny", offload="text-encoder", prompt_cache_mb=0)
    for _ in range(2):
        both(without)
    assert without.residency.visits["text_encoder"] == 2  # type: ignore[union-attr]


def test_the_plan_is_logged_with_its_peak(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load(model="tiny", offload="model")
    (line,) = [record.getMessage() for record in caplog.records if "predicted peak" in record.getMessage()]
    assert line.startswith("LTX-2.0 distilled, fp32, offload model:")
    assert "at 1280x704x121" in line


# Lightricks' own layout


def test_one_file_with_a_gemma_3_an_upscaler_and_a_lora(checkpoints: Find, tmp_path: Path) -> None:
    gemma = save_gemma_3(tmp_path / "gemma-3-tiny")
    for generation in ("2.0", "2.3"):
        names = {
            f"ltx-{generation}-tiny-dev.safetensors": f"ltx-{generation}-tiny.safetensors",
            f"ltx-{generation}-spatial-upscaler-x2.safetensors": f"ltx-{generation}-upscaler-tiny.safetensors",
            f"ltx-{generation}-distilled-lora.safetensors": f"ltx-{generation}-lora-original.safetensors",
        }
        folder = lay_out(tmp_path / generation, {name: checkpoints(file) for name, file in names.items()})
        components = load(model=str(folder / f"ltx-{generation}-tiny-dev.safetensors"), text_encoder=gemma)
        assert (components.recipe.generation, components.recipe.kind) == (generation, "dev")
        assert components.can_refine
        request = make(width=128, height=64, pipeline="two_stage")
        result = generate(components, request, planned(components, request), INPUTS)
        assert result.pictures.shape == (1, 3, 17, 64, 128)
        assert bool(result.pictures.isfinite().all())
        # the folder alone says as much
        assert find_checkpoint(Settings(model=str(folder), text_encoder=gemma)).kind == "dev"


@pytest.mark.parametrize("variant", ["plain", "scaled"])
def test_a_file_stored_in_float8_stays_so_unless_told_otherwise(
    checkpoints: Find, tmp_path: Path, variant: str
) -> None:
    """The float8 files hold no codecs: those of the whole file are beside them."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    quantised, whole = checkpoints(f"ltx-2.3-tiny-fp8-{variant}.safetensors"), checkpoints("ltx-2.3-tiny.safetensors")
    with safe_open(quantised, "pt") as file, safe_open(whole, "pt") as other:
        metadata = other.metadata() | {
            key: value for key, value in file.metadata().items() if key == "_quantization_metadata"
        }
    codecs = {
        key: weight for key, weight in load_file(whole).items() if key.startswith(("vae.", "audio_vae.", "vocoder."))
    }
    path = tmp_path / "ltx-2.3-tiny-distilled-fp8.safetensors"
    save_file(codecs | load_file(quantised), path, metadata)
    settings = {"model": str(path), "text_encoder": save_gemma_3(tmp_path / "gemma-3-tiny")}
    kept, exact, bf16 = load(**settings), load(precision="fp32", **settings), load(precision="bf16", **settings)
    assert any(isinstance(module, Fp8Linear) for module in kept.transformer.modules())
    # what was left in bf16 by whoever quantised it is not quantised further
    first_block = kept.transformer.transformer_blocks[0]
    assert not any(isinstance(module, Fp8Linear) for module in first_block.modules())
    assert not any(isinstance(module, Fp8Linear) for module in exact.transformer.modules())
    assert distance(both(bf16), both(exact)) < 2**-6
    # the transformer's weights are the same numbers; the text encoder is stored in float8 as well
    assert 0 < distance(both(kept), both(exact)) < FP8_ERROR


def test_the_split_files_of_2_5(checkpoints: Find, tmp_path: Path) -> None:
    def laid_out(*decoders: str) -> Path:
        files = {
            f"ltx-2.5-{part}.safetensors": checkpoints(f"ltx-2.5-tiny-{part}.safetensors")
            for part in (*PARTS_2_5, *decoders)
            if part != "transformer"
        }
        files["ltx-2.5-distilled-transformer.safetensors"] = checkpoints("ltx-2.5-tiny-transformer.safetensors")
        return lay_out(tmp_path / "-".join(("ltx-2.5-distilled", *decoders)), files)

    pictures = {}
    request = make(width=128, height=96)
    for decoders, chosen, has_diffusion in [
        (("video-vae",), "auto", True),
        (("video-vae-conv",), "auto", False),
        (("video-vae", "video-vae-conv"), "auto", True),
        (("video-vae", "video-vae-conv"), "conv", False),
    ]:
        folder = tmp_path / "-".join(("ltx-2.5-distilled", *decoders))
        folder = folder if folder.is_dir() else laid_out(*decoders)
        components = load(model=str(folder), video_decoder=chosen)
        assert components.recipe.generation == "2.5"
        assert (components.diffusion_decoder is not None) == has_diffusion
        assert components.duration_head is not None
        result = generate(components, request, planned(components, request), INPUTS)
        assert bool(result.pictures.isfinite().all())
        pictures[decoders, chosen] = result.pictures
    alone, conv, both_decoders, conv_of_both = pictures.values()
    assert torch.equal(alone, both_decoders)
    assert torch.equal(conv, conv_of_both)
    assert not torch.equal(alone, conv)
    # told by the headers
    with pytest.raises(NotReady, match="no convolutional decoder"):
        find_checkpoint(Settings(model=str(tmp_path / "ltx-2.5-distilled-video-vae"), video_decoder="conv"))
    with pytest.raises(NotReady, match="no diffusion decoder"):
        load(model=str(tmp_path / "ltx-2.5-distilled-video-vae-conv"), video_decoder="diffusion")


def test_files_without_a_codec_name_it(checkpoints: Find, tmp_path: Path) -> None:
    files = {
        f"ltx-2.5-distilled-{part}.safetensors": checkpoints(f"ltx-2.5-tiny-{part}.safetensors")
        for part in ("transformer", "text-encoder")
    }
    with pytest.raises(NotReady, match="the model has no vae"):
        load(model=str(lay_out(tmp_path / "ltx-2.5", files)))
    files.pop("ltx-2.5-distilled-text-encoder.safetensors")
    with pytest.raises(NotReady) as caught:
        load(model=str(lay_out(tmp_path / "transformer", files)))
    assert "LTX2_TEXT_ENCODER" in str(caught.value.hint)


# What goes with a checkpoint


def test_an_upsampler_of_the_other_layout(tiny: Tiny, checkpoints: Find, tmp_path: Path) -> None:
    folder = save(tiny("tiny"), tmp_path / "ltx-2-distilled")
    upscaler = checkpoints("ltx-2.0-upscaler-tiny.safetensors")
    joined = load(model=str(folder), upsampler=upscaler)
    assert joined.can_refine
    own, other = (model.upsampler.state_dict() for model in (load(model=str(folder)), joined))
    assert own.keys() == other.keys()
    assert not all(torch.equal(own[key], other[key]) for key in own)
    with pytest.raises(NotReady, match=r"belongs to LTX-2\.3, and the model is an LTX-2\.0"):
        load(model=str(folder), upsampler=checkpoints("ltx-2.3-upscaler-tiny.safetensors"))


def test_an_upsampler_nobody_asked_for_is_left_out_if_it_does_not_fit(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tiny("tiny"), tmp_path / "ltx-2-distilled")
    edit(folder / "latent_upsampler" / "config.json", mid_channels=96)
    assert "upsampler" not in find_checkpoint(Settings(model=str(folder))).source.parts()
    assert "there will be no second stage: the upsampler 'latent_upsampler'" in caplog.text
    with pytest.raises(NotReady, match="of other shapes"):
        find_checkpoint(Settings(model=str(folder), upsampler=folder / "latent_upsampler"))


def test_a_name_with_another_generation_behind_it_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    save(tiny("tiny-2.3"), tmp_path / "LTX-2")
    with pytest.raises(NotReady, match=r"LTX-2 is an LTX-2\.3, and Lightricks/LTX-2 an LTX-2\.0"):
        find_checkpoint(Settings(model="ltx-2", models_dir=tmp_path))


def test_a_lora_is_looked_at_before_a_weight_is_read(tiny: Tiny, tmp_path: Path) -> None:
    folder = save(tiny("tiny-dev"), tmp_path / "ltx-2-dev")
    lora = folder / "ltx-2-distilled-lora.safetensors"
    lora.write_bytes(b"cut")
    assert find_checkpoint(Settings(model=str(folder))).make_lora is None
    with pytest.raises(NotReady, match="is not a safetensors file"):
        find_checkpoint(Settings(model=str(folder), distilled_lora=lora))


def test_a_lora_nobody_asked_for_is_left_out_if_it_does_not_fit(
    tiny: Tiny, checkpoints: Find, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tiny("tiny-dev"), tmp_path / "ltx-2-dev")
    (folder / "distilled-lora.safetensors").symlink_to(checkpoints("ltx-2.3-lora-original.safetensors"))
    assert not load(model=str(folder)).can_refine
    assert "there will be no second stage: distilled-lora.safetensors belongs to another LTX-2" in caplog.text


def test_of_two_text_encoders_a_setting_takes_one(checkpoints: Find, tmp_path: Path) -> None:
    files = {
        f"ltx-2.5-distilled-{part}.safetensors": checkpoints(f"ltx-2.5-tiny-{part}.safetensors")
        for part in ("transformer", "text-encoder", "audio-vae", "video-vae")
    }
    copy = tmp_path / "another.safetensors"
    shutil.copy(checkpoints("ltx-2.5-tiny-text-encoder.safetensors"), copy)
    model = lay_out(tmp_path / "ltx-2.5", files | {"ltx-2.5-other-text-encoder.safetensors": copy})
    with pytest.raises(NotReady, match="both hold the") as caught:
        find_checkpoint(Settings(model=str(model)))
    assert caught.value.hint == "set LTX2_TEXT_ENCODER to one of them"
    chosen = model / "ltx-2.5-other-text-encoder.safetensors"
    assert "text_encoder" in find_checkpoint(Settings(model=str(model), text_encoder=chosen)).source.parts()


def test_an_upsampler_in_a_folder_beside_a_file(tiny: Tiny, checkpoints: Find, tmp_path: Path) -> None:
    folder = save(tiny("tiny"), tmp_path / "diffusers") / "latent_upsampler"
    files = {"ltx-2-distilled.safetensors": checkpoints("ltx-2.0-tiny.safetensors")}
    model = lay_out(tmp_path / "original", files) / "ltx-2-distilled.safetensors"
    components = load(model=str(model), text_encoder=save_gemma_3(tmp_path / "gemma"), upsampler=folder)
    theirs = tiny("tiny").upsampler.state_dict()
    assert all(torch.equal(weight, theirs[key]) for key, weight in components.upsampler.state_dict().items())


def test_another_text_encoder_for_a_folder(tiny: Tiny, tmp_path: Path) -> None:
    folder = save(tiny("tiny"), tmp_path / "ltx-2-distilled")
    other = folder / "text_encoder"
    loaded = load(model=str(folder), text_encoder=other)
    weights = tiny("tiny").text_encoder.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in loaded.text_encoder.state_dict().items())
    with pytest.raises(NotReady, match="another size"):
        load(model=str(folder), text_encoder=save_gemma_3(tmp_path / "gemma-3-larger"))
    with pytest.raises(NotReady, match=r"Gemma4Unified, but LTX-2\.0"):
        load(model=str(folder), text_encoder=save(tiny("tiny-2.5"), tmp_path / "2.5") / "text_encoder")


def test_a_dev_checkpoint_refines_only_with_a_lora_that_fits(tiny: Tiny, checkpoints: Find, tmp_path: Path) -> None:
    folder = save(tiny("tiny-dev"), tmp_path / "ltx-2-dev")
    assert not load(model=str(folder)).can_refine
    with pytest.raises(NotReady, match="belongs to another LTX-2"):
        load(model=str(folder), distilled_lora=checkpoints("ltx-2.3-lora-original.safetensors"))
    # the recipe says so too
    assert load(model=str(folder), recipe="distilled").can_refine


def test_what_does_not_fit_is_refused_with_the_plan() -> None:
    with pytest.raises(NotReady, match="does not fit") as caught:
        load(model="tiny", plan_for="8192x8192x9999")
    assert "LTX2_PLAN_FOR" in str(caught.value.hint)
