"""What each video format is: its container, its codecs and what the muxer is told. Data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

import av

from ltx2.formats import OutputFormat
from ltx2.media.gif import final_delay

_FASTEST_CLOCK: Final = 2**24
"""Ticks a second. Old players read durations as 32 bits: 256 seconds fit."""


@dataclass(frozen=True)
class SoundCodec:
    """How a sound track is coded."""

    encoder: str
    rates: frozenset[int]
    """Samples a second; other sounds become 48 kHz."""
    bit_rates: Mapping[int, int]
    """Bits a second, by the number of channels."""
    bits_a_sample: int
    """The most it can take, of one channel."""


@dataclass(frozen=True)
class Timing:
    """What muxers want to know of a clip beforehand."""

    fps: Fraction
    num_frames: int
    sample_rate: int | None


@dataclass(frozen=True)
class Container:
    """One kind of video file."""

    muxer: str
    """FFmpeg's name."""
    pictures: Literal["h264", "vp9", "gif"]
    sound: SoundCodec | None
    """None where there cannot be any."""
    options: Callable[[Timing], dict[str, str]]


def _isobmff(timing: Timing) -> dict[str, str]:
    return {"movflags": "+faststart", "movie_timescale": str(_clock(timing.fps, timing.sample_rate or 1000))}


def _mov(timing: Timing) -> dict[str, str]:
    # the older kind of tags ends at 64 KiB, and FFmpeg writes what is longer wrongly
    return {**_isobmff(timing), "movflags": "+faststart+use_metadata_tags"}


def _webm(_timing: Timing) -> dict[str, str]:
    # without bitexact its tracks would be numbered at random, and no file be like another of the same frames
    return {"cues_to_front": "1", "fflags": "+bitexact"}


def _gif(timing: Timing) -> dict[str, str]:
    return {"loop": "0", "final_delay": str(final_delay(timing.num_frames, timing.fps))}


def _clock(fps: Fraction, sample_rate: int) -> int:
    """Ticks a second in which the duration of the pictures is whole, and that of the sound if it can be."""
    ticks = math.lcm(fps.numerator, sample_rate)
    return ticks if ticks <= _FASTEST_CLOCK else fps.numerator


# AAC allows 6144 bits a channel for 1024 samples.
_AAC: Final = SoundCodec("aac", frozenset(av.Codec("aac", "w").audio_rates or ()), {1: 128_000, 2: 192_000}, 6)
# Opus has other rates, but decoders give 48 kHz whatever went in.
_OPUS: Final = SoundCodec("libopus", frozenset({48_000}), {1: 96_000, 2: 160_000}, 6)

CONTAINERS: Final[Mapping[OutputFormat, Container]] = {
    "mp4": Container("mp4", "h264", _AAC, _isobmff),
    "mov": Container("mov", "h264", _AAC, _mov),
    "webm": Container("webm", "vp9", _OPUS, _webm),
    "gif": Container("gif", "gif", None, _gif),
}
