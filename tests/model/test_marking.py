"""What a clip of a loaded model says of itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_loras import write_lora

from ltx2.model.checkpoint import load_components
from ltx2.model.marking import provenance_of
from ltx2.model.runner import Runner
from ltx2.provenance import LIBRARIES, digest, versions
from ltx2.request import GenerationRequest, LoraChoice, Output
from ltx2.settings import Settings

# SHA-256 of "abc", from FIPS 180-2
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("model", "generation", "kind", "decoder"),
    [
        ("tiny", "2.0", "distilled", "conv"),
        ("tiny-dev", "2.0", "dev", "conv"),
        ("tiny-2.5", "2.5", "distilled", "diffusion"),
    ],
)
def test_it_names_the_model(tiny: Callable[[str], Any], model: str, generation: str, kind: str, decoder: str) -> None:
    told = provenance_of(tiny(model), GenerationRequest(prompt="x", seed=3), Settings())
    assert (told.model, told.generation, told.kind, told.seed) == (model, generation, kind, 3)
    assert (told.device, told.inputs, told.loras) == ("cpu", {}, {})
    assert told.versions == versions(*LIBRARIES)
    assert told.settings["video_decoder"] == decoder


def test_it_names_the_precision_and_who_encodes() -> None:
    settings = Settings(device="cpu", precision="bf16", video_preset="slow", piece_seconds=12.345678)
    components = load_components(settings)
    for output_format, encoder in (
        ("mp4", "libx264"),
        ("mov", "libx264"),
        ("webm", None),
        ("gif", None),
        ("wav", None),
    ):
        request = GenerationRequest(prompt="x", output=Output(format=output_format))
        told = provenance_of(components, request, settings.model_copy(update={"video_encoder": "libx264"}))
        assert (told.precision, told.settings["video_preset"]) == ("bf16", "slow")
        assert told.settings["piece_seconds"] == "12.345678"
        assert told.settings.get("video_encoder") == encoder


def test_it_names_the_loras_that_are_worn(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "film look.safetensors").write_bytes(b"abc")
    (tmp_path / "idle.safetensors").write_bytes(b"")
    choices = (LoraChoice(name="film look", scale=0.5), LoraChoice(name="idle", scale=0.0))
    request = GenerationRequest(prompt="x", loras=choices)
    told = provenance_of(tiny("tiny"), request, Settings(loras_dir=tmp_path))
    assert told.loras == {"film look": ABC}


def test_a_lora_that_goes_while_it_is_worn_is_named_as_it_was(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    write_lora(file, tiny("tiny").transformer)
    whole = digest(file.read_bytes())

    def report(phase: str, _step: int, _steps: int) -> None:
        if phase == "denoising":
            file.unlink(missing_ok=True)

    request = GenerationRequest(
        prompt="x", width=64, height=64, num_frames=9, num_inference_steps=1, seed=1, loras=(LoraChoice(name="style"),)
    )
    runner = Runner(tiny("tiny"), Settings(loras_dir=tmp_path))
    made = runner.run(request, {}, tmp_path / "clip.mp4", report, lambda: False)
    assert not file.exists()
    assert made.provenance.loras == {"style": whole}
