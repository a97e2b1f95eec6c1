"""Which passes of the transformer a step needs, and how their predictions combine."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ltx2.model.conditioning import Stream
from ltx2.model.denoiser import Contexts, Denoiser, Perturbation
from ltx2.plan import Pass, passes_of
from ltx2.recipes import NEUTRAL, Scales


@dataclass(frozen=True)
class Guide:
    """The guidance of both streams over one generation."""

    video: Scales = NEUTRAL
    audio: Scales = NEUTRAL
    stg_blocks: tuple[int, ...] = ()

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What has to be run: the conditional pass, and each other one that any scale asks for."""
        return passes_of(self.video, self.audio, self.stg_blocks)

    def predict(
        self, denoiser: Denoiser, video: Stream, audio: Stream, sigma: float, positive: Contexts, negative: Contexts
    ) -> tuple[Tensor, Tensor]:
        """The guided clean tokens of both streams at noise level ``sigma``."""
        perturbation = Perturbation(self.stg_blocks, video=self.video.stg != 0, audio=self.audio.stg != 0)
        predictions = {
            name: denoiser(
                video,
                audio,
                sigma,
                negative if name == "uncond" else positive,
                perturbation=perturbation if name == "perturbed" else None,
                isolated=name == "isolated",
            )
            for name in self.passes
        }
        return (
            combine({name: both[0] for name, both in predictions.items()}, self.video),
            combine({name: both[1] for name, both in predictions.items()}, self.audio),
        )


def combine(predictions: Mapping[Pass, Tensor], scales: Scales) -> Tensor:
    """One stream's guided prediction.

    Args:
        predictions: clean tokens ``[1, T, 128]`` of each pass that was run; ``cond`` is always there.
        scales: the stream's guidance.
    """
    cond = predictions["cond"]
    guided = cond
    if scales.cfg != 1:
        guided = guided + (scales.cfg - 1) * (cond - predictions["uncond"])
    if scales.stg != 0 and "perturbed" in predictions:
        guided = guided + scales.stg * (cond - predictions["perturbed"])
    if scales.modality != 1:
        guided = guided + (scales.modality - 1) * (cond - predictions["isolated"])
    if scales.rescale != 0 and guided is not cond:
        # over all tokens and channels of the sample, given and appended ones included
        guided = guided * (scales.rescale * (cond.std() / guided.std()) + (1 - scales.rescale))
    return guided
