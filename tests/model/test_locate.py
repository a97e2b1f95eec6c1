"""Models found on this machine: real folders, caches with the hub's layout built by hand. The hub is test_hub's."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ltx2.errors import NotReady
from ltx2.model.locate import Location, locate
from ltx2.settings import Settings

TEXT = "text_encoder"
PARTS = ("connectors", "transformer", "vae", "audio_vae", "vocoder", TEXT)
GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing may be fetched, and the local hub cache is an empty one. Both are constants of huggingface_hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home" / "hub"


def settings(tmp_path: Path, model: str | Path, **values: Any) -> Settings:
    return Settings(model=str(model), models_dir=tmp_path / "volume", **values)


def weights(file: Path, *keys: str) -> Path:
    """A safetensors file with these keys."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.zeros(1) for key in keys}, file)
    return file


def part(folder: Path, *, is_transformers: bool = False, shards: int = 1) -> None:
    """One part in the layout diffusers or transformers saves."""
    folder.mkdir(parents=True)
    stem = "model" if is_transformers else "diffusion_pytorch_model"
    (folder / "config.json").write_text(json.dumps({"architectures": ["G"]} if is_transformers else {}))
    if shards == 1:
        weights(folder / f"{stem}.safetensors", "a")
        return
    names = [f"{stem}-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    for name in names:
        weights(folder / name, name)
    index = {"weight_map": {name: name for name in names}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def diffusers(folder: Path, *extras: str, transformer: str = "transformer") -> Path:
    """A whole folder in the diffusers layout, its transformer in three shards."""
    for name in (*PARTS, *extras):
        place = transformer if name == "transformer" else name
        part(folder / place, is_transformers=name == TEXT, shards=3 if name == "transformer" else 1)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    (folder / "model_index.json").write_text("{}")
    return folder


def cached(cache: Path, repository: str, commit: str = "c0ffee") -> Path:
    """Where a cache with the hub's layout has a snapshot; its main revision is this one."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def gemma(folder: Path) -> Path:
    part(folder, is_transformers=True)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def single(folder: Path, name: str) -> Path:
    return weights(folder / name, "model.diffusion_model.patchify_proj.weight", "vae.decoder.conv_in.weight")


def refusal(tmp_path: Path, model: str | Path, **values: Any) -> str:
    with pytest.raises(NotReady) as caught:
        locate(settings(tmp_path, model, **values))
    assert str(tmp_path) not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_found_by_its_path(tmp_path: Path) -> None:
    folder = diffusers(tmp_path / "my-dev-model")
    found = locate(settings(tmp_path, folder))
    assert found == Location("diffusers", folder, found_in="the path as given", trained="dev")


def test_the_models_folder_is_searched_by_name_and_by_repository(tmp_path: Path) -> None:
    named = diffusers(tmp_path / "volume" / "my-model")
    assert locate(settings(tmp_path, "my-model")).folder == named
    repository = diffusers(tmp_path / "volume" / "LTX-2")
    found = locate(settings(tmp_path, "ltx-2"))
    assert (found.folder, found.found_in) == (repository, "the models folder, as LTX-2")
    assert found.entry is not None
    assert found.entry.name == "ltx-2"
    assert locate(settings(tmp_path, "Lightricks/LTX-2")).folder == repository
    exact = diffusers(tmp_path / "volume" / "ltx-2")
    assert locate(settings(tmp_path, "ltx-2")).folder == exact


def test_what_runpod_has_cached_is_found_before_the_rest(
    tmp_path: Path, offline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    home = diffusers(cached(offline, "diffusers/LTX-2.3-Distilled-Diffusers"))
    found = locate(settings(tmp_path, "ltx-2.3-distilled"))
    assert (found.folder, found.found_in, found.trained) == (home, "the local hub cache", "distilled")
    runpod = diffusers(
        cached(tmp_path / "volume/huggingface-cache/hub", "diffusers/LTX-2.3-Distilled-Diffusers", "feed")
    )
    found = locate(settings(tmp_path, "ltx-2.3-distilled"))
    assert (found.folder, found.found_in) == (runpod, "RunPod's cached models")
    assert "ltx-2.3-distilled is not in the path as given" in caplog.text
    assert f"found ltx-2.3-distilled in RunPod's cached models: {runpod}" in caplog.text


def test_the_main_revision_of_a_cache_is_taken(tmp_path: Path, offline: Path) -> None:
    old = diffusers(cached(offline, "org/ltx-dev", "0ld"))
    new = diffusers(cached(offline, "org/ltx-dev", "new"))
    assert locate(settings(tmp_path, "org/ltx-dev")).folder == new
    (new.parent.parent / "refs" / "main").write_text("0ld\n")
    assert locate(settings(tmp_path, "org/ltx-dev")).folder == old
    (new.parent.parent / "refs" / "main").unlink()
    assert locate(settings(tmp_path, "org/ltx-dev")).folder in (old, new)


@pytest.mark.parametrize(
    "lost",
    [
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "vocoder/config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_a_partial_snapshot_is_passed_over(tmp_path: Path, offline: Path, lost: str) -> None:
    part_of_it = diffusers(cached(tmp_path / "volume/huggingface-cache/hub", "Lightricks/LTX-2"))
    (part_of_it / lost).unlink()
    said = refusal(tmp_path, "ltx-2")
    assert f"the model 'ltx-2' is incomplete: {lost} is missing" in said
    assert "HF_HUB_OFFLINE" in said
    whole = diffusers(cached(offline, "Lightricks/LTX-2"))
    assert locate(settings(tmp_path, "ltx-2")).folder == whole


def test_single_files_in_a_cache_are_not_what_the_catalogue_means(tmp_path: Path, offline: Path) -> None:
    single(cached(offline, "Lightricks/LTX-2"), "ltx-2-19b-dev.safetensors")
    assert "the model 'ltx-2' is not on this machine" in refusal(tmp_path, "ltx-2")


def test_the_dev_transformer_of_2_5_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = diffusers(tmp_path / "volume" / "LTX-2.5-Diffusers")
    found = locate(settings(tmp_path, "ltx-2.5-distilled"))
    assert (found.transformer, found.trained) == ("transformer", "distilled")
    assert "transformer_full" in refusal(tmp_path, "ltx-2.5")
    part(folder / "transformer_full")
    found = locate(settings(tmp_path, "ltx-2.5"))
    assert (found.transformer, found.trained, found.folder) == ("transformer_full", "dev", folder)
    assert locate(settings(tmp_path, folder)).transformer == "transformer"
    assert locate(settings(tmp_path, folder, recipe="dev")).transformer == "transformer_full"
    only = diffusers(tmp_path / "only", transformer="transformer_full")
    assert (locate(settings(tmp_path, only)).transformer, locate(settings(tmp_path, only)).trained) == (
        "transformer_full",
        "dev",
    )


def test_a_file_is_a_checkpoint(tmp_path: Path) -> None:
    file = single(tmp_path / "models", "ltx-2-19b-distilled.safetensors")
    single(tmp_path / "models", "ltx-2-19b-dev.safetensors")
    text_encoder = gemma(tmp_path / "models" / "gemma-3-12b")
    found = locate(settings(tmp_path, file))
    assert found == Location(
        "original",
        file.parent,
        (file,),
        text_encoder=text_encoder,
        found_in="the path as given",
        trained="distilled",
    )


def test_a_file_of_a_cached_repository_is_named_behind_it(tmp_path: Path, offline: Path) -> None:
    folder = cached(offline, "Lightricks/LTX-2")
    file = single(folder, "ltx-2-19b-distilled-fp8.safetensors")
    single(folder, "ltx-2-19b-dev.safetensors")
    text_encoder = gemma(cached(offline, GEMMA))
    found = locate(settings(tmp_path, "Lightricks/LTX-2/ltx-2-19b-distilled-fp8.safetensors"))
    assert (found.files, found.text_encoder, found.trained) == ((file,), text_encoder, "distilled")
    assert "holds 2 checkpoints" in refusal(tmp_path, "Lightricks/LTX-2")


def test_split_files_belong_together(tmp_path: Path) -> None:
    root = tmp_path / "LTX-2.5"
    main = weights(root / "diffusion_models" / "ltx-2.5-22b-dev-transformer.safetensors", "model.diffusion_model.a")
    other = weights(
        root / "diffusion_models" / "ltx-2.5-22b-distilled-transformer.safetensors", "model.diffusion_model.a"
    )
    text = weights(root / "text_encoders" / "gemma4-12b.safetensors", "model.layers.0.a", "text_embedding_projection.a")
    vae = weights(root / "vae" / "ltx-2.5-video-vae.safetensors", "decoder.a")
    lora = weights(
        root / "loras" / "ltx-2.5-22b-distilled-lora-450-bf16.safetensors", "diffusion_model.a.lora_A.weight"
    )
    upscalers = root / "latent_upscale_models"
    weights(upscalers / "ltx-2.5-latent-temporal-upscaler-x2-bf16-1.0.safetensors", "upsampler.a")
    upscaler = weights(upscalers / "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors", "upsampler.a")
    said = refusal(tmp_path, root)
    assert "LTX-2.5 holds 2 checkpoints" in said
    assert main.name in said
    assert other.name in said
    found = locate(settings(tmp_path, main))
    assert (found.kind, found.folder, found.trained) == ("original", root, "dev")
    assert (found.files, found.upsampler, found.lora) == ((main, text, vae), upscaler, lora)
    assert found.text_encoder is None
    other.unlink()
    assert locate(settings(tmp_path, root)).files == (main, text, vae)


def test_companions_beside_a_checkpoint_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / "ltx-2.3"
    single(folder, "ltx-2.3-22b-dev.safetensors")
    gemma(folder / "gemma")
    weights(folder / "ltx-2.3-spatial-upscaler-x2-1.0.safetensors", "upsampler.a")
    upscaler = weights(folder / "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", "upsampler.a")
    weights(folder / "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors", "upsampler.a")
    lora = weights(folder / "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "diffusion_model.a.lora_A.weight")
    found = locate(settings(tmp_path, folder))
    assert (found.upsampler, found.lora, len(found.files)) == (upscaler, lora, 1)


def test_companions_come_from_the_repositories_the_catalogue_names(tmp_path: Path, offline: Path) -> None:
    diffusers(cached(offline, "diffusers/LTX-2.3-Diffusers"))
    assert locate(settings(tmp_path, "ltx-2.3")).upsampler is None
    upscaler = cached(offline, "rootonchair/LTX-2.3-spatial-upscaler-x2-v1.1-Diffusers") / "latent_upsampler"
    part(upscaler)
    lora = weights(tmp_path / "volume" / "LTX-2.3" / "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "a")
    found = locate(settings(tmp_path, "ltx-2.3"))
    assert (found.upsampler, found.lora) == (upscaler, lora)
    (upscaler / "diffusion_pytorch_model.safetensors").unlink()
    assert locate(settings(tmp_path, "ltx-2.3")).upsampler is None


def test_settings_name_companions_over_all_else(tmp_path: Path) -> None:
    folder = diffusers(tmp_path / "ltx-dev", "latent_upsampler")
    beside = weights(folder / "ltx-2-19b-distilled-lora-384.safetensors", "a")
    found = locate(settings(tmp_path, folder))
    assert (found.upsampler, found.lora) == (folder / "latent_upsampler", beside)
    mine = {
        "upsampler": weights(tmp_path / "up.safetensors", "a"),
        "distilled_lora": weights(tmp_path / "lora.safetensors", "a"),
        "text_encoder": gemma(tmp_path / "gemma"),
    }
    found = locate(settings(tmp_path, folder, **mine))
    assert (found.upsampler, found.lora, found.text_encoder) == tuple(mine.values())
    for name in mine:
        said = refusal(tmp_path, folder, **{name: tmp_path / "nowhere"})
        assert f"LTX2_{name.upper()} names nowhere, which is not there" in said


def test_a_distilled_checkpoint_wears_no_distilled_lora(tmp_path: Path) -> None:
    folder = diffusers(tmp_path / "ltx-distilled")
    weights(folder / "ltx-2-19b-distilled-lora-384.safetensors", "a")
    assert locate(settings(tmp_path, folder)).lora is None


def test_an_original_file_without_a_text_encoder_is_asked_for_one(tmp_path: Path) -> None:
    file = single(tmp_path / "models", "ltx-2-19b-dev.safetensors")
    said = refusal(tmp_path, file)
    assert "has no text encoder" in said
    assert "LTX2_TEXT_ENCODER" in said


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save({}, folder / "model.bin")
    assert "pickles are not loaded" in refusal(tmp_path, folder)
    assert "is a pickle" in refusal(tmp_path, folder / "model.bin")


def test_other_weights_are_no_checkpoint(tmp_path: Path) -> None:
    file = weights(tmp_path / "vae.safetensors", "decoder.a")
    assert "vae.safetensors is no LTX-2 checkpoint" in refusal(tmp_path, file)
    assert f"{tmp_path.name} is no LTX-2" in refusal(tmp_path, tmp_path)


def names(said: str) -> Iterable[str]:
    return (name for name in ("ltx-2.3-distilled", "tiny", "org/name") if name in said)


def test_what_is_nowhere_is_refused_with_what_there_is(tmp_path: Path) -> None:
    said = refusal(tmp_path, "ltx-3")
    assert "no model is called 'ltx-3'" in said
    assert list(names(said)) == ["ltx-2.3-distilled", "tiny", "org/name"]
    assert "no model is called" in refusal(tmp_path, "./not-here")


def test_a_repository_that_may_not_be_fetched_is_said(tmp_path: Path) -> None:
    said = refusal(tmp_path, "org/name")
    assert "the model 'org/name' is not on this machine" in said
    assert "HF_HUB_OFFLINE" in said
