"""The loop with a denoiser whose answer is known, so that the result is arithmetic."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ltx2.errors import Canceled
from ltx2.model.conditioning import Stream, add_noise
from ltx2.model.denoiser import Contexts
from ltx2.model.guidance import Guide
from ltx2.model.sampler import denoise, euler, euler_ancestral

NOTHING = Contexts(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))


@dataclass(frozen=True)
class Knows:
    """Predicts the same clean tokens for each stream, whatever it is shown."""

    video: float
    audio: float

    def __call__(self, video: Stream, audio: Stream, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.full_like(video.tokens, self.video), torch.full_like(audio.tokens, self.audio)


def stream(clean: float, mask: float, tokens: int = 3) -> Stream:
    shape = (1, tokens, 2)
    given = torch.full(shape, clean)
    return Stream(
        tokens=torch.zeros(shape),
        clean=given,
        mask=torch.full((1, tokens, 1), mask),
        positions=torch.zeros(1, 1, tokens, 2),
        masked=mask != 1,
    )


def run(video: Stream, audio: Stream, sigmas: tuple[float, ...], **options: Any) -> tuple[Tensor, Tensor]:
    ends = denoise(Knows(2.0, -1.0), video, audio, sigmas, NOTHING, NOTHING, Guide(), **options)  # type: ignore[arg-type]
    return ends[0].tokens, ends[1].tokens


@pytest.mark.parametrize("ancestral", [False, True])
@pytest.mark.parametrize("mask", [1.0, 0.5, 0.25, 0.0])
def test_what_is_given_is_kept_by_the_share_of_its_mask_in_both_streams(mask: float, ancestral: bool) -> None:
    noise = torch.Generator().manual_seed(1) if ancestral else None
    video, audio = run(stream(10, mask), stream(20, mask), (1.0, 0.5, 0.0), step_noise=noise)
    assert torch.allclose(video, torch.tensor(2.0 * mask + 10 * (1 - mask)))
    assert torch.allclose(audio, torch.tensor(-1.0 * mask + 20 * (1 - mask)))


def test_one_euler_step_goes_its_share_of_the_way() -> None:
    # from 4 at noise 0.8 towards 2, down to noise 0.2: three quarters of the way
    assert float(euler(torch.tensor(4.0), torch.tensor(2.0), 0.8, 0.2)) == pytest.approx(2.5)


def test_an_ancestral_step_ends_at_the_right_level_of_noise() -> None:
    # a sample of level s is (1-s)·clean + s·noise: with clean 0 its deviation is s, before and after
    torch.manual_seed(0)
    noise, fresh = torch.randn(2, 200_000)
    sigma, sigma_next = 0.8, 0.5
    after = euler_ancestral(sigma * noise, torch.zeros(()), fresh, sigma, sigma_next)
    assert float(after.std()) == pytest.approx(sigma_next, rel=0.01)
    # with eta 1 part of the old noise is left, and part is new
    assert 0 < float((after * noise).mean()) < sigma_next


def test_an_ancestral_step_keeps_the_clean_part() -> None:
    clean = torch.tensor(3.0)
    sample = (1 - 0.8) * clean
    after = euler_ancestral(sample, clean, torch.zeros(()), 0.8, 0.5)
    assert float(after) == pytest.approx(float((1 - 0.5) * clean))


def test_noise_covers_the_start_as_far_as_the_mask_and_the_level_say() -> None:
    noise = torch.full((1, 3, 2), 100.0)
    assert torch.equal(add_noise(stream(10, 1.0), noise, 1.0).tokens, noise)
    assert torch.equal(add_noise(stream(10, 0.0), noise, 1.0).tokens, torch.full_like(noise, 10.0))
    assert torch.allclose(add_noise(stream(10, 0.25), noise, 1.0).tokens, torch.tensor(0.25 * 100 + 0.75 * 10))
    assert torch.allclose(add_noise(stream(10, 1.0), noise, 0.5).tokens, torch.tensor(50.0))


def test_steps_are_counted_and_a_cancel_is_seen_before_the_next_one() -> None:
    steps: list[int] = []
    run(stream(0, 1), stream(0, 1), (1.0, 0.6, 0.3, 0.0), on_step=steps.append)
    assert steps == [1, 2, 3]
    steps.clear()
    with pytest.raises(Canceled):
        run(stream(0, 1), stream(0, 1), (1.0, 0.6, 0.3, 0.0), on_step=steps.append, cancelled=lambda: len(steps) == 2)
    assert steps == [1, 2]
