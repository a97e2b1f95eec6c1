import time
from collections.abc import Callable

import pytest
import torch

from ltx2.geometry import AUDIO_LATENTS_PER_SECOND, SPATIAL_RATIO, TEMPORAL_RATIO
from ltx2.model.components import Components
from ltx2.model.prompts import MAX_TOKENS, encode_prompts, is_cut
from ltx2.model.tiny import TINY_MODELS, build_tiny

CPU = torch.device("cpu")
Tiny = Callable[[str], Components]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_geometry_is_the_real_one(tiny: Tiny, name: str) -> None:
    components = tiny(name)
    vae, audio_vae = components.vae, components.audio_vae
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (SPATIAL_RATIO, TEMPORAL_RATIO)
    transformer = components.transformer.config
    assert (transformer.in_channels, transformer.audio_in_channels, vae.config.latent_channels) == (128, 128, 128)
    assert transformer.vae_scale_factors == (8, 32, 32)
    with torch.inference_mode():
        assert vae.decode(torch.zeros(1, 128, 2, 2, 3)).sample.shape == (1, 3, 9, 64, 96)
        assert vae.encode(torch.zeros(1, 3, 9, 64, 96)).latent_dist.mode().shape == (1, 128, 2, 2, 3)
        mel = audio_vae.decode(torch.zeros(1, 8, AUDIO_LATENTS_PER_SECOND, 16)).sample
        assert mel.shape == (1, 2, 4 * AUDIO_LATENTS_PER_SECOND - 3, 64)
        rate = components.vocoder.config.output_sampling_rate
        assert components.vocoder(mel).shape == (1, 2, mel.shape[2] * rate // 100)
    assert rate == (24_000 if components.recipe.generation == "2.0" else 48_000)
    assert all(block < transformer.num_layers for block in components.recipe.stg_blocks)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_weights_are_the_same_every_time_and_global_randomness_is_left_alone(name: str) -> None:
    torch.manual_seed(1)
    one = build_tiny(name, CPU, torch.float32)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    other = build_tiny(name, CPU, torch.float32)
    for ours, theirs in zip(one.parts.values(), other.parts.values(), strict=True):
        for (key, weight), other_weight in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(weight, other_weight), key


def test_it_is_built_in_well_under_a_second() -> None:
    began = time.process_time()
    build_tiny("tiny", CPU, torch.float32)
    assert time.process_time() - began < 1


def test_bf16_but_for_the_vocoder() -> None:
    components = build_tiny("tiny", CPU, torch.bfloat16)
    dtypes = {type(module).__name__: next(module.parameters()).dtype for module in components.parts.values()}
    assert dtypes.pop("LTX2Vocoder") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


@pytest.mark.parametrize("name", TINY_MODELS)
@torch.inference_mode()
def test_prompts_are_encoded_as_the_whole_text_encoder_would(tiny: Tiny, name: str) -> None:
    components = tiny(name)
    tokens = components.tokenizer(
        ["a cat"], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    assert int(tokens.attention_mask.sum()) == 6  # <bos> and five bytes
    assert bool(tokens.attention_mask[0, -6:].all())  # padding is on the left
    whole = components.text_encoder(**tokens, output_hidden_states=True)
    video, audio, mask = components.connectors(torch.stack(whole.hidden_states, dim=-1), tokens.attention_mask)
    (ours,) = encode_prompts(components, "  a cat ")
    assert torch.equal(ours.video, video)
    assert torch.equal(ours.audio, audio)
    assert bool((mask == 1).all())  # which is why the transformer is given none


def test_prompts_differ(tiny: Tiny) -> None:
    with torch.inference_mode():
        assert not torch.allclose(*(contexts.video for contexts in encode_prompts(tiny("tiny"), "a cat", "a dog")))


def test_a_long_prompt_is_known_to_be_cut(tiny: Tiny) -> None:
    assert not is_cut(tiny("tiny"), "x" * (MAX_TOKENS - 1))
    assert is_cut(tiny("tiny"), "x" * MAX_TOKENS)
