"""Folders of each generation in the diffusers layout: saved from the tiny models, loaded again, and damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import edit, save
from transformers import Gemma3ForCausalLM

from ltx2.errors import NotReady
from ltx2.model.components import Components
from ltx2.model.folder import DiffusersFolder, DiffusersUpsampler
from ltx2.model.gemma import check_text_encoder, check_transformers, load_transformers
from ltx2.model.layout import generation_of_config
from ltx2.model.parts import REQUIRED

Tiny = Callable[[str], Components]
NAMES = {"2.0": "tiny", "2.3": "tiny-2.3", "2.5": "tiny-2.5"}


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def message(load: Callable[[], object]) -> str:
    """What a refusal says. Folders are for the log, not for messages."""
    with pytest.raises(NotReady) as caught:
        load()
    assert "/" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("folders")

    def of(generation: str) -> Path:
        folder = root / f"ltx-{generation}"
        return folder if folder.is_dir() else save(tiny(NAMES[generation]), folder)

    return of


@pytest.fixture
def copy(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder of LTX-2.0 to be damaged."""
    return shutil.copytree(saved("2.0"), tmp_path / "ltx")


def assert_same(ours: Any, theirs: Any) -> None:
    weights = theirs.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in ours.state_dict().items())
    assert not any(weight.is_meta for weight in [*ours.parameters(), *ours.buffers()])
    assert not ours.training
    assert not any(weight.requires_grad for weight in ours.parameters())


@pytest.mark.parametrize("generation", NAMES)
def test_each_generation_comes_back_as_it_was_saved(saved: Callable[[str], Path], tiny: Tiny, generation: str) -> None:
    original = tiny(NAMES[generation])
    source = DiffusersFolder(saved(generation))
    assert (source.generation, source.num_layers, source.stored_fp8) == (generation, 3, False)
    assert source.parts() == original.parts.keys() - {"upsampler"}
    for part in (*source.parts(), "transformer"):
        assert_same(source.load(part, torch.float32), getattr(original, part))
    assert source.tokenizer()("a cat").input_ids == original.tokenizer("a cat").input_ids
    assert source.tokenizer().padding_side == "left"


