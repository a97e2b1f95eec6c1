"""Checkpoints in the original layout: every part computes what the official code does, and what is amiss is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_models import save_gemma_3
from torch import Tensor

from ltx2.errors import NotReady
from ltx2.model.conditioning import pack_audio, unpack_audio
from ltx2.model.neighborhood import NeighborhoodProcessor
from ltx2.model.original import OriginalFiles

Find = Callable[[str], Path]
Numbers = dict[str, Tensor]

GENERATIONS = ("2.0", "2.3", "2.5")
SPLIT = "ltx-2.5-tiny-{}.safetensors"


@pytest.fixture
def numbers(checkpoints: Find, generation: str) -> Numbers:
    return load_file(checkpoints(f"expected-{generation}.safetensors"))


@pytest.fixture
def tolerance(checkpoints: Find) -> dict[str, float]:
    with safe_open(checkpoints("expected-2.5.safetensors"), "pt") as file:
        about = json.loads(file.metadata()["about"])
    return {name.rstrip(".*"): limit for name, limit in about["suggested_tolerance_float32"].items()}


@pytest.fixture
def one_of(checkpoints: Find, generation: str) -> Callable[[str], OriginalFiles]:
    """The files of a generation: all in one, or of 2.5 those that are named."""

    def find(*names: str) -> OriginalFiles:
        files = (
            [SPLIT.format(name) for name in names] if generation == "2.5" else [f"ltx-{generation}-tiny.safetensors"]
        )
        return OriginalFiles([checkpoints(file) for file in files])

    return find


def assert_close(ours: Tensor, theirs: Tensor, limit: float) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= limit * theirs.abs().max()


def statistics(vae: Any) -> tuple[Tensor, Tensor]:
    return vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)


@torch.no_grad()
def velocities(transformer: Any, numbers: Numbers, keyframes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    video, audio = transformer(
        hidden_states=numbers["transformer.video_tokens"],
        audio_hidden_states=numbers["transformer.audio_tokens"],
        encoder_hidden_states=numbers["transformer.video_context"],
        audio_encoder_hidden_states=numbers["transformer.audio_context"],
        timestep=numbers["transformer.video_timesteps"].squeeze(-1) * 1000,
        audio_timestep=numbers["transformer.audio_timesteps"].squeeze(-1) * 1000,
        sigma=numbers["transformer.sigma"] * 1000,
        audio_sigma=numbers["transformer.sigma"] * 1000,
        video_coords=numbers["transformer.video_positions"],
        audio_coords=numbers["transformer.audio_positions"],
        use_cross_timestep=False,
        video_keyframes_mask=keyframes,
        return_dict=False,
    )
    return video, audio


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_transformer(one_of: Any, numbers: Numbers, tolerance: dict[str, float], generation: str) -> None:
    files = one_of("transformer")
    assert (files.generation, files.num_layers, files.stored_fp8) == (generation, 3, False)
    transformer = files.load("transformer", torch.float32)
    assert transformer.config.rope_double_precision
    assert transformer.config.perturbed_attn
    assert not transformer.training
    assert not any(weight.requires_grad for weight in transformer.parameters())
    assert files.parameters("transformer") == sum(weight.numel() for weight in transformer.parameters())
    for ours, stream in zip(velocities(transformer, numbers), ("video", "audio"), strict=True):
        assert_close(ours, numbers[f"transformer.out_{stream}_velocity"], tolerance["transformer"])


@pytest.mark.parametrize("generation", ["2.5"])
def test_the_transformer_with_keyframes(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    transformer = one_of("transformer").load("transformer", torch.float32)
    both = velocities(transformer, numbers, numbers["transformer.keyframes_mask"])
    for ours, stream in zip(both, ("video", "audio"), strict=True):
        assert_close(ours, numbers[f"transformer.keyframes.out_{stream}_velocity"], tolerance["transformer"])


@pytest.mark.parametrize("kept", [False, True], ids=["dequantised", "kept"])
@pytest.mark.parametrize("kind", ["plain", "scaled"])
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_float8(
    checkpoints: Find, numbers: Numbers, tolerance: dict[str, float], generation: str, kind: str, kept: bool
) -> None:
    files = OriginalFiles([checkpoints(f"ltx-{generation}-tiny-fp8-{kind}.safetensors")])
    assert files.stored_fp8
    assert files.parts() == {"transformer", "connectors"}
    transformer = files.load("transformer", torch.float32, keep_fp8=kept)
    stored = [weight for weight in transformer.parameters() if weight.dtype == torch.float8_e4m3fn]
    # of 2.3's scaled file the gates are float8 too
    assert len(stored) == (kept and (68 if (generation, kind) == ("2.3", "scaled") else 56))
    for ours, stream in zip(velocities(transformer, numbers), ("video", "audio"), strict=True):
        assert_close(ours, numbers[f"transformer.fp8_{kind}.out_{stream}_velocity"], tolerance["transformer"])


def test_float8_keeps_the_scales_of_activations(checkpoints: Find) -> None:
    path = checkpoints("ltx-2.3-tiny-fp8-scaled.safetensors")
    transformer = OriginalFiles([path]).load("transformer", torch.bfloat16, keep_fp8=True)
    linear = transformer.transformer_blocks[1].attn1.to_q
    with safe_open(path, "pt") as file:
        of = "model.diffusion_model.transformer_blocks.1.attn1.to_q"
        assert torch.equal(linear.weight_scale, file.get_tensor(f"{of}.weight_scale"))
        assert torch.equal(linear.input_scale, file.get_tensor(f"{of}.input_scale"))
    assert transformer.scale_shift_table.dtype == torch.bfloat16


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_the_text_projection_and_the_connectors(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    connectors = one_of("transformer", "text-encoder").load("connectors", torch.float32)
    assert connectors.config.connector_rope_base_seq_len == 4096
    assert connectors.config.rope_double_precision
    video, audio, mask = connectors(numbers["text.hidden_states"], numbers["text.attention_mask"], padding_side="left")
    assert_close(video, numbers["text.out_video_context"], tolerance["text"])
    assert_close(audio, numbers["text.out_audio_context"], tolerance["text"])
    assert torch.equal(mask, numbers["text.out_mask"])


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_the_video_vae(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    vae = one_of("video-vae-conv").load("vae", torch.float32)
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)
    mean, std = statistics(vae)
    encoded = (vae.encode(numbers["vae.pixels"]).latent_dist.mode() - mean) / std
    assert_close(encoded, numbers["vae.out_latent"], tolerance["vae"])
    decoded = vae.decode(numbers["vae.latent"] * std + mean, return_dict=False)[0]
    assert_close(decoded, numbers["vae.out_pixels"], tolerance["vae"])


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_the_audio_vae(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    vae = one_of("audio-vae").load("audio_vae", torch.float32)
    encoded = pack_audio(vae.encode(numbers["audio_vae.log_mel"]).latent_dist.mode())
    normalised = unpack_audio((encoded - vae.latents_mean) / vae.latents_std, 8)
    assert_close(normalised, numbers["audio_vae.out_latent"], tolerance["audio_vae"])
    latents = unpack_audio(pack_audio(numbers["audio_vae.latent"]) * vae.latents_std + vae.latents_mean, 8)
    assert_close(vae.decode(latents, return_dict=False)[0], numbers["audio_vae.out_log_mel"], tolerance["audio_vae"])


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_the_vocoder(one_of: Any, numbers: Numbers, tolerance: dict[str, float], generation: str) -> None:
    vocoder = one_of("audio-vae").load("vocoder", torch.float32)
    assert vocoder.config.output_sampling_rate == (24_000 if generation == "2.0" else 48_000)
    assert_close(vocoder(numbers["vocoder.log_mel"]), numbers["vocoder.out_waveform"], tolerance["vocoder"])
    if generation != "2.0":
        first = vocoder.vocoder(numbers["vocoder.log_mel"])
        assert_close(first, numbers["vocoder.stage1_waveform"], tolerance["vocoder"])


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@torch.no_grad()
def test_the_upsampler(checkpoints: Find, numbers: Numbers, tolerance: dict[str, float], generation: str) -> None:
    files = OriginalFiles([checkpoints(f"ltx-{generation}-upscaler-tiny.safetensors")])
    assert files.parts() == {"upsampler"}
    upsampler = files.load("upsampler", torch.float32)
    assert_close(upsampler(numbers["upscaler.latent"]), numbers["upscaler.out_raw"], tolerance["upscaler"])


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@torch.no_grad()
def test_the_upsampler_beside_its_model(
    checkpoints: Find, numbers: Numbers, tolerance: dict[str, float], generation: str
) -> None:
    names = (f"ltx-{generation}-tiny.safetensors", f"ltx-{generation}-upscaler-tiny.safetensors")
    files = OriginalFiles([checkpoints(name) for name in names])
    mean, std = statistics(files.load("vae", torch.float32))
    larger = files.load("upsampler", torch.float32)(numbers["upscaler.latent"] * std + mean)
    assert_close((larger - mean) / std, numbers["upscaler.out_latent"], tolerance["upscaler"])


@pytest.mark.parametrize("generation", ["2.5"])
@torch.no_grad()
def test_the_diffusion_decoder(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    files = one_of("video-vae")
    assert files.parts() == {"vae", "diffusion_decoder"}
    decoder = files.load("diffusion_decoder", torch.float32)
    assert (decoder.spatial_compression_ratio, decoder.temporal_compression_ratio) == (32, 8)
    # what the server decodes with; diffusers' own takes a minute on a CPU
    decoder.set_attn_processor(NeighborhoodProcessor())
    mean, std = statistics(decoder)
    inner = decoder.decoder
    context = inner.forward_stage_4(inner.forward_stages_1_to_3(numbers["diffusion_decoder.latent"] * std + mean))
    pixels = inner.denoise(context, numbers["diffusion_decoder.noise"], 1)
    assert_close(pixels, numbers["diffusion_decoder.out_pixels"], tolerance["diffusion_decoder"])


@pytest.mark.parametrize("generation", ["2.5"])
@torch.no_grad()
def test_a_diffusion_decoder_brings_its_encoder(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    vae = one_of("video-vae").load("vae", torch.float32)
    mean, std = statistics(vae)
    encoded = (vae.encode(numbers["vae.pixels"]).latent_dist.mode() - mean) / std
    assert_close(encoded, numbers["vae.out_latent"], tolerance["vae"])
    assert vae.decoder is None


@pytest.mark.parametrize("generation", ["2.5"])
def test_with_both_decoders_the_vae_is_whole(one_of: Any) -> None:
    files = one_of("video-vae", "video-vae-conv")
    assert files.parts() == {"vae", "diffusion_decoder"}
    assert files.load("vae", torch.bfloat16).decoder is not None


@pytest.mark.parametrize("generation", ["2.5"])
@torch.no_grad()
def test_the_duration_head(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    head = one_of("duration-head").load("duration_head", torch.float32)
    video, audio = numbers["text.out_video_context"], numbers["text.out_audio_context"]
    assert_close(head(video, audio), numbers["duration_head.out_seconds"], tolerance["duration_head"])
    assert_close(head(video), numbers["duration_head.out_seconds_video_only"], tolerance["duration_head"])


@pytest.mark.parametrize("generation", ["2.5"])
@torch.no_grad()
def test_the_gemma_of_2_5(one_of: Any, numbers: Numbers, tolerance: dict[str, float]) -> None:
    files = one_of("transformer", "text-encoder")
    text_encoder = files.load("text_encoder", torch.float32)
    # the numbers were made with rotary frequencies that had been rounded to bfloat16 with everything else
    text_encoder.to(torch.bfloat16).float()
    mask = numbers["gemma.attention_mask"]
    output = text_encoder.model.language_model(
        input_ids=numbers["gemma.input_ids"], attention_mask=mask, output_hidden_states=True, use_cache=False
    )
    ours, theirs = torch.stack(output.hidden_states, dim=-1), numbers["gemma.out_hidden_states"]
    assert_close(ours[mask.bool()], theirs[mask.bool()], tolerance["gemma"])
    assert text_encoder.lm_head.weight is text_encoder.model.language_model.embed_tokens.weight
    assert files.parameters("text_encoder") == files.load("text_encoder", torch.bfloat16).num_parameters() + 3


@pytest.mark.parametrize("generation", ["2.5"])
def test_the_tokenizer_of_2_5(one_of: Any) -> None:
    tokenizer = one_of("transformer", "text-encoder").tokenizer()
    tokens = tokenizer(["a cat"], padding="max_length", max_length=8, truncation=True)
    assert tokens.attention_mask == [[0, 0, 1, 1, 1, 1, 1, 1]]
    assert tokens.input_ids[0][:3] == [tokenizer.pad_token_id] * 2 + [tokenizer.bos_token_id]


@pytest.fixture(scope="module")
def gemma_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gemma_3(tmp_path_factory.mktemp("models") / "gemma-3-tiny")


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_a_gemma_3_beside_the_file(checkpoints: Find, gemma_3: Path, generation: str) -> None:
    files = OriginalFiles([checkpoints(f"ltx-{generation}-tiny-fp8-plain.safetensors")], gemma_3)
    assert files.parts() == {"transformer", "connectors", "text_encoder"}
    text_encoder = files.load("text_encoder", torch.float32)
    assert files.parameters("text_encoder") == text_encoder.num_parameters()
    assert files.tokenizer().padding_side == "left"


def test_a_tokenizer_beside_the_text_encoder(checkpoints: Find, gemma_3: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").symlink_to(gemma_3)
    (tmp_path / "tokenizer").symlink_to(gemma_3)
    files = OriginalFiles([checkpoints("ltx-2.0-tiny-fp8-plain.safetensors")], tmp_path / "text_encoder")
    assert files.tokenizer().padding_side == "left"


# What is refused, each with its own words.

FP8 = "ltx-2.3-tiny-fp8-scaled.safetensors"
GATE = "model.diffusion_model.transformer_blocks.0.attn1.to_gate_logits.weight"


@pytest.fixture
def edited(checkpoints: Find, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a test checkpoint with a change to its tensors or to what its metadata says."""

    def write(
        name: str,
        tensors: Callable[[Numbers], Any] = lambda tensors: tensors,
        config: Callable[[dict[str, Any]], Any] = lambda config: config,
        **metadata: str,
    ) -> Path:
        path = checkpoints(name)
        with safe_open(path, "pt") as file:
            about = dict(file.metadata()) | metadata
        values = load_file(path)
        tensors(values)
        sections = json.loads(about.get("config", "{}"))
        config(sections)
        save_file(values, tmp_path / name, about | {"config": json.dumps(sections)})
        return tmp_path / name

    return write


