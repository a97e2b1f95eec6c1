"""The key maps against every key of the published full-size checkpoints: nothing left over, nothing missing."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltx2.errors import NotReady
from ltx2.model.keymaps import DIFFUSION_DECODER, DURATION_HEAD, KeyMap, rename_transformer
from ltx2.model.original import OriginalFiles
from ltx2.model.weights import fill, open_weights

Find = Callable[[str], Path]


def expand(key: str) -> list[str]:
    """All keys of a pattern with ranges: ``a.{0..2}.b`` → ``a.0.b``, ``a.1.b``, ``a.2.b``."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", key)
    ranges = [range(int(a), int(b) + 1) for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
    texts = pieces[::3]
    return [
        texts[0] + "".join(f"{number}{text}" for number, text in zip(numbers, texts[1:], strict=True))
        for numbers in itertools.product(*ranges)
    ]


def test_ranges_are_expanded() -> None:
    assert expand("a.{0..1}.b.{3..4}.c") == ["a.0.b.3.c", "a.0.b.4.c", "a.1.b.3.c", "a.1.b.4.c"]


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("transformer_blocks.0.attn1.q_norm.weight", "transformer_blocks.0.attn1.norm_q.weight"),
        ("transformer_blocks.7.audio_attn2.k_norm.weight", "transformer_blocks.7.audio_attn2.norm_k.weight"),
        (
            "transformer_blocks.0.scale_shift_table_a2v_ca_audio",
            "transformer_blocks.0.audio_a2v_cross_attn_scale_shift_table",
        ),
        ("transformer_blocks.0.scale_shift_table", "transformer_blocks.0.scale_shift_table"),
        ("adaln_single.linear.weight", "time_embed.linear.weight"),
        ("audio_adaln_single.linear.weight", "audio_time_embed.linear.weight"),
        ("audio_prompt_adaln_single.linear.weight", "audio_prompt_adaln.linear.weight"),
        ("av_ca_a2v_gate_adaln_single.linear.weight", "av_cross_attn_video_a2v_gate.linear.weight"),
        ("audio_patchify_proj.lora_A.weight", "audio_proj_in.lora_A.weight"),
        ("patchify_proj", "proj_in"),
        ("transformer_blocks.0.ff.net.0.proj.lora_B.weight", "transformer_blocks.0.ff.net.0.proj.lora_B.weight"),
    ],
)
def test_the_names_of_the_transformer(original: str, ours: str) -> None:
    assert rename_transformer(original) == ours


def convert(keymap: KeyMap, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(keymap.convert(tensors, tensors.__getitem__))


def test_what_is_stored_as_one_is_taken_apart() -> None:
    three = torch.arange(6.0).view(6, 1)
    for keymap, key, prefix in (
        (DIFFUSION_DECODER, "decoder.det_stages.0.1.attn.qkv.weight", "decoder.det_stages.0.1.attn."),
        (DURATION_HEAD, "duration_head.attention_pooler.cross_attn.in_proj_weight", "attention_pooler."),
    ):
        parts = convert(keymap, {key: three})
        assert list(parts) == [f"{prefix}to_{name}.weight" for name in "qkv"]
        assert torch.equal(torch.cat(list(parts.values())), three)


def test_gates_are_multiplied_into_the_linears_they_follow() -> None:
    block, gate = "decoder.diff_blocks.0.", torch.tensor([2.0, 3.0], dtype=torch.bfloat16)
    weight, bias = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)
    for name, linear, ours in (
        ("gate_msa", "attn.proj", "attn.to_out.0"),
        ("gate_mlp", "mlp.w_down", "mlp.w_down"),
        ("gate_ctx", "context_proj", "context_proj"),
    ):
        keys = {block + name: gate, f"{block}{linear}.weight": weight, f"{block}{linear}.bias": bias}
        converted = convert(DIFFUSION_DECODER, keys)
        assert converted[f"{block}{ours}.weight"].tolist() == [[2, 2], [3, 3]]
        assert converted[f"{block}{ours}.bias"].tolist() == [2, 3]
        assert len(converted) == 2


def test_a_gate_without_its_linear_is_not_lost() -> None:
    assert "decoder.gate_mlp" in convert(DIFFUSION_DECODER, {"decoder.gate_mlp": torch.ones(1)})


def test_what_nothing_uses_is_dropped() -> None:
    assert convert(DIFFUSION_DECODER, {"decoder.coarse_out.weight": torch.ones(1)}) == {}


COMPONENTS = {
    "ltx": ["transformer", "connectors", "text_projection", "video_vae", "audio_vae", "vocoder"],
    "upscaler": ["spatial_upscaler_x2"],
    "ltx-transformer": ["transformer", "connectors"],
    "gemma-with-projection": ["text_projection"],
    "video-vae": ["video_vae_diffusion"],
    "video-vae-conv": ["video_vae_conv"],
    "audio-vae": ["audio_vae", "vocoder"],
    "duration-head": ["duration_head"],
}
"""What is in which file."""
FILES = {
    "2.0": ["ltx", "upscaler"],
    "2.3": ["ltx", "upscaler"],
    "2.5": ["ltx-transformer", "gemma-with-projection", "video-vae", "video-vae-conv", "audio-vae", "duration-head"],
}
PARTS = {"transformer", "connectors", "vae", "audio_vae", "vocoder"}
DURATION_CONFIG = {"pooler_hidden_dim": 256, "num_queries": 1, "num_pooler_heads": 4, "mlp_hidden": 256}
"""Not in the key lists, which have the shapes."""


