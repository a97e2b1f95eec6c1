"""``LTX2_MODEL`` as a diffusers folder: what comes of it, and what is said when it cannot be."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saved_models import edit, save

from ltx2.errors import NotReady
from ltx2.model.checkpoint import load_components
from ltx2.model.components import Components
from ltx2.model.parts import REQUIRED
from ltx2.settings import Settings

Tiny = Callable[[str], Components]


@pytest.fixture(scope="module")
def saved(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("tiny"), tmp_path_factory.mktemp("models") / "ltx-2-distilled")


@pytest.mark.parametrize("name", ["tiny", "tiny-2.3", "tiny-2.5"])
def test_a_folder_comes_back_as_it_was_saved(tiny: Tiny, tmp_path: Path, name: str) -> None:
    original = tiny(name)
    folder = save(original, tmp_path / "ltx-distilled")
    loaded = load_components(Settings(model=str(folder), device="cpu"))
    assert loaded.recipe == original.recipe
    assert not loaded.is_random
    for ours, theirs in zip(loaded.parts.values(), original.parts.values(), strict=True):
        weights = theirs.state_dict()
        assert ours.state_dict().keys() == weights.keys()
        assert all(torch.equal(weight, weights[key]) for key, weight in ours.state_dict().items())
        assert not ours.training
    assert loaded.tokenizer("a cat").input_ids == original.tokenizer("a cat").input_ids


def test_a_name_is_looked_up_below_the_models_folder(saved: Path) -> None:
    loaded = load_components(Settings(model="ltx-2-distilled", models_dir=saved.parent, device="cpu"))
    assert loaded.name == "ltx-2-distilled"
    assert loaded.recipe.kind == "distilled"


def test_the_setting_says_dev_or_distilled_over_the_name(saved: Path) -> None:
    assert load_components(Settings(model=str(saved), recipe="dev", device="cpu")).recipe.kind == "dev"


def test_what_published_configurations_have_wrong_is_set_right(tiny: Tiny, tmp_path: Path) -> None:
    folder = save(tiny("tiny-2.3"), tmp_path / "ltx-2.3-dev")
    edit(folder / "transformer" / "config.json", perturbed_attn=False)
    edit(folder / "vocoder" / "config.json", final_act_fn=None)
    loaded = load_components(Settings(model=str(folder), device="cpu"))
    assert loaded.transformer.config.perturbed_attn is True
    assert loaded.vocoder.vocoder.final_act_fn == "clamp"
    assert loaded.denoiser.transformer is loaded.transformer


def test_there_is_no_such_model() -> None:
    with pytest.raises(NotReady, match="no model is called 'ltx-3'") as caught:
        load_components(Settings(model="ltx-3", device="cpu"))
    assert "runpod-volume" not in str(caught.value)  # folders are for the log
    assert "tiny" in str(caught.value.hint)


def test_a_folder_that_does_not_say_dev_or_distilled_is_asked_about(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "my-model")
    with pytest.raises(NotReady, match="a dev or a distilled checkpoint") as caught:
        load_components(Settings(model=str(folder), device="cpu"))
    assert "LTX2_RECIPE" in str(caught.value.hint)


@pytest.mark.parametrize("part", [*REQUIRED, "tokenizer"])
def test_a_missing_part_is_named(saved: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "ltx-distilled")
    shutil.rmtree(folder / part)
    with pytest.raises(NotReady, match=f"is incomplete: {part}/"):
        load_components(Settings(model=str(folder), device="cpu"))


def test_a_truncated_part_is_named(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "ltx-distilled")
    (weights,) = (folder / "audio_vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(NotReady, match="the audio_vae of the model"):
        load_components(Settings(model=str(folder), device="cpu"))


def test_a_class_from_elsewhere_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "ltx-distilled")
    edit(folder / "model_index.json", vae=["os", "system"])
    with pytest.raises(NotReady, match=r"os\.system is not part of an LTX-2"):
        load_components(Settings(model=str(folder), device="cpu"))


def test_a_device_that_is_not_there_is_said() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(NotReady, match=f"torch sees {count} CUDA devices"):
        load_components(Settings(device=f"cuda:{count}"))
