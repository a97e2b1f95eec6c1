"""Models found on this machine: real folders, caches with the hub's layout built by hand. The hub is test_hub's."""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ltx2.errors import NotReady
from ltx2.model.layout import GEMMA_3_CLASS
from ltx2.model.locate import locate
from ltx2.model.location import Location
from ltx2.settings import Settings

TEXT = "text_encoder"
PARTS = ("connectors", "transformer", "vae", "audio_vae", "vocoder", TEXT)
GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"
MAIN = "model.diffusion_model.patchify_proj.weight"
OURS = {"config": '{"transformer": {}}'}
"""A header that says LTX, but not which."""


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing may be fetched, and the local hub cache is an empty one. Both are constants of huggingface_hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home" / "hub"


def settings(tmp_path: Path, model: str | Path, **values: Any) -> Settings:
    return Settings(model=str(model), models_dir=tmp_path / "volume", **values)


def weights(file: Path, *keys: str, header: dict[str, str] | None = None) -> Path:
    """A safetensors file with these keys."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.zeros(1) for key in keys}, file, header)
    return file


def part(folder: Path, *, is_transformers: bool = False, shards: int = 1, architecture: str = GEMMA_3_CLASS) -> None:
    """One part in the layout diffusers or transformers saves."""
    folder.mkdir(parents=True)
    stem = "model" if is_transformers else "diffusion_pytorch_model"
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]} if is_transformers else {}))
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


def gemma(folder: Path, architecture: str = GEMMA_3_CLASS) -> Path:
    part(folder, is_transformers=True, architecture=architecture)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def single(folder: Path, name: str) -> Path:
    return weights(folder / name, MAIN, "vae.decoder.conv_in.weight", header=OURS)


def split(root: Path, name: str = "ltx-2.5-22b-dev-transformer", *others: str) -> Path:
    """The main one of LTX-2.5's files, with some of the others around it."""
    for other in others:
        keys = ["model.layers.0.a", "text_embedding_projection.a"] if "text" in other else ["decoder.a"]
        weights(root / f"{other}.safetensors", *keys, header=OURS)
    return weights(root / "diffusion_models" / f"{name}.safetensors", MAIN, header=OURS)


def refusal(tmp_path: Path, model: str | Path, **values: Any) -> str:
    with pytest.raises(NotReady) as caught:
        locate(settings(tmp_path, model, **values))
    assert str(tmp_path) not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_found_by_its_path(tmp_path: Path) -> None:
    folder = diffusers(tmp_path / "my-dev-model")
    found = locate(settings(tmp_path, folder))
    assert found == Location("diffusers", folder, found_in="the path as given", trained="dev", generation="2.0")
    assert found.title == "my-dev-model"


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
        generation="2.0",
    )
    assert found.title == file.name


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
    main = split(root, "ltx-2.5-22b-dev-transformer", "text_encoders/gemma4-12b", "vae/ltx-2.5-video-vae")
    other = split(root, "ltx-2.5-22b-distilled-transformer")
    text, vae = root / "text_encoders" / "gemma4-12b.safetensors", root / "vae" / "ltx-2.5-video-vae.safetensors"
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
    assert (found.layout, found.folder, found.trained) == ("original", root, "dev")
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


# What is the wrong model, and must not be run as the right one


