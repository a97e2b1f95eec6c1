"""The parts that are done do what they were trained for, on scenes they have not seen."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ltx2.model.conditioning import pack_audio
from ltx2.model.mel import SAMPLE_RATE, log_mel
from training import captions, frozen, pictures, senses, sounds
from training.captions import COLOUR_NAMES, KEPT_BACK, SHAPE_NAMES
from training.world import STEADY, Scene

Load = Callable[[str], Any]
FRAMES = 17
DECIBELS = 24.0


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Parts as somebody has them who never trained anything."""
    nowhere = tmp_path_factory.mktemp("runs")

    @cache
    def loaded(part: str) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(frozen, "RUNS", nowhere)
            patched.setattr(frozen, "FROZEN", nowhere / "frozen")
            return frozen.load(part)

    return loaded


def unseen(count: int) -> list[Scene]:
    rng = np.random.default_rng(77)
    return [Scene.draw(rng, unseen=True) for _ in range(count)]


def clip(scene: Scene) -> tuple[np.ndarray, torch.Tensor]:
    seen = pictures.frames(scene, 160, 96, np.arange(FRAMES, dtype=np.float32), 24)
    return seen, torch.from_numpy(seen).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@torch.inference_mode()
def test_the_video_vae_keeps_what_is_seen_and_when(load: Load) -> None:
    vae, alike, apart, spreads = load("vae"), [], [], []
    for scene in unseen(10):
        seen, given = clip(scene)
        latents = vae.encode(given).latent_dist.mode()
        spreads.append(frozen.normalised(vae, latents).flatten(2))
        back = vae.decode(latents).sample[0].clamp(-1, 1).permute(1, 2, 3, 0)
        shown = ((back + 1) * 127.5).round().byte().numpy()
        sights = [senses.look(picture) for picture in shown]
        assert (senses.most(sights, "colour"), senses.most(sights, "ground")) == (scene.colour, scene.ground)
        alike.append(senses.psnr(shown, seen))
        # what a VAE would do that shows the first picture all the time
        apart.append(senses.psnr(np.broadcast_to(seen[:1], seen.shape), seen))
        if scene.motion in STEADY:
            assert alike[-1] > apart[-1]
    assert np.mean(alike) > DECIBELS
    # what the transformer sees has a spread of about 1
    assert float(torch.cat(spreads, 2).std()) == pytest.approx(1, abs=0.25)


@torch.inference_mode()
def test_the_audio_vae_keeps_tones_and_moments(load: Load) -> None:
    vae = load("audio_vae")
    for scene in unseen(8):
        mel = log_mel(torch.from_numpy(sounds.sound(scene, 1.0, SAMPLE_RATE)))[None]
        latents = vae.encode(mel).latent_dist.mode()
        assert pack_audio(latents).shape == (1, 26, 128)
        back = vae.decode(latents).sample
        wanted = mel[:, :, : back.shape[2]]
        assert float((back - wanted).abs().mean()) < 0.4
        # the loudest band of each loud moment
        loud = wanted[0, 0].max(1).values > -2
        assert float((back[0, 0].argmax(1) == wanted[0, 0].argmax(1))[loud].float().mean()) > 0.9


@torch.inference_mode()
def test_the_text_encoder_writes_prompts_out(load: Load) -> None:
    reader, tokenizer = load("reader"), AutoTokenizer.from_pretrained(frozen.PARTS / "tokenizer")
    rng, right = np.random.default_rng(5), []
    for scene in unseen(10):
        said = captions.caption(scene, rng, KEPT_BACK, whole=True).text
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"user prompt: {said}"}]
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer([asked], return_tensors="pt", return_token_type_ids=False)
        made = reader.text_encoder.generate(
            **tokens, max_new_tokens=48, do_sample=False, pad_token_id=0, eos_token_id=1
        )
        text = tokenizer.decode(made[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        named = f"{COLOUR_NAMES[scene.colour][0]} {SHAPE_NAMES[scene.shape][0]}"
        right.append(named in text and f"{COLOUR_NAMES[scene.ground][0]} background" in text)
    assert np.mean(right) >= 0.8


def test_the_parts_hold_nothing_of_the_machine_they_were_made_on() -> None:
    for file in frozen.PARTS.rglob("*.json"):
        assert str(Path.home()) not in file.read_text()
        assert str(Path(__file__).parents[2]) not in file.read_text()