def write_header(path: Path, keys: dict[str, Any], config: dict[str, Any], generation: str) -> Path:
    """A file of which there is nothing but the header: what is not read need not be there."""
    header: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for key, (dtype, shape) in keys.items()
        for name in expand(key)
    }
    header["__metadata__"] = {"model_version": f"{generation}.0", "config": json.dumps(config)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


@pytest.mark.parametrize("generation", FILES)
def test_every_key_of_the_full_size(checkpoints: Find, tmp_path: Path, generation: str) -> None:
    listed = json.loads(checkpoints(f"keys-{generation}.json").read_text())
    configs = {
        "upscaler": listed.get("upscaler_config"),
        "video-vae": {"vae": listed["config"].get("vae (diffusion decoder file)")},
        "duration-head": listed["config"] | {"duration_head": DURATION_CONFIG},
    }
    paths = []
    for file in FILES[generation]:
        keys = {key: what for name in COMPONENTS[file] for key, what in listed["components"][name]["keys"].items()}
        path = tmp_path / f"{file}.safetensors"
        paths.append(write_header(path, keys, configs.get(file, listed["config"]), generation))
        stored = sum(listed["components"][name]["tensors"] for name in COMPONENTS[file])
        assert len(open_weights(path).tensors) == stored
    files = OriginalFiles(paths)
    assert files.parts() - PARTS == ({"diffusion_decoder", "duration_head"} if generation == "2.5" else {"upsampler"})
    assert files.num_layers == 48
    for part in files.parts():
        plan = files._plans[part]
        module = plan.build()
        weights = [item for held in plan.held for item in plan.keymap.convert(held.keys, held.shapes)]
        fill(module, weights, torch.bfloat16, source=part)
        assert files.parameters(part) == sum(tensor.numel() for tensor in module.state_dict().values())


def test_the_full_size_is_built_as_it_was_trained(checkpoints: Find, tmp_path: Path) -> None:
    listed = json.loads(checkpoints("keys-2.3.json").read_text())
    keys = {key: what for name in COMPONENTS["ltx"] for key, what in listed["components"][name]["keys"].items()}
    files = OriginalFiles([write_header(tmp_path / "ltx.safetensors", keys, listed["config"], "2.3")])
    assert files.parameters("transformer") == listed["components"]["transformer"]["parameters"]
    vae = files._plans["vae"].build()
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)
    strides = [block.upsamplers[0].stride for block in vae.decoder.up_blocks]
    assert strides == [(2, 2, 2), (2, 2, 2), (2, 1, 1), (1, 2, 2)]
    assert vae.config.decoder_spatial_padding_mode == vae.config.encoder_spatial_padding_mode == "zeros"
    connectors = files._plans["connectors"].build()
    assert connectors.config.text_proj_in_factor == 49
    assert connectors.config.connector_rope_base_seq_len == 4096
    assert (connectors.config.video_hidden_dim, connectors.config.audio_hidden_dim) == (4096, 2048)
    vocoder = files._plans["vocoder"].build()
    assert (vocoder.config.final_act_fn, vocoder.config.bwe_final_act_fn) == ("clamp", None)


def test_2_0_says_nothing_of_padding(checkpoints: Find, tmp_path: Path) -> None:
    listed = json.loads(checkpoints("keys-2.0.json").read_text())
    path = write_header(
        tmp_path / "vae.safetensors", listed["components"]["video_vae"]["keys"], listed["config"], "2.0"
    )
    vae = OriginalFiles([path])._plans["vae"].build()
    assert vae.config.decoder_spatial_padding_mode == "reflect"
    assert vae.config.encoder_spatial_padding_mode == "zeros"
    assert not vae.config.decoder_causal


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"timestep_conditioning": True}, r"config\.vae\.timestep_conditioning = True"),
        ({"norm_layer": "group_norm"}, r"config\.vae\.norm_layer = 'group_norm'"),
        ({"encoder_base_channels": 64}, r"config\.vae\.encoder_base_channels = 64"),
        ({"_class_name": "Another"}, r"config\.vae\._class_name = 'Another'"),
        ({"decoder_blocks": [["attn_res_x", {}]]}, r"config\.vae\.decoder_blocks = \['attn_res_x', {}\]"),
        ({"decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}]]}, r"config\.vae\.decoder_blocks = "),
        ({"encoder_blocks": [["res_x", {"num_layers": 1}]] * 2}, r"config\.vae\.encoder_blocks = "),
        ({"encoder_blocks": [["res_x", 4]]}, r"vae\.safetensors could not be loaded: AttributeError"),
    ],
)
def test_a_vae_that_is_not_supported(checkpoints: Find, tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    listed = json.loads(checkpoints("keys-2.0.json").read_text())
    config = {"vae": listed["config"]["vae"] | change}
    path = write_header(tmp_path / "vae.safetensors", listed["components"]["video_vae"]["keys"], config, "2.0")
    with pytest.raises(NotReady, match=complaint):
        OriginalFiles([path])


@pytest.mark.parametrize(
    ("section", "change", "complaint"),
    [
        ("vocoder", {"resblock": "2"}, r"config\.vocoder\.resblock = '2 with snake'"),
        ("vocoder", {"stereo": False}, r"config\.vocoder\.stereo = False"),
        ("audio_vae", {"model": None}, r"config\.audio_vae\.model = None"),
        ("audio_vae", {"preprocessing": {"stft": {"hop_length": 256}, "mel": {}}}, r"stft\.hop_length = 256"),
    ],
)
def test_a_sound_that_is_not_supported(
    checkpoints: Find, tmp_path: Path, section: str, change: dict[str, Any], complaint: str
) -> None:
    listed = json.loads(checkpoints("keys-2.0.json").read_text())
    config = {section: listed["config"][section] | change}
    path = write_header(tmp_path / "sound.safetensors", listed["components"][section]["keys"], config, "2.0")
    with pytest.raises(NotReady, match=complaint):
        OriginalFiles([path])
