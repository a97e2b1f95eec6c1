import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltx2.geometry import audio_latent_frames, exact_fps
from ltx2.model.schedule import dev_sigmas, distilled_sigmas, sigmas_for
from ltx2.recipes import DISTILLED_SIGMAS


def test_dev_sigmas_are_the_official_ones_to_the_last_bit(goldens: Path) -> None:
    golden = json.loads((goldens / "schedule.json").read_text())["dev_sigmas"]
    assert golden
    for steps, sigmas in golden.items():
        assert torch.equal(torch.tensor(dev_sigmas(int(steps))), torch.tensor(sigmas))


def test_audio_latent_frames_are_the_official_ones(goldens: Path) -> None:
    golden = json.loads((goldens / "schedule.json").read_text())["audio_latent_frames"]
    assert golden
    for case, frames in golden.items():
        num_frames, fps = case.split("@")
        assert audio_latent_frames(int(num_frames), exact_fps(float(fps))) == frames
    assert audio_latent_frames(49, Fraction(24000, 1001)) == golden["49@23.976"]


@pytest.mark.parametrize("kind", ["dev", "distilled"])
@pytest.mark.parametrize("steps", [1, 2, 5, 8, 30, 100])
def test_every_schedule_falls_from_1_to_0(kind: str, steps: int) -> None:
    sigmas = sigmas_for(kind, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(1, abs=1e-6)
    assert sigmas[-1] == 0
    assert list(sigmas) == sorted(set(sigmas), reverse=True)


def test_distilled_sigmas_at_8_steps_are_the_curve_itself() -> None:
    assert distilled_sigmas(8) == DISTILLED_SIGMAS


def test_distilled_sigmas_are_interpolated_over_the_step_index() -> None:
    # step 1 of 4 lies on point 2 of 8; step 1 of 16 in the middle of points 0 and 1
    assert distilled_sigmas(4) == tuple(DISTILLED_SIGMAS[i] for i in (0, 2, 4, 6, 8))
    assert distilled_sigmas(16)[1] == pytest.approx((1.0 + 0.99375) / 2)
    # step 4 of 5 lies at 6.4: 0.725 + 0.4 * (0.421875 - 0.725)
    assert distilled_sigmas(5)[4] == pytest.approx(0.725 + 0.4 * (0.421875 - 0.725))


@pytest.mark.parametrize(
    ("steps", "step", "sigma"),
    [
        (5, 1, 1.0 - 1.6 * 0.00625),  # lies at 1.6, where the curve is straight
        (30, 3, 1.0 - 0.8 * 0.00625),  # at 0.8
        (30, 20, 0.909375 + (0.725 - 0.909375) / 3),  # at 5 1/3
        (40, 36, 0.8 * 0.421875),  # at 7.2: four fifths of the way from the last sigma to 0 are left
    ],
)
def test_other_numbers_of_distilled_steps_lie_on_the_same_curve(steps: int, step: int, sigma: float) -> None:
    sigmas = distilled_sigmas(steps)
    assert len(sigmas) == steps + 1
    assert sigmas[step] == pytest.approx(sigma)
