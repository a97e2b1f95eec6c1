"""What each checkpoint wants: steps, sigmas, guidance, image compression, sampler.

The figures are those of the official LTX-2 release 1.2.0. Pure data.
"""

from dataclasses import dataclass, replace
from typing import Literal

Generation = Literal["2.0", "2.3", "2.5"]
Kind = Literal["dev", "distilled"]
Sampler = Literal["euler", "euler_ancestral"]

DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
"""The schedule the distilled checkpoints were made for: 8 steps."""
REFINE_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
"""The second stage of the two-stage pipelines: 3 steps from a renoised upscale, unguided plain Euler."""
TWO_STAGE_PIXELS = 1024 * 768
"""Larger pictures are made in two stages where nothing else was asked: their first stage has a quarter of the
tokens, and a 1280x704 clip takes less than half of the time it would in one."""
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


def fit_recipe(recipe: Recipe, num_layers: int) -> Recipe:
    """A recipe for a transformer of this depth: a miniature has no block 29 to perturb."""
    if all(block < num_layers for block in recipe.stg_blocks):
        return recipe
    return replace(recipe, stg_blocks=(num_layers // 2,))