def test_shards_come_back_as_one(tiny: Tiny, tmp_path: Path) -> None:
    original = tiny("tiny")
    folder = save(original, tmp_path / "ltx", shard="50KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    source = DiffusersFolder(folder)
    for part in ("transformer", "text_encoder"):
        assert_same(source.load(part, torch.float32), getattr(original, part))
    # what other tools leave beside an index is not read
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"left over")
    (folder / "text_encoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"left over")
    source = DiffusersFolder(folder)
    for part in ("transformer", "text_encoder"):
        assert_same(source.load(part, torch.float32), getattr(original, part))


def test_every_weight_has_the_dtype_asked_for(saved: Callable[[str], Path]) -> None:
    source = DiffusersFolder(saved("2.5"))
    for part in source.parts():
        assert {weight.dtype for weight in source.load(part, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_weights_are_counted_without_being_read(saved: Callable[[str], Path], tiny: Tiny) -> None:
    source = DiffusersFolder(saved("2.5"))
    for part, module in tiny("tiny-2.5").parts.items():
        if part not in ("text_encoder", "upsampler"):  # the head is tied, thus stored once
            assert source.parameters(part) == sum(weight.numel() for weight in module.state_dict().values())
    assert source.parameters("text_encoder") > 0


def test_what_published_configurations_have_wrong_is_set_right(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved("2.3"), tmp_path / "ltx")
    edit(folder / "transformer" / "config.json", perturbed_attn=False)
    edit(folder / "vocoder" / "config.json", final_act_fn=None)
    source = DiffusersFolder(folder)
    assert source.load("transformer", torch.float32).config.perturbed_attn is True
    assert source.load("vocoder", torch.float32).vocoder.final_act_fn == "clamp"


def test_a_configuration_that_does_not_say_has_the_defaults_of_diffusers() -> None:
    assert generation_of_config({}) == "2.0"
    assert generation_of_config({"use_prompt_embeddings": False}) == "2.3"
    assert generation_of_config({"use_prompt_embeddings": False, "use_keyframes_abs_pos_embedding": True}) == "2.5"


def test_the_dev_transformer_of_2_5_lies_beside_the_distilled_one(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved("2.5"), tmp_path / "ltx")
    shutil.copytree(folder / "transformer", folder / "transformer_full")
    weights = folder / "transformer_full" / "diffusion_pytorch_model.safetensors"
    rewrite(weights, lambda stored: stored["proj_in.bias"].fill_(7))
    dev = DiffusersFolder(folder, transformer="transformer_full").load("transformer", torch.float32)
    assert (dev.proj_in.bias == 7).all()
    assert not (DiffusersFolder(folder).load("transformer", torch.float32).proj_in.bias == 7).all()
    shutil.rmtree(folder / "transformer")
    assert DiffusersFolder(folder, transformer="transformer_full").generation == "2.5"


def test_an_upsampler_is_a_source_of_its_own(copy: Path, tiny: Tiny) -> None:
    upsampler = copy / "latent_upsampler"
    for place in (copy, upsampler):
        source = DiffusersUpsampler(place)
        assert source.parameters("upsampler") == sum(
            weight.numel() for weight in tiny("tiny").upsampler.state_dict().values()
        )
        assert_same(source.load("upsampler", torch.float32), tiny("tiny").upsampler)
    edit(upsampler / "config.json", temporal_upsample=True)
    assert "makes more frames" in message(lambda: DiffusersUpsampler(upsampler))
    edit(upsampler / "config.json", temporal_upsample=False, rational_spatial_scale=1.5)
    assert "does not double" in message(lambda: DiffusersUpsampler(upsampler))
    edit(upsampler / "config.json", rational_spatial_scale=2.0, mid_channels=96)
    assert "of other shapes than its configuration says" in message(lambda: DiffusersUpsampler(upsampler))
    edit(upsampler / "config.json", _class_name="AutoencoderKL")
    assert "is a AutoencoderKL" in message(lambda: DiffusersUpsampler(upsampler))


def test_an_optional_part_without_its_weights_is_left_out(
    saved: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(saved("2.5"), tmp_path / "ltx")
    (folder / "diffusion_decoder" / "diffusion_pytorch_model.safetensors").unlink()
    assert DiffusersFolder(folder).parts() & {"diffusion_decoder", "duration_head"} == {"duration_head"}
    assert "the diffusion_decoder of the model 'ltx' is incomplete: going without" in caplog.text


def test_a_file_is_no_text_encoder_for_a_folder(copy: Path) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    refusal = message(lambda: DiffusersFolder(copy, text_encoder=file))
    assert "is a file" in refusal
    assert "set LTX2_TEXT_ENCODER to the folder" in refusal


def test_a_configuration_of_another_form_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", vae=["diffusers"])
    assert "the model 'ltx' could not be loaded: ValueError" in message(lambda: DiffusersFolder(copy))


def test_a_part_that_is_not_there_cannot_be_loaded(saved: Callable[[str], Path]) -> None:
    source = DiffusersFolder(saved("2.0"))
    assert "the duration_head of the model 'ltx-2.0' is missing" in message(
        lambda: source.load("duration_head", torch.float32)
    )


@pytest.mark.parametrize("part", REQUIRED)
def test_a_missing_part_is_refused_before_anything_is_read(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    assert f"the {part} of the model 'ltx' is missing" in message(lambda: DiffusersFolder(copy))


def test_a_missing_index_is_refused(copy: Path) -> None:
    (copy / "model_index.json").unlink()
    assert "has no model_index.json" in message(lambda: DiffusersFolder(copy))


def test_an_unreadable_configuration_is_refused(copy: Path) -> None:
    (copy / "transformer" / "config.json").write_text("{")
    assert "config.json of the transformer of the model 'ltx' cannot be read" in message(lambda: DiffusersFolder(copy))
    (copy / "transformer" / "config.json").write_text("[]")
    assert "is not a JSON object" in message(lambda: DiffusersFolder(copy))


def test_a_truncated_file_is_refused_before_anything_is_read(copy: Path) -> None:
    weights = copy / "audio_vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refusal = message(lambda: DiffusersFolder(copy))
    assert "the audio_vae of the model 'ltx' cannot be read" in refusal
    assert "diffusion_pytorch_model.safetensors is damaged" in refusal


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_missing_shard_is_named(tiny: Tiny, tmp_path: Path, part: str) -> None:
    folder = save(tiny("tiny"), tmp_path / "ltx", shard="50KB")
    shard = min((folder / part).glob("*.safetensors"))
    shard.unlink()
    refusal = message(lambda: DiffusersFolder(folder))
    assert f"the {part} of the model 'ltx' is incomplete: {shard.name} is missing" in refusal


def test_an_index_that_points_elsewhere_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = save(tiny("tiny"), tmp_path / "ltx", shard="50KB")
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    edit(index, weight_map={"proj_in.weight": "../../elsewhere.safetensors"})
    assert "names no shards" in message(lambda: DiffusersFolder(folder))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_pickle_is_not_loaded(copy: Path, part: str) -> None:
    (weights,) = (copy / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    refusal = message(lambda: DiffusersFolder(copy))
    assert f"{weights.stem}.bin" in refusal
    assert "pickles are not loaded" in refusal


def test_a_pickle_under_another_name_is_not_loaded(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights)
    assert "is a pickle" in message(lambda: DiffusersFolder(copy))


def test_a_git_lfs_pointer_is_told_from_weights(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-lfs pointer" in message(lambda: DiffusersFolder(copy))


def test_a_part_without_weights_is_refused(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "the vae of the model 'ltx' has no weights" in message(lambda: DiffusersFolder(copy))


CASES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "unknown": (lambda weights: weights.update(strange=torch.zeros(1)), "does not understand: strange"),
    "missing": (lambda weights: weights.pop(max(weights)), "lacks weights"),
    "shape": (lambda weights: weights.update({(key := max(weights)): weights[key][:1]}), "other shapes"),
}


@pytest.mark.parametrize("part", ["transformer", "vocoder", "text_encoder"])
@pytest.mark.parametrize("case", CASES)
def test_weights_must_be_those_of_the_configuration(copy: Path, part: str, case: str) -> None:
    (weights,) = (copy / part).glob("*.safetensors")
    change, said = CASES[case]
    rewrite(weights, change)
    refusal = message(lambda: DiffusersFolder(copy))
    assert f"the {part} of the model 'ltx' ({weights.name})" in refusal
    assert said in refusal


def test_a_class_from_elsewhere_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", vae=["os", "system"])
    assert "os.system is not part of an LTX-2" in message(lambda: DiffusersFolder(copy))
    edit(copy / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    assert "diffusers.AutoencoderKL is not part of an LTX-2" in message(lambda: DiffusersFolder(copy))


def test_another_generations_text_encoder_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for ours, theirs, said in (("2.3", "2.5", "Gemma4Unified, but LTX-2.3"), ("2.5", "2.0", "Gemma3, but LTX-2.5")):
        folder = shutil.copytree(saved(ours), tmp_path / ours)
        shutil.rmtree(folder / "text_encoder")
        shutil.copytree(saved(theirs) / "text_encoder", folder / "text_encoder")
        assert said in message(lambda folder=folder: DiffusersFolder(folder))


def test_a_text_encoder_of_another_size_is_refused(copy: Path) -> None:
    refusal = message(lambda: check_text_encoder(copy / "text_encoder", "2.0", 3840 * 49))
    assert "32 wide with 2 layers makes 96 features, not 188160" in refusal
    check_text_encoder(copy / "text_encoder", "2.3", 96)


def test_a_text_encoder_that_is_none_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("tiny").text_encoder.config.text_config
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    refusal = message(lambda: load_transformers(tmp_path / "gemma", torch.float32))
    assert "the text encoder is Gemma3ForCausalLM, which cannot read prompts" in refusal


def test_a_quantised_text_encoder_is_refused(copy: Path) -> None:
    edit(copy / "text_encoder" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "is quantised" in message(lambda: load_transformers(copy / "text_encoder", torch.float32))
    assert "is quantised" in message(lambda: DiffusersFolder(copy))


def test_a_text_encoder_as_it_is_published_is_understood(copy: Path) -> None:
    """Google's files have names of transformers' before its fifth version."""
    folder = copy / "text_encoder"

    def older(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            inner = name.removeprefix("model.")
            weights[inner.replace("language_model.", "language_model.model.", 1)] = weights.pop(name)

    rewrite(folder / "model.safetensors", older)
    check_transformers(folder)
    load_transformers(folder, torch.float32)


def test_a_damaged_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    assert "the tokenizer of the model 'ltx' could not be loaded" in message(DiffusersFolder(copy).tokenizer)
    shutil.rmtree(copy / "tokenizer")
    assert "the tokenizer of the model 'ltx' has no tokenizer_config.json" in message(DiffusersFolder(copy).tokenizer)
