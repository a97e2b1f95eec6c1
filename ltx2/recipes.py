"""What each checkpoint wants: steps, sigmas, guidance, image compression, sampler.

The figures are those of the official LTX-2 release 1.2.0. Pure data and arithmetic: no torch here.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

Generation = Literal["2.0", "2.3", "2.5"]
Kind = Literal["dev", "distilled"]
Sampler = Literal["euler", "euler_ancestral"]

DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
"""The schedule the distilled checkpoints were made for: 8 steps."""
REFINE_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
"""The second stage of the two-stage pipelines: 3 steps from a renoised upscale."""
DEV_SHIFT = 2.05
"""The logarithm of the sigma shift; constant, whatever the number of tokens."""
DEV_TERMINAL = 0.1
"""The last sigma above zero of a dev schedule."""
ANCESTRAL_SEED_OFFSET = 10_000
"""The step noise of the ancestral sampler is drawn from the request's seed plus this."""

NEGATIVE_PROMPT = (
    "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, "
    "grainy texture, poor lighting, flickering, motion blur, distorted proportions, unnatural skin tones, "
    "deformed facial features, asymmetrical face, missing facial features, extra limbs, disfigured hands, "
    "wrong hand count, artifacts around text, inconsistent perspective, camera shake, incorrect depth of "
    "field, background too sharp, background clutter, distracting reflections, harsh shadows, inconsistent "
    "lighting direction, color banding, cartoonish rendering, 3D CGI look, unrealistic materials, uncanny "
    "valley effect, incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze direction, "
    "mismatched lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, "
    "off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, awkward "
    "pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, flat lighting, "
    "inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)
"""The official default. The same string as diffusers' DEFAULT_NEGATIVE_PROMPT; a test compares them."""


@dataclass(frozen=True)
class Scales:
    """How strongly each guidance pulls on one stream. The defaults are neutral: no guidance."""

    cfg: float = 1.0
    """Towards the prompt and away from the negative prompt; 1 is off."""
    stg: float = 0.0
    """Away from the same model with self-attention switched off in some blocks; 0 is off."""
    modality: float = 1.0
    """Away from the same model with sound and picture deaf to each other; 1 is off."""
    rescale: float = 0.0
    """How much of the unguided standard deviation is restored afterwards; 0 is off."""


NEUTRAL = Scales()


@dataclass(frozen=True)
class Recipe:
    """The defaults of one checkpoint."""

    generation: Generation
    kind: Kind
    steps: int
    video: Scales
    audio: Scales
    stg_blocks: tuple[int, ...]
    image_crf: int
    """x264 CRF of the round trip a conditioning image goes through: the model was trained on such stills."""
    sampler: Sampler

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The ``steps + 1`` noise levels of a schedule, from 1 down to 0."""
        return distilled_sigmas(steps) if self.kind == "distilled" else dev_sigmas(steps)


def _dev(generation: Generation, steps: int, block: int, crf: int) -> Recipe:
    return Recipe(
        generation=generation,
        kind="dev",
        steps=steps,
        video=Scales(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7),
        audio=Scales(cfg=7.0, stg=1.0, modality=3.0, rescale=0.7),
        stg_blocks=(block,),
        image_crf=crf,
        sampler="euler",
    )


def _distilled(dev: Recipe, sampler: Sampler = "euler") -> Recipe:
    return replace(dev, kind="distilled", steps=8, video=NEUTRAL, audio=NEUTRAL, sampler=sampler)


_DEV = {"2.0": _dev("2.0", 40, 29, 33), "2.3": _dev("2.3", 30, 28, 33), "2.5": _dev("2.5", 30, 28, 18)}
_DISTILLED = {
    "2.0": _distilled(_DEV["2.0"]),
    "2.3": _distilled(_DEV["2.3"]),
    "2.5": _distilled(_DEV["2.5"], "euler_ancestral"),
}


def recipe_for(generation: Generation, kind: Kind) -> Recipe:
    """The recipe of a checkpoint."""
    return (_DEV if kind == "dev" else _DISTILLED)[generation]


def dev_sigmas(steps: int) -> tuple[float, ...]:
    """The shifted schedule of the dev checkpoints, stretched so that the last step starts at 0.1."""
    if steps == 1:
        return (1.0, 0.0)  # there is nothing to stretch between one noise level and itself
    shift = math.exp(DEV_SHIFT)
    linear = [1 + (1 / steps - 1) * i / (steps - 1) for i in range(steps)]
    shifted = [shift / (shift + 1 / s - 1) for s in linear]
    stretch = (1 - shifted[-1]) / (1 - DEV_TERMINAL)
    return (*(1 - (1 - s) / stretch for s in shifted), 0.0)


def distilled_sigmas(steps: int) -> tuple[float, ...]:
    """The distilled schedule, interpolated linearly over the step index when ``steps`` is not 8."""
    last = len(DISTILLED_SIGMAS) - 1
    if steps == last:
        return DISTILLED_SIGMAS
    sigmas = []
    for step in range(steps + 1):
        position = step * last / steps
        left = min(int(position), last - 1)
        low, high = DISTILLED_SIGMAS[left], DISTILLED_SIGMAS[left + 1]
        sigmas.append(low + (high - low) * (position - left))
    return tuple(sigmas)
