import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltx2.model.mel import log_mel, resample

NAMES = ("16k-stereo", "44k1-mono", "48k-stereo", "8k-mono")


def test_all_cases_of_the_file_are_known(goldens: Path) -> None:
    assert {key.split(".")[0] for key in load_file(goldens / "mel.safetensors")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_log_mel_is_the_official_one(goldens: Path, name: str) -> None:
    golden = load_file(goldens / "mel.safetensors")
    waveform, rate = golden[f"{name}.waveform"], int(golden[f"{name}.sample_rate"])
    # mono becomes stereo before anything else, also in the pipeline: a convolution over two rows rounds otherwise
    mel = log_mel(resample(waveform.expand(2, -1), rate))
    expected = golden[f"{name}.log_mel"]
    assert mel.shape == expected.shape
    assert float((mel - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(("rate", "new_rate"), [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (22_050, 16_000)])
def test_resampling_keeps_a_tone(rate: int, new_rate: int) -> None:
    seconds, pitch = 0.5, 440.0
    tone = torch.sin(2 * math.pi * pitch * torch.arange(int(rate * seconds)) / rate)[None]
    resampled = resample(tone, rate, new_rate)
    assert resampled.shape == (1, math.ceil(tone.shape[1] * new_rate / rate))
    expected = torch.sin(2 * math.pi * pitch * torch.arange(resampled.shape[1]) / new_rate)[None]
    middle = slice(200, -200)  # the ends see silence beyond the sound
    assert float((resampled - expected)[:, middle].abs().max()) < 1e-2


@pytest.mark.parametrize("samples", [1, 268, 512, 513])
def test_the_shortest_sounds_have_a_spectrogram(samples: int) -> None:
    assert log_mel(torch.ones(2, samples)).shape == (2, max(samples, 513) // 160 + 1, 64)