def test_an_unknown_weight(edited: Callable[..., Path]) -> None:
    path = edited(FP8, lambda tensors: tensors.update({"model.diffusion_model.extra.weight": torch.zeros(2)}))
    with pytest.raises(NotReady, match=f"{FP8} has weights this server does not understand: extra.weight"):
        OriginalFiles([path])


def test_a_weight_of_no_part(edited: Callable[..., Path]) -> None:
    path = edited(FP8, lambda tensors: tensors.update({f"optimizer.{i}": torch.zeros(2) for i in range(5)}))
    with pytest.raises(NotReady, match=r"does not understand: optimizer\.0, optimizer\.1, optimizer\.2 and 2 more"):
        OriginalFiles([path])


def test_a_missing_weight(edited: Callable[..., Path]) -> None:
    path = edited(FP8, lambda tensors: tensors.pop(GATE))
    with pytest.raises(NotReady, match=r"lacks weights: transformer_blocks\.0\.attn1\.to_gate_logits\.weight"):
        OriginalFiles([path])


def test_a_weight_of_another_shape(edited: Callable[..., Path]) -> None:
    key = GATE.replace("blocks.0", "blocks.1")
    path = edited(FP8, lambda tensors: tensors.update({key: tensors[key][:, :-1].contiguous()}))
    with pytest.raises(NotReady, match=r"other shapes .*: transformer_blocks.1.*to_gate_logits.weight \[2, 63\] inst"):
        OriginalFiles([path])


