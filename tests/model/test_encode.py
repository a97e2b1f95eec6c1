from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ltx2.geometry import make_grid
from ltx2.media.audio import Waveform, fit
from ltx2.media.images import decode_image
from ltx2.model.components import Components
from ltx2.model.encode import encode_image, encode_sound, preprocess_image

CASES = (
    "exif6.jpg.crf0.64x96",
    "exif6.jpg.crf33.64x96",
    "rgb.png.crf0.96x64",
    "rgb.png.crf18.64x128",
    "rgb.png.crf33.96x64",
)


def test_all_cases_of_the_file_are_known(goldens: Path) -> None:
    assert {key for key in load_file(goldens / "image.safetensors") if ".crf" in key} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_preprocessed_images_are_the_official_ones(goldens: Path, case: str) -> None:
    golden = load_file(goldens / "image.safetensors")
    name, crf, size = case.rsplit(".", 2)
    width, height = (int(side) for side in size.split("x"))
    image = decode_image(golden[f"{name}.file"].numpy().tobytes(), field="image", max_megapixels=1)
    ours = preprocess_image(image, width, height, int(crf.removeprefix("crf")))
    assert ours.shape == golden[case].shape
    error = (ours - golden[case]).abs()
    # without the round trip the arithmetic is the same; with it, one level (2/255) for another x264
    assert float(error.max()) < (1e-5 if crf == "crf0" else 0.02)
    assert float(error.mean()) < (1e-6 if crf == "crf0" else 1e-3)


def test_an_image_becomes_one_latent_frame_of_the_grid(tiny: Callable[[str], Components]) -> None:
    grid = make_grid(100, 70, 9, Fraction(25))
    latents = encode_image(tiny("tiny"), np.full((40, 60, 3), 128, np.uint8), grid)
    assert latents.shape == (1, 128, 1, 3, 4)
    assert latents.dtype == torch.float32


@pytest.mark.parametrize(
    "fps", [Fraction(24), Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(60), Fraction(1)]
)
@pytest.mark.parametrize("num_frames", [1, 9, 49, 121])
def test_a_sound_gives_exactly_the_tokens_of_its_clip(
    tiny: Callable[[str], Components], fps: Fraction, num_frames: int
) -> None:
    grid = make_grid(64, 64, num_frames, fps)
    sound = Waveform(np.random.default_rng(1).standard_normal((1, 4410)).astype(np.float32) * 0.1, 22_050)
    tokens = encode_sound(tiny("tiny"), fit(sound, 0.0, grid.grid_seconds), grid)
    assert tokens.shape == (1, grid.audio_latent_frames, 128)
