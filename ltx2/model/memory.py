"""What an LTX-2 weighs, and what its parts need beside their weights. Arithmetic alone, all in bytes.

The peaks were traced over the full-size modules by ``python -m bench.memory``, which prints them beside these
formulas; a test traces again. They are those of the eager modules: attention in one kernel, one pass of the
transformer at a time, and a timestep for every token, which is what images and sounds ask for. A formula is never
below its trace and up to a fifth above it at the sizes clips have. What an allocator and a GPU's libraries need on
top is the reserve of :mod:`ltx2.model.placement`.
"""

from collections.abc import Mapping
from fractions import Fraction

from ltx2.footprint import Activations, Decoder, Precision
from ltx2.geometry import Grid, make_grid
from ltx2.model.parts import Part
from ltx2.recipes import Generation

TYPICAL_FPS = Fraction(24)
"""The frame rate that the length of a sound is reckoned with."""

_CODECS_AND_VOICE: dict[Part, int] = {"audio_vae": 53_248_402, "upsampler": 497_867_904, "text_encoder": 12_187_325_040}
PARAMETERS: Mapping[Generation, Mapping[Part, int]] = {
    "2.0": _CODECS_AND_VOICE
    | {
        "transformer": 18_876_174_592,
        "connectors": 1_431_475_200,
        "vae": 1_222_479_857,
        "vocoder": 55_592_802,
    },
    "2.3": _CODECS_AND_VOICE
    | {
        "transformer": 18_988_838_144,
        "connectors": 3_172_227_584,
        "vae": 726_106_225,
        "vocoder": 129_085_032,
    },
    "2.5": _CODECS_AND_VOICE
    | {
        "transformer": 18_987_859_200,
        "connectors": 3_172_227_584,
        "vae": 726_106_225,
        "vocoder": 129_085_032,
        "diffusion_decoder": 417_133_872,
        "duration_head": 1_903_361,
    },
}
"""Weights of the full-size parts: those of the official checkpoints (``keys-*.json`` of the goldens), the connectors
with the text projection, and Gemma 3 12B with its vision tower. 2.5's Gemma 4 is taken to be as large."""

FP8_SHARE: Mapping[Part, float] = {"transformer": 0.934, "text_encoder": 0.882}
"""The share of weights that can be float8: the linears of the blocks, but for the transformer's first and last."""
OUTSIDE_SHARE: Mapping[Part, float] = {"transformer": 0.023, "text_encoder": 0.118}
"""The share of weights outside the blocks: embeddings, and what all blocks share."""
BLOCKS = 48
"""Of the transformer as of the text encoder."""
BLOCKS_AT_ONCE = 2
"""Blocks on the device while they stream: the one at work and the next."""


def weight_bytes(part: Part, parameters: int, precision: Precision, compute_bytes: int) -> int:
    """What a part weighs.

    Args:
        part: the vocoder is always in float32.
        parameters: how many weights it has.
        precision: of the linears that can be float8.
        compute_bytes: bytes of a weight that is not float8.
    """
    if part == "vocoder":
        return 4 * parameters
    share = FP8_SHARE.get(part, 0.0) if precision in ("fp8", "fp8-storage") else 0.0
    return round(parameters * (share + (1 - share) * compute_bytes))


def streamed_bytes(part: Part, parameters: int, compute_bytes: int) -> int:
    """What of a part is on the device while its blocks stream through. Two of them, not in float8 at worst."""
    return round(parameters * compute_bytes * (OUTSIDE_SHARE[part] + BLOCKS_AT_ONCE / BLOCKS))


def typical_grid(width: int, height: int, num_frames: int) -> Grid:
    """The grid of a clip at the typical frame rate."""
    return make_grid(width, height, num_frames, TYPICAL_FPS)


def _vae(pixel: int) -> Decoder:
    return Decoder(pixel, tile=(512, 512, 1_000_000), kept=2, joined=21, fixed=20_000_000)


_DIFFUSION_DECODER = Decoder(366, tile=(768, 768, 80), kept=17, joined=0, fixed=800_000_000)
"""Fixed: what :mod:`ltx2.model.neighborhood` gathers at once."""
_LATER = Activations(
    text=780_000_000,
    connectors=1_750_000_000,
    token=370_000,
    vae=_vae(105),
    diffusion_decoder=_DIFFUSION_DECODER,
    second=50_000_000,
)
ACTIVATIONS: Mapping[Generation, Activations] = {
    "2.0": Activations(
        text=780_000_000,
        connectors=2_550_000_000,
        token=321_000,
        vae=_vae(118),
        diffusion_decoder=_DIFFUSION_DECODER,
        second=35_000_000,
    ),
    "2.3": _LATER,
    "2.5": _LATER,
}
MINIATURE = Activations(
    text=10_000_000,
    connectors=10_000_000,
    token=7_100,
    vae=_vae(16),
    diffusion_decoder=Decoder(60, tile=(768, 768, 80), kept=17, joined=0, fixed=100_000_000),
    second=10_000_000,
    fixed=4_000_000,
)
"""Of the embedded models."""