def test_original_files_are_not_what_a_name_means(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = single(tmp_path / "volume" / "LTX-2", "ltx-2-19b-distilled.safetensors")
    gemma(file.parent / "gemma")
    assert "the model 'ltx-2' is not on this machine" in refusal(tmp_path, "ltx-2")
    assert f"{file.parent} is passed over: it is not in the layout of diffusers" in caplog.text
    # asked for by its repository, it is what its name says
    assert locate(settings(tmp_path, "Lightricks/LTX-2")).trained == "distilled"


def test_the_dev_transformer_is_asked_of_a_repository_that_has_it(tmp_path: Path, offline: Path) -> None:
    repository = "Lightricks/LTX-2.5-Diffusers"
    folder = diffusers(cached(offline, repository))
    found = locate(settings(tmp_path, repository))
    assert (found.transformer, found.trained) == ("transformer", "distilled")
    assert "transformer_full/config.json" in refusal(tmp_path, repository, recipe="dev")
    part(folder / "transformer_full")
    found = locate(settings(tmp_path, repository, recipe="dev"))
    assert (found.transformer, found.trained) == ("transformer_full", "dev")


def test_the_recipe_rules_over_a_name_but_not_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = diffusers(tmp_path / "LTX-2.5-Diffusers")
    assert locate(settings(tmp_path, folder, recipe="dev")).trained == "dev"
    assert "LTX2_RECIPE=dev is followed, although this is a distilled checkpoint by its name" in caplog.text


def test_the_recipe_says_whether_a_lora_is_worn(tmp_path: Path) -> None:
    file = single(tmp_path, "ltx-2-19b-dev.safetensors")
    gemma(tmp_path / "gemma")
    lora = weights(tmp_path / "ltx-2-19b-distilled-lora-384.safetensors", "a")
    assert locate(settings(tmp_path, file)).lora == lora
    assert locate(settings(tmp_path, file, recipe="distilled")).lora is None
    other = single(tmp_path, "ltx-2-19b-distilled.safetensors")
    assert locate(settings(tmp_path, other)).lora is None
    assert locate(settings(tmp_path, other, recipe="dev")).lora == lora


# What goes with it, and what does not


def test_companions_of_another_generation_are_passed_over(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma")
    for generation in ("2", "2.3"):
        single(tmp_path, f"ltx-{generation}-dev.safetensors")
        weights(tmp_path / f"ltx-{generation}-spatial-upscaler-x2-1.1.safetensors", "a")
        weights(tmp_path / f"ltx-{generation}-distilled-lora-384.safetensors", "a")
    # what the header says counts more than the name
    weights(tmp_path / "ltx-2-spatial-upscaler-x2-1.2.safetensors", "a", header={"model_version": "2.3.0"})
    weights(tmp_path / "ltx-2-spatial-upscaler-x2-1.3.safetensors", "a", header={"model_version": "4.0.0"})
    (tmp_path / "ltx-2-spatial-upscaler-x2-1.4.safetensors").write_bytes(b"cut")
    old, new = (locate(settings(tmp_path, tmp_path / f"ltx-{which}-dev.safetensors")) for which in ("2", "2.3"))
    assert old.upsampler is not None
    assert old.lora is not None
    assert new.upsampler is not None
    assert new.lora is not None
    assert (old.upsampler.name, old.lora.name) == (
        "ltx-2-spatial-upscaler-x2-1.1.safetensors",
        "ltx-2-distilled-lora-384.safetensors",
    )
    assert (new.upsampler.name, new.lora.name) == (
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "ltx-2.3-distilled-lora-384.safetensors",
    )


def test_the_newest_is_told_by_numbers(tmp_path: Path) -> None:
    file = single(tmp_path, "ltx-2.3-22b-dev.safetensors")
    gemma(tmp_path / "gemma")
    for version in ("", "-1.1", "-1.10", "-1.9"):
        weights(tmp_path / f"ltx-2.3-22b-distilled-lora-384{version}.safetensors", "a")
    lora = locate(settings(tmp_path, file)).lora
    assert lora is not None
    assert lora.name == "ltx-2.3-22b-distilled-lora-384-1.10.safetensors"


def test_a_lora_that_upscales_is_no_upsampler(tmp_path: Path) -> None:
    file = single(tmp_path, "ltx-2.3-22b-dev.safetensors")
    gemma(tmp_path / "gemma")
    weights(tmp_path / "ltx-2.3-22b-ic-lora-pixel-spatial-upscaler-x2-0.9.safetensors", "a")
    assert locate(settings(tmp_path, file)).upsampler is None


def test_a_repository_has_the_companions_of_its_name(tmp_path: Path, offline: Path) -> None:
    diffusers(cached(offline, "diffusers/LTX-2.3-Diffusers"))
    part(cached(offline, "rootonchair/LTX-2.3-spatial-upscaler-x2-v1.1-Diffusers") / "latent_upsampler")
    weights(tmp_path / "volume" / "LTX-2.3" / "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "a")
    named, repository = (locate(settings(tmp_path, name)) for name in ("ltx-2.3", "diffusers/LTX-2.3-Diffusers"))
    assert named == repository
    assert None not in (named.upsampler, named.lora)


# The text encoder


def test_a_text_encoder_in_the_same_snapshot_is_seen(tmp_path: Path, offline: Path) -> None:
    folder = diffusers(cached(offline, "Lightricks/LTX-2"))
    single(folder, "ltx-2-19b-distilled-fp8.safetensors")
    found = locate(settings(tmp_path, "Lightricks/LTX-2/ltx-2-19b-distilled-fp8.safetensors"))
    assert found.text_encoder == folder / "text_encoder"


def test_another_language_model_is_no_text_encoder(tmp_path: Path) -> None:
    file = single(tmp_path / "models", "ltx-2-19b-dev.safetensors")
    gemma(file.parent / "A-Qwen", "Qwen2ForCausalLM")
    assert "there is no Gemma 3 on this machine" in refusal(tmp_path, file)
    right = gemma(file.parent / "gemma-3-12b")
    assert locate(settings(tmp_path, file)).text_encoder == right


def test_2_5_is_not_offered_a_gemma_3(tmp_path: Path, offline: Path) -> None:
    gemma(cached(offline, GEMMA))
    said = refusal(tmp_path, split(tmp_path / "LTX-2.5"))
    assert "LTX-2.5's is a file of its own" in said
    assert "LTX2_TEXT_ENCODER" in said
    assert "Gemma 3" not in said
    assert GEMMA not in said


def test_of_two_text_encoders_a_setting_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = split(tmp_path / "m", "ltx-2.5-dev", "text_encoders/text-bf16", "text_encoders/text-fp8", "vae/v")
    chosen = tmp_path / "m" / "text_encoders" / "text-fp8.safetensors"
    assert len(locate(settings(tmp_path, main)).files) == 4  # to be refused when they are opened
    monkeypatch.chdir(tmp_path)
    for name in (chosen, chosen.relative_to(tmp_path)):
        found = locate(settings(tmp_path, main, text_encoder=name))
        assert found.files == (main, tmp_path / "m" / "vae" / "v.safetensors")
        assert found.text_encoder == name


def test_a_folder_without_a_text_encoder_takes_the_one_that_is_named(tmp_path: Path) -> None:
    folder = diffusers(tmp_path / "ltx-dev")
    shutil.rmtree(folder / "text_encoder")
    assert "text_encoder/config.json" in refusal(tmp_path, folder)
    other = gemma(tmp_path / "gemma")
    assert locate(settings(tmp_path, folder, text_encoder=other)).text_encoder == other


# Folders that others use too, and what was begun


def test_the_files_of_other_models_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    main = split(tmp_path, "ltx-2.5-dev", "text_encoders/gemma4", "vae/video")
    weights(tmp_path / "checkpoints" / "sd_xl_base.safetensors", "model.diffusion_model.input_blocks.0.weight")
    weights(tmp_path / "vae" / "sdxl_vae.safetensors", "decoder.a")
    weights(tmp_path / "vae" / "ltx-2.3-vae.safetensors", "decoder.a", header={"model_version": "2.3.0"})
    (tmp_path / "vae" / "broken.safetensors").write_bytes(b"cut")
    for model in (main, tmp_path):
        found = locate(settings(tmp_path, model))
        assert [file.stem for file in found.files] == ["ltx-2.5-dev", "gemma4", "video"]
    for name in ("sd_xl_base", "sdxl_vae", "ltx-2.3-vae", "broken"):
        assert f"{name}.safetensors is passed over" in caplog.text
    # one of the model's own is not a stranger
    (tmp_path / "vae" / "ltx-2.5-audio-vae.safetensors").write_bytes(b"cut")
    assert "ltx-2.5-audio-vae.safetensors is not a safetensors file" in refusal(tmp_path, main)


def test_a_folder_that_is_there_is_not_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = diffusers(tmp_path / "models" / "my-ltx-dev")
    diffusers(tmp_path / "volume" / "my-ltx-dev")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    said = refusal(tmp_path, "models/my-ltx-dev")
    assert "the model 'my-ltx-dev' is incomplete: vae/diffusion_pytorch_model.safetensors is missing" in said
    assert "hub" not in said.lower()
    (tmp_path / "models" / "empty").mkdir()
    assert "empty is no LTX-2: it has no model_index.json" in refusal(tmp_path, "models/empty")


def test_an_optional_part_that_was_begun_is_to_be_finished(tmp_path: Path, offline: Path) -> None:
    folder = diffusers(cached(offline, "org/ltx-dev"), "diffusion_decoder")
    (folder / "diffusion_decoder" / "diffusion_pytorch_model.safetensors").unlink()
    said = refusal(tmp_path, "org/ltx-dev")
    assert "is incomplete: diffusion_decoder/diffusion_pytorch_model.safetensors is missing" in said
    # a folder of one's own does without
    local = diffusers(tmp_path / "ltx-dev", "diffusion_decoder")
    (local / "diffusion_decoder" / "diffusion_pytorch_model.safetensors").unlink()
    assert locate(settings(tmp_path, local)).folder == local


@pytest.mark.parametrize("suffix", ["bin", "PT"])
def test_pickles_of_a_required_part_are_told(tmp_path: Path, suffix: str) -> None:
    folder = diffusers(tmp_path / "ltx-dev")
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_suffix(f".{suffix}"))
    said = refusal(tmp_path, folder)
    assert f"the vae of the model 'ltx-dev' has its weights in diffusion_pytorch_model.{suffix}; pickles are" in said


def test_a_snapshot_is_called_by_its_repository(tmp_path: Path, offline: Path) -> None:
    folder = diffusers(cached(offline, "org/ltx-2-dev"))
    assert locate(settings(tmp_path, folder)).trained == "dev"
    for name in ("a", "b"):
        single(cached(offline, "Lightricks/LTX-2.3"), f"ltx-2.3-{name}.safetensors")
    assert "Lightricks/LTX-2.3 holds 2 checkpoints" in refusal(tmp_path, "Lightricks/LTX-2.3")
    (folder / "vae" / "config.json").unlink()
    assert "the model 'org/ltx-2-dev' is incomplete" in refusal(tmp_path, folder)


def test_the_home_of_nobody_is_no_model(tmp_path: Path) -> None:
    assert "no model is called 'ltx'" in refusal(tmp_path, "~nobodyx/ltx")
