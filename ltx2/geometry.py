"""Frame, size and time arithmetic of LTX-2. Pure functions; each says which way it rounds.

LTX-2 denoises on a grid: one latent cell covers 32x32 pixels and, in time, 8 frames, except that the
first latent frame covers a single one. Callers may ask for any even size and any number of frames: the
next larger grid is generated, the size cropped around the centre and the tail of the frames trimmed.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

SPATIAL_RATIO = 32
"""Pixels per latent cell, in width and in height."""
TEMPORAL_RATIO = 8
"""Frames per latent frame, after the first."""
AUDIO_LATENTS_PER_SECOND = 25
"""16 kHz samples / hop of 160 / temporal downsampling of 4."""
TRAINED_SECONDS = 20
"""Clips longer than this (and a few frames) were not in the training data."""
SHORTEST_SECONDS = 1
"""Clips whose length is left to the model are not shorter than this, nor longer than those it was trained on."""

_NTSC_TOLERANCE = 0.005


@dataclass(frozen=True)
class Grid:
    """What is generated for an asked size and length, and how it is cut to what was asked."""

    width: int
    height: int
    num_frames: int
    """Asked width and height in pixels, and asked number of frames."""
    grid_width: int
    grid_height: int
    grid_frames: int
    """Generated width, height and frames: the next multiples of 32 (in two stages of 64) and the next 8k + 1."""
    fps: Fraction

    @property
    def latent_frames(self) -> int:
        return (self.grid_frames - 1) // TEMPORAL_RATIO + 1

    @property
    def latent_height(self) -> int:
        return self.grid_height // SPATIAL_RATIO

    @property
    def latent_width(self) -> int:
        return self.grid_width // SPATIAL_RATIO

    @property
    def halved(self) -> "Grid":
        """The grid of the first of two stages: half the width and height, nothing cut in space."""
        width, height = self.grid_width // 2, self.grid_height // 2
        return replace(self, width=width, height=height, grid_width=width, grid_height=height)

    @property
    def video_tokens(self) -> int:
        return self.latent_frames * self.latent_height * self.latent_width

    @property
    def audio_latent_frames(self) -> int:
        """Latent frames of the sound that goes with all generated frames, rounded to the nearest."""
        return audio_latent_frames(self.grid_frames, self.fps)

    @property
    def grid_seconds(self) -> float:
        """Duration of everything that is generated."""
        return float(self.grid_frames / self.fps)

    @property
    def seconds(self) -> float:
        """Duration of the asked clip."""
        return float(self.num_frames / self.fps)

    @property
    def top(self) -> int:
        """Rows cut away above the asked picture (an odd surplus is cut below)."""
        return (self.grid_height - self.height) // 2

    @property
    def left(self) -> int:
        """Columns cut away left of the asked picture (an odd surplus is cut right)."""
        return (self.grid_width - self.width) // 2


def make_grid(width: int, height: int, num_frames: int, fps: Fraction, *, stages: int = 1) -> Grid:
    """The grid on which a clip of the asked size (pixels) and length (frames) is generated.

    With two stages the first has half the size, so that the second must be a multiple of 64 pixels.
    """
    multiple = SPATIAL_RATIO * stages
    return Grid(
        width=width,
        height=height,
        num_frames=num_frames,
        grid_width=round_up(width, multiple),
        grid_height=round_up(height, multiple),
        grid_frames=round_up(num_frames - 1, TEMPORAL_RATIO) + 1,
        fps=fps,
    )


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below the value."""
    return -(-value // multiple) * multiple


def audio_latent_frames(num_frames: int, fps: Fraction) -> int:
    """Latent frames of the sound beside ``num_frames`` pictures, rounded to the nearest, at least one."""
    return max(1, round(float(AUDIO_LATENTS_PER_SECOND * num_frames / fps)))


def exact_fps(fps: float) -> Fraction:
    """The rational frame rate meant by a decimal one.

    23.976, 29.97 and 59.94 are the broadcast rates 24000/1001, 30000/1001 and 60000/1001; any other
    number is taken as it is written, as the nearest fraction with a denominator up to 1000.
    """
    nominal = round(fps * 1001 / 1000)
    broadcast = Fraction(nominal * 1000, 1001)
    if nominal in (24, 30, 48, 60, 120) and fps != round(fps) and abs(fps - float(broadcast)) < _NTSC_TOLERANCE:
        return broadcast
    return Fraction(fps).limit_denominator(1000)


def trained_frames(fps: Fraction) -> int:
    """The longest clip the model was trained on, in frames, rounded down."""
    return int(TRAINED_SECONDS * fps) + 4


def extend_frames(seconds: float, fps: Fraction) -> int:
    """How many frames a video that goes on for so long gets, rounded to the nearest; at least one."""
    return max(1, round(seconds * fps))