def test_a_weight_that_is_no_number_of_ours(edited: Callable[..., Path]) -> None:
    path = edited(FP8, lambda tensors: tensors.update({GATE: tensors[GATE].to(torch.int8)}))
    with pytest.raises(NotReady, match=r"to_gate_logits\.weight stored as int8"):
        OriginalFiles([path])


def test_a_gemma_4_with_a_weight_too_few(edited: Callable[..., Path], checkpoints: Find) -> None:
    path = edited(SPLIT.format("text-encoder"), lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(NotReady, match=r"lacks weights: model\.language_model\.norm\.weight"):
        OriginalFiles([checkpoints(SPLIT.format("transformer")), path])


def test_a_gemma_3_with_a_weight_too_few(checkpoints: Find, gemma_3: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gemma_3, tmp_path / "gemma")
    weights = load_file(folder / "model.safetensors")
    del weights[next(key for key in weights if key.endswith("layers.1.mlp.down_proj.weight"))]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotReady, match=r"lacks weights: model\.language_model\.layers\.1\.mlp\.down_proj"):
        OriginalFiles([checkpoints(FP8)], folder)


@pytest.mark.parametrize(
    "change",
    [
        {"positional_embedding_max_pos": [20]},
        {"audio_positional_embedding_max_pos": 20},
        {"num_layers": "three"},
        {"caption_channels": "32"},
    ],
)
def test_a_configuration_of_another_form(edited: Callable[..., Path], change: dict[str, Any]) -> None:
    path = edited(FP8, config=lambda config: config["transformer"].update(change))
    with pytest.raises(NotReady, match=rf"{FP8} could not be loaded: \w+Error"):
        OriginalFiles([path])


