"""What a generation takes of a device's memory: the weights there, and what the parts need beside them.

Arithmetic alone, all in bytes. The figures of each generation are in :mod:`ltx2.model.memory`; how a model was placed
is :mod:`ltx2.model.placement`'s. This is here so that a server can say what a clip will take without the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ltx2.geometry import Grid
from ltx2.request import SIDES

Shape = tuple[int, int, int]
"""Width, height and frames."""
Precision = Literal["bf16", "fp8", "fp8-storage", "fp32"]
"""How weights are stored, and what is multiplied: fp8 multiplies float8, fp8-storage only stores it."""
DEQUANTISED = 16_384 * 4096 * 2
"""The largest weight in bf16, as it stands for a moment where float8 is only stored."""
FP8_TOKEN = 16_384 * 2
"""Per token, the widest activation a second time in bf16, on its way to float8."""


def pixels(grid: Grid) -> int:
    """Of all frames that are generated."""
    return grid.grid_width * grid.grid_height * grid.grid_frames


def tokens(grid: Grid) -> int:
    """What the transformer has to do with a clip, in video tokens; an audio token is half as wide."""
    return grid.video_tokens + grid.audio_latent_frames // 2


@dataclass(frozen=True)
class Decoder:
    """What a decoder of pictures needs in bf16."""

    pixel: int
    """For every pixel of every frame: of the clip, or of a tile."""
    tile: tuple[int, int, int]
    """Width, height and frames of a tile."""
    kept: int
    """Per pixel of the clip, held while a tile is decoded: finished tiles, and features that all tiles share."""
    joined: int
    """Per pixel of the clip, while the tiles are put together."""
    fixed: int

    def peak(self, grid: Grid, *, tiled: bool) -> int:
        """Most bytes at once, the pictures included."""
        if not tiled:
            return self.fixed + self.pixel * pixels(grid)
        width, height, frames = self.tile
        tile = min(grid.grid_width, width) * min(grid.grid_height, height) * min(grid.grid_frames, frames)
        return self.fixed + max(self.pixel * tile + self.kept * pixels(grid), self.joined * pixels(grid))


@dataclass(frozen=True)
class Activations:
    """What the parts of one generation need beside their weights, computing in bf16."""

    text: int
    """The text encoder over a prompt, with the hidden states of all layers."""
    connectors: int
    """The connectors, with the hidden states they are given."""
    token: int
    """The transformer, for each video token."""
    vae: Decoder
    diffusion_decoder: Decoder
    second: int
    """Audio VAE and vocoder, for each second of sound, in float32."""
    fixed: int = 40_000_000
    """What the transformer needs for the shortest clip."""

    def denoise(self, grid: Grid, precision: Precision) -> int:
        """One pass of the transformer, with one image more than the clip's own frames."""
        count = tokens(grid) + grid.latent_height * grid.latent_width
        fp8 = {"fp8": FP8_TOKEN * count, "fp8-storage": DEQUANTISED}
        return self.fixed + self.token * count + fp8.get(precision, 0)

    def sound(self, grid: Grid) -> int:
        """The sound of a clip, and the pictures that wait for it in bf16."""
        return round(self.second * grid.grid_seconds) + 6 * pixels(grid)


class Peaks(NamedTuple):
    """Most bytes on the device in each phase."""

    encode: int
    denoise: int
    decode: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a model, once placed, takes of its device's memory while it makes a clip."""

    held: int
    """Whatever is going on."""
    text_encoder: int
    """This and the following are what comes to the device when a part is at work; 0 where that stays there."""
    connectors: int
    transformer: int
    decoder: int
    """Of the pictures."""
    voice: int
    """The larger part of what decodes the sound."""
    activations: Activations
    diffuses: bool
    """Whether pictures are decoded by the diffusion decoder."""
    precision: Precision
    compute_bytes: int
    """Of a number outside float8."""
    available: int
    """All there is, without what is never planned with."""

    def peaks(self, grid: Grid) -> Peaks:
        """Of a clip. Images, sounds and the upsampler need less, in any phase, than what is counted."""
        text = self.text_encoder + self._bytes(self.activations.text)
        connectors = self.connectors + self._bytes(self.activations.connectors)
        denoise = self.transformer + self._bytes(self.activations.denoise(grid, self.precision))
        sound = self.voice + self.activations.sound(grid)
        decode = max(self._decoding(grid, tiled=self.is_tiled(grid)), sound)
        return Peaks(*(self.held + needed for needed in (max(text, connectors), denoise, decode)))

    def is_tiled(self, grid: Grid) -> bool:
        """Whether a clip's pictures must be decoded in tiles to fit."""
        return self.held + self._decoding(grid, tiled=False) > self.available

    def _bytes(self, activations: int) -> int:
        """Activations in bf16 as they are in this precision."""
        return activations * self.compute_bytes // 2

    def _decoding(self, grid: Grid, *, tiled: bool) -> int:
        decoder = self.activations.diffusion_decoder if self.diffuses else self.activations.vae
        return self.decoder + self._bytes(decoder.peak(grid, tiled=tiled))


def longest_below(num_frames: int, fits: Callable[[int], bool]) -> int:
    """The most frames below a number, 8k + 1 of them, that fit; 0 if none do."""
    return next(filter(fits, range((num_frames - 2) // 8 * 8 + 1, 0, -8)), 0)


def what_fits(shape: Shape, frames: int, fits: Callable[[Shape], bool]) -> str | None:
    """What to ask for instead of a clip that does not fit, in words; None where nothing is known to fit.

    Args:
        shape: that does not.
        frames: that do at the same size; 0 if none do.
        fits: whether another does.
    """
    width, height, num_frames = shape
    halved = width // 64 * 32, height // 64 * 32
    found = [f"{frames} frames at {width}x{height}"] if frames else []
    if min(halved) >= SIDES[0] and fits((*halved, num_frames)):
        found.append(f"{num_frames} frames at {halved[0]}x{halved[1]}")
    return " or ".join(found) + " should fit" if found else None
