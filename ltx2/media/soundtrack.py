"""A waveform into the AAC stream of an MP4, exactly as long as the pictures it goes with."""

from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer

from ltx2.errors import Internal
from ltx2.media.audio import LAYOUTS, Waveform, audio_frame, change_rate, fit

_BIT_RATES = {1: 128_000, 2: 192_000}
_BITS_A_SAMPLE = 6
"""AAC allows 6144 bits a channel for 1024 samples."""
_PIECE = 1024
_FALLBACK_RATE = 48_000


def encodable(waveform: Waveform, seconds: Fraction) -> Waveform:
    """The sound as AAC takes it, cut or filled with silence to ``seconds``.

    What is not a finite number becomes silence, what is beyond ±1 is clipped. The sample rate is kept if
    AAC has it and becomes 48 kHz otherwise.

    Raises:
        Internal: it is not [1 or 2 channels, samples] at a positive rate.
    """
    shape, rate = waveform.samples.shape, waveform.sample_rate
    if len(shape) != 2 or shape[0] not in LAYOUTS or rate <= 0:
        raise Internal(f"a sound of shape {shape} at {rate} Hz cannot be written")
    fitted = fit(waveform, 0, seconds)
    np.nan_to_num(fitted.samples, copy=False, nan=0, posinf=0, neginf=0)
    np.clip(fitted.samples, -1, 1, out=fitted.samples)
    if rate in (av.Codec("aac", "w").audio_rates or ()):
        return fitted
    return fit(change_rate(fitted, _FALLBACK_RATE), 0, seconds)


class SoundTrack:
    """The AAC stream of one MP4, written piece by piece."""

    def __init__(self, container: OutputContainer, waveform: Waveform) -> None:
        """Add the stream, for a sound made :func:`encodable`, to a container that has no packets yet."""
        self._container = container
        self._samples = waveform.samples
        self._rate = waveform.sample_rate
        self._done = 0
        channels = self._samples.shape[0]
        self._stream = container.add_stream("aac", rate=self._rate, layout=LAYOUTS[channels])
        self._stream.bit_rate = min(_BIT_RATES[channels], _BITS_A_SAMPLE * self._rate * channels)
        self._stream.codec_context.time_base = Fraction(1, self._rate)

    def write_until(self, seconds: Fraction) -> None:
        """Encode and mux up to a time, or as far as there is sound."""
        while self._done < min(self._samples.shape[1], seconds * self._rate):
            frame = audio_frame(self._samples[:, self._done : self._done + _PIECE], self._rate)
            frame.pts = self._done
            frame.time_base = Fraction(1, self._rate)
            self._done += frame.samples
            self._container.mux(self._stream.encode(frame))

    def write_rest(self) -> None:
        """Encode and mux all that remains."""
        self.write_until(Fraction(self._samples.shape[1], self._rate))
        self._container.mux(self._stream.encode())