def test_quantisation_told_in_another_form(edited: Callable[..., Path]) -> None:
    with pytest.raises(NotReady, match=f"{FP8} could not be loaded: AttributeError"):
        OriginalFiles([edited(FP8, _quantization_metadata=json.dumps({"layers": ["x"]}))])


def test_a_text_encoder_that_is_named_twice_is_read_once(checkpoints: Find, tmp_path: Path) -> None:
    text_encoder = checkpoints(SPLIT.format("text-encoder"))
    (tmp_path / "again.safetensors").symlink_to(text_encoder)
    paths = [checkpoints(SPLIT.format("transformer")), tmp_path / "again.safetensors"]
    assert "text_encoder" in OriginalFiles(paths, text_encoder).parts()


def test_another_quantisation(edited: Callable[..., Path]) -> None:
    path = edited(FP8, _quantization_metadata=json.dumps({"layers": {"a": {"format": "nvfp4"}}}))
    with pytest.raises(NotReady, match="is quantised in a way this server does not understand: a"):
        OriginalFiles([path])


def test_a_scale_for_every_channel(edited: Callable[..., Path]) -> None:
    key = GATE.replace("blocks.0", "blocks.1") + "_scale"
    path = edited(FP8, lambda tensors: tensors.update({key: torch.ones(2, 1)}))
    with pytest.raises(NotReady, match="several scales for one weight"):
        OriginalFiles([path])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rope_type": "interleaved"}, r"config\.transformer\.rope_type = 'interleaved'"),
        ({"qk_norm": "layer_norm"}, r"config\.transformer\.qk_norm = 'layer_norm'"),
        ({"caption_channels": 33}, r"config\.transformer\.caption_channels = 33"),
        ({"text_encoder_norm_type": "none"}, r"config\.transformer\.text_encoder_norm_type = 'none'"),
    ],
)
def test_a_configuration_that_is_not_supported(
    edited: Callable[..., Path], change: dict[str, Any], complaint: str
) -> None:
    path = edited(FP8, config=lambda config: config["transformer"].update(change))
    with pytest.raises(NotReady, match=f"{FP8} has {complaint}, which this server does not support"):
        OriginalFiles([path])


