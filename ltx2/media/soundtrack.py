"""A waveform into the AAC stream of an MP4, exactly as long as the pictures it goes with."""

import math
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

from ltx2.errors import Internal
from ltx2.media.audio import Waveform

_BIT_RATES = {1: 128_000, 2: 192_000}
_LAYOUTS = {1: "mono", 2: "stereo"}
_BITS_A_SAMPLE = 6
"""AAC allows 6144 bits a channel for 1024 samples."""
_PIECE = 1024
_FALLBACK_RATE = 48_000


def fit(waveform: Waveform, seconds: Fraction) -> Waveform:
    """The sound as it can be encoded.

    It is cut or filled with silence to ``seconds``, rounded to the nearest sample. What is not a finite
    number becomes silence, what is beyond ±1 is clipped. Its sample rate is kept if AAC knows it and
    becomes 48 kHz otherwise.

    Raises:
        Internal: it is not [1 or 2 channels, samples] at a positive rate.
    """
    samples, rate = waveform.samples, waveform.sample_rate
    if samples.ndim != 2 or samples.shape[0] not in _LAYOUTS or rate <= 0:
        raise Internal(f"a sound of shape {samples.shape} at {rate} Hz cannot be written")
    samples = samples[:, : math.ceil(seconds * rate)].astype(np.float32)
    samples = np.nan_to_num(samples, copy=False, nan=0, posinf=0, neginf=0).clip(-1, 1)
    if rate not in (av.Codec("aac", "w").audio_rates or ()):
        samples, rate = _resample(samples, rate, _FALLBACK_RATE), _FALLBACK_RATE
    length = round(seconds * rate)
    samples = np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))
    return Waveform(samples, rate)


class SoundTrack:
    """The AAC stream of one MP4, written piece by piece."""

    def __init__(self, container: OutputContainer, waveform: Waveform) -> None:
        """Add the stream, for a sound that fits, to a container that has no packets yet."""
        self._container = container
        self._samples = waveform.samples
        self._rate = waveform.sample_rate
        self._done = 0
        channels = self._samples.shape[0]
        self._stream = container.add_stream("aac", rate=self._rate, layout=_LAYOUTS[channels])
        self._stream.bit_rate = min(_BIT_RATES[channels], _BITS_A_SAMPLE * self._rate * channels)
        self._stream.codec_context.time_base = Fraction(1, self._rate)

    def write_until(self, seconds: Fraction) -> None:
        """Encode and mux up to a time, or as far as there is sound."""
        while self._done < min(self._samples.shape[1], seconds * self._rate):
            frame = _frame(self._samples[:, self._done : self._done + _PIECE], self._rate)
            frame.pts = self._done
            frame.time_base = Fraction(1, self._rate)
            self._done += frame.samples
            self._container.mux(self._stream.encode(frame))

    def write_rest(self) -> None:
        """Encode and mux all that remains."""
        self.write_until(Fraction(self._samples.shape[1], self._rate))
        self._container.mux(self._stream.encode())


def _frame(samples: NDArray[np.float32], rate: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=_LAYOUTS[samples.shape[0]])
    frame.sample_rate = rate
    return frame


def _resample(samples: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """Float samples [channels, samples] at another rate, in time with the original."""
    if not samples.shape[1]:
        return samples
    resampler = av.AudioResampler(format="fltp", layout=_LAYOUTS[samples.shape[0]], rate=target)
    pieces = [*resampler.resample(_frame(samples, rate)), *resampler.resample(None)]
    return np.concatenate([piece.to_ndarray() for piece in pieces], axis=1).clip(-1, 1)
