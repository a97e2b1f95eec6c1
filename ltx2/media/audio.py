"""From the bytes of a sound to its samples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Final

import av
import numpy as np
import soundfile

from ltx2.errors import AudioTooLong, LTX2Error, UnsupportedMedia
from ltx2.media.audiofile import READERS, Block, Samples
from ltx2.media.sniff import describe, kind, skip_id3

_USUAL_RATE: Final = 48_000
_MIN_VALUES: Final = 2**24
_FILTER: Final = 32
"""Samples of the lower rate that FFmpeg's resampler needs at least: for fewer it gives nothing at all."""
LAYOUTS: Final = {1: "mono", 2: "stereo"}
"""FFmpeg's name for a number of channels."""


@dataclass(frozen=True)
class Waveform:
    """A sound. ``samples`` is ``[channels, samples]`` with 1 or 2 channels, full scale is ±1."""

    samples: Samples
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Its duration."""
        return int(self.samples.shape[1]) / self.sample_rate


def decode_audio(data: bytes, *, field: str, max_seconds: float) -> Waveform:
    """The sound in a WAV, FLAC, OGG, MP3, AAC, M4A, MP4, MOV, MKA or WEBM file, at its own rate.

    One and two channels stay as they are. More are mixed to stereo: left and right as they are, centre and
    surround at 0.707, no LFE, the sum scaled down so that it cannot clip. Integers are scaled to ±1; float
    files are not clipped.

    Raises:
        UnsupportedMedia: it is something else, without sound, damaged, not between 4 and 384 kHz, or has
            values that are not numbers.
        AudioTooLong: more than ``max_seconds``, or, at unusual rates, more than the memory for that many
            seconds of 48 kHz stereo (64 MiB are always allowed).
    """
    name, found = kind(data), describe(data)
    if name not in READERS:
        raise UnsupportedMedia(
            f"expected a sound (WAV, FLAC, OGG, MP3, AAC, M4A, MP4, MKA or WEBM), found {found}", field=field
        )
    data = data[skip_id3(data) :]
    read, *others = READERS[name]
    try:
        try:
            return _decode(partial(read, data, name), found, max_seconds)
        except soundfile.LibsndfileError:
            if not others:
                raise
            return _decode(partial(others[0], data, name), found, max_seconds)
    except LTX2Error as error:
        error.field = field
        raise
    except MemoryError:
        raise AudioTooLong("this machine has not enough memory to decode it", field=field) from None
    except Exception:  # noqa: BLE001 - whatever a decoder trips over, it is these bytes
        raise UnsupportedMedia(f"{found} that is damaged or incomplete", field=field) from None


def is_too_long(length: int, channels: int, rate: int, max_seconds: float) -> bool:
    """Whether so many samples are more than so many seconds, or than the memory that these may have."""
    return length > max_seconds * rate or length * channels > max(max_seconds * _USUAL_RATE * 2, _MIN_VALUES)


def fit(waveform: Waveform, start_seconds: float, seconds: float | Fraction) -> Waveform:
    """The part from ``start_seconds`` on, cut or filled with silence to ``seconds``.

    Both are rounded to the nearest sample. A start behind the end gives silence.
    """
    rate = waveform.sample_rate
    start, length = round(start_seconds * rate), round(seconds * rate)
    part = waveform.samples[:, start : start + length]
    samples = np.zeros((part.shape[0], length), np.float32)
    samples[:, : part.shape[1]] = part
    return Waveform(samples, rate)


def change_rate(waveform: Waveform, rate: int) -> Waveform:
    """The same sound at another rate, in time with the original and clipped to ±1, by FFmpeg's resampler."""
    samples, old_rate = waveform.samples, waveform.sample_rate
    short_of = max(0, ceil(_FILTER * max(1.0, old_rate / rate)) - samples.shape[1])
    given = audio_frame(np.pad(samples, ((0, 0), (0, short_of))), old_rate)
    resampler = av.AudioResampler(format="fltp", layout=LAYOUTS[samples.shape[0]], rate=rate)
    frames = [*resampler.resample(given), *resampler.resample(None)]
    changed = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).clip(-1, 1)
    return Waveform(changed[:, : ceil(samples.shape[1] * rate / old_rate)] if short_of else changed, rate)


def audio_frame(samples: Samples, rate: int) -> av.AudioFrame:
    """Samples ``[1 or 2 channels, samples]`` as FFmpeg takes them."""
    layout = LAYOUTS[samples.shape[0]]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate
    return frame


def _decode(read: Callable[[], Iterator[Block]], found: str, max_seconds: float) -> Waveform:
    # Twice: a header may claim anything and a small file may unfold to hours, so the samples are counted
    # before memory is taken for them.
    rate = channels = length = 0
    for block in read():
        size = block.samples.shape[1]
        if length and (block.rate, min(2, len(block.samples))) != (rate, channels):
            raise ValueError("the format changes midway")
        rate, channels, length = block.rate, min(2, len(block.samples)), length + size
        if is_too_long(length, channels, rate, max_seconds):
            raise AudioTooLong(
                f"{found} of more than {length / rate:.5g} seconds at {rate} Hz, longer than allowed here",
                hint=f"send at most {max_seconds:g} seconds, less above 48 kHz; the server's limit is "
                "LTX2_MAX_AUDIO_SECONDS",
            )
        if not np.isfinite(block.samples).all():
            raise UnsupportedMedia(f"{found} with values that are not finite numbers")
    if not length:
        raise UnsupportedMedia(f"{found} without any samples")
    samples = np.empty((channels, length), np.float32)
    at = 0
    for block in read():
        mixed = _mix(block)
        samples[:, at : at + mixed.shape[1]] = mixed
        at += mixed.shape[1]
    if at != length:
        raise ValueError("two lengths")
    return Waveform(samples, rate)


def _mix(block: Block) -> Samples:
    if len(block.samples) <= 2:
        return block.samples
    weights = np.array([_weights(name) for name in block.order], np.float32).T
    mixed: Samples = weights @ block.samples / max(1, weights.sum(1).max())
    return mixed


def _weights(channel: str) -> tuple[float, float]:
    """How much of a channel goes to the left and to the right (ITU-R BS.775)."""
    if channel in ("FL", "FR"):
        return float(channel == "FL"), float(channel == "FR")
    if channel.startswith("LFE"):
        return 0.0, 0.0
    left, right = "L" in channel, "R" in channel
    return 0.5**0.5 * (left or not right), 0.5**0.5 * (right or not left)