@pytest.mark.parametrize("key", ["connector_positional_embedding_max_pos", "num_layers", "rope_type"])
def test_a_configuration_that_says_too_little(edited: Callable[..., Path], key: str) -> None:
    path = edited(FP8, config=lambda config: config["transformer"].pop(key))
    with pytest.raises(NotReady, match=rf"{FP8} does not say config\.transformer\.{key}"):
        OriginalFiles([path])


def test_a_configuration_that_says_more(edited: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    OriginalFiles([edited(FP8, config=lambda config: config["transformer"].update(novelty=1))])
    assert f"{FP8}: nothing reads config.transformer.novelty" in caplog.text


def test_no_configuration(edited: Callable[..., Path]) -> None:
    with pytest.raises(NotReady, match=rf"{FP8} does not say config\.transformer"):
        OriginalFiles([edited(FP8, config=lambda config: config.clear())])


def test_an_upscaler_in_time(edited: Callable[..., Path]) -> None:
    path = edited("ltx-2.3-upscaler-tiny.safetensors", config=lambda config: config.update(temporal_upsample=True))
    with pytest.raises(NotReady, match=r"config\.temporal_upsample = True"):
        OriginalFiles([path])


def test_two_generations(checkpoints: Find) -> None:
    paths = [checkpoints(f"ltx-{name}.safetensors") for name in ("2.3-tiny-fp8-plain", "2.0-upscaler-tiny")]
    with pytest.raises(
        NotReady, match=r"not of one checkpoint: ltx-2\.3-.* is of LTX-2\.3, ltx-2\.0-.* is of LTX-2\.0"
    ):
        OriginalFiles(paths)


def test_a_generation_from_the_configuration(edited: Callable[..., Path]) -> None:
    assert OriginalFiles([edited(FP8, model_version="")]).generation == "2.3"


def test_a_generation_to_come(edited: Callable[..., Path]) -> None:
    with pytest.raises(NotReady, match=r"is of LTX-3\.0\.0, which this server does not know"):
        OriginalFiles([edited(FP8, model_version="3.0.0")])


def test_two_transformers(checkpoints: Find) -> None:
    paths = [checkpoints(f"ltx-2.3-tiny-fp8-{kind}.safetensors") for kind in ("plain", "scaled")]
    with pytest.raises(NotReady, match=r"plain.safetensors and .*scaled.safetensors both hold the") as caught:
        OriginalFiles(paths)
    assert caught.value.hint == "take one of them away"


def test_a_part_that_is_not_there(checkpoints: Find) -> None:
    with pytest.raises(NotReady, match=f"there is no audio vae in {FP8}"):
        OriginalFiles([checkpoints(FP8)]).load("audio_vae", torch.float32)


@pytest.mark.parametrize("name", [FP8, "ltx-2.5-tiny-transformer.safetensors"])
def test_no_text_encoder(checkpoints: Find, name: str) -> None:
    files = OriginalFiles([checkpoints(name)])
    assert "text_encoder" not in files.parts()
    for use in (lambda: files.load("text_encoder", torch.float32), files.tokenizer):
        with pytest.raises(NotReady, match=f"there is no text encoder with {name}") as caught:
            use()
        assert "LTX2_TEXT_ENCODER" in str(caught.value.hint)


def test_no_text_projection(checkpoints: Find) -> None:
    files = OriginalFiles([checkpoints(SPLIT.format("transformer"))])
    with pytest.raises(NotReady, match="the text projection that belongs to the connectors") as caught:
        files.load("connectors", torch.float32)
    assert "LTX2_TEXT_ENCODER" in str(caught.value.hint)


def test_the_text_encoder_of_2_5_for_2_3(checkpoints: Find) -> None:
    name = SPLIT.format("text-encoder")
    with pytest.raises(NotReady, match=f"{name} holds a text encoder the way LTX-2.5 has it, not LTX-2.3"):
        OriginalFiles([checkpoints(FP8)], checkpoints(name))


def test_a_gemma_3_for_2_5(checkpoints: Find, gemma_3: Path) -> None:
    both = [checkpoints(SPLIT.format(name)) for name in ("transformer", "text-encoder")]
    with pytest.raises(NotReady, match=r"is a Gemma3, but LTX-2\.5 reads prompts with Gemma4Unified"):
        OriginalFiles(both, gemma_3)
    with pytest.raises(NotReady, match="'gemma-3-tiny' has no text projection"):
        OriginalFiles(both[:1], gemma_3)


def test_a_gemma_3_of_another_size(checkpoints: Find, gemma_3: Path, tmp_path: Path) -> None:
    config = json.loads((gemma_3 / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotReady, match="32 wide with 2 layers makes 96 features, not 128"):
        OriginalFiles([checkpoints(FP8)], tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "does not hold a Gemma4Unified"),
        ({"text_config": {"hidden_size": 32, "num_hidden_layers": 4}}, "4 layers of 32 make 160 features, not 128"),
        ({"gemma_version": "gemma4-31b"}, "was trained with gemma4-12b-ltx-v1, but .* holds gemma4-31b"),
    ],
)
def test_another_gemma_4(
    edited: Callable[..., Path], checkpoints: Find, change: dict[str, Any], complaint: str
) -> None:
    name = SPLIT.format("text-encoder")
    with safe_open(checkpoints(name), "pt") as file:
        config = json.loads(file.metadata()["gemma_config"])
    path = edited(name, gemma_config=json.dumps(config | change))
    with pytest.raises(NotReady, match=complaint):
        OriginalFiles([checkpoints(SPLIT.format("transformer")), path])


def test_a_gemma_4_nobody_can_build(edited: Callable[..., Path], checkpoints: Find) -> None:
    name = SPLIT.format("text-encoder")
    with safe_open(checkpoints(name), "pt") as file:
        config = json.loads(file.metadata()["gemma_config"])
    config["text_config"]["layer_types"] = ["unknown"] * 3
    paths = [checkpoints(SPLIT.format("transformer")), edited(name, gemma_config=json.dumps(config))]
    with pytest.raises(NotReady, match="has a gemma_config no Gemma can be built from"):
        OriginalFiles(paths)


def test_a_tokenizer_that_is_damaged(edited: Callable[..., Path], checkpoints: Find) -> None:
    path = edited(SPLIT.format("text-encoder"), lambda tensors: tensors["tokenizer_json"].fill_(0))
    with pytest.raises(NotReady, match=r"the tokenizer in .* is damaged"):
        OriginalFiles([checkpoints(SPLIT.format("transformer")), path]).tokenizer()
