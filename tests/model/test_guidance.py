import pytest
import torch

from ltx2.model.guidance import Guide, combine
from ltx2.recipes import NEUTRAL, Scales

DEV = Scales(cfg=3, stg=1, modality=3, rescale=0.7)


@pytest.mark.parametrize(
    ("video", "audio", "passes"),
    [
        (NEUTRAL, NEUTRAL, ("cond",)),
        (Scales(cfg=3), NEUTRAL, ("cond", "uncond")),
        (NEUTRAL, Scales(cfg=3), ("cond", "uncond")),
        (Scales(stg=1), NEUTRAL, ("cond", "perturbed")),
        (NEUTRAL, Scales(modality=2), ("cond", "isolated")),
        (Scales(rescale=0.7), NEUTRAL, ("cond",)),
        (DEV, DEV, ("cond", "uncond", "perturbed", "isolated")),
        (Scales(cfg=0), NEUTRAL, ("cond", "uncond")),
    ],
)
def test_only_passes_that_a_scale_asks_for_are_run(video: Scales, audio: Scales, passes: tuple[str, ...]) -> None:
    assert Guide(video, audio, (1,)).passes == passes


def test_no_pass_is_perturbed_without_blocks() -> None:
    assert Guide(Scales(stg=1), NEUTRAL, ()).passes == ("cond",)


def test_each_term_pulls_away_from_its_pass() -> None:
    predictions = {
        "cond": torch.tensor([[[1.0, 3.0]]]),
        "uncond": torch.tensor([[[0.0, 1.0]]]),
        "perturbed": torch.tensor([[[2.0, 2.0]]]),
        "isolated": torch.tensor([[[1.0, 5.0]]]),
    }
    guided = combine(predictions, Scales(cfg=3, stg=2, modality=1.5))
    # 1 + 2·(1-0) + 2·(1-2) + 0.5·(1-1) = 1;  3 + 2·(3-1) + 2·(3-2) + 0.5·(3-5) = 8
    assert torch.equal(guided, torch.tensor([[[1.0, 8.0]]]))


def test_rescale_restores_the_standard_deviation() -> None:
    cond = torch.tensor([[[0.0, 1.0, 2.0]]])
    predictions = {"cond": cond, "uncond": torch.zeros_like(cond)}
    guided = combine(predictions, Scales(cfg=3, rescale=1))
    assert torch.allclose(guided.std(), cond.std())
    half = combine(predictions, Scales(cfg=3, rescale=0.5))
    assert torch.allclose(half, cond * 3 * (0.5 / 3 + 0.5))


def test_a_neutral_stream_is_left_alone_whatever_the_other_needs() -> None:
    predictions = {"cond": torch.ones(1, 2, 3), "uncond": torch.zeros(1, 2, 3)}
    assert combine(predictions, Scales(rescale=0.7)) is predictions["cond"]
