"""A waveform as files can hold it, and into the sound stream of a video, exactly as long as its pictures."""

from collections.abc import Set as AbstractSet
from fractions import Fraction
from typing import Final, cast

import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

from ltx2.errors import Internal
from ltx2.media.audio import LAYOUTS, Waveform, audio_frame, change_rate, fit
from ltx2.media.containers import SoundCodec

_PIECE: Final = 1024
_FALLBACK_RATE: Final = 48_000


def encodable(waveform: Waveform, seconds: Fraction, rates: AbstractSet[int] | None) -> Waveform:
    """The sound as an encoder takes it, cut or filled with silence to ``seconds``.

    What is not a finite number becomes silence, what is beyond ±1 is clipped. The sample rate is kept if it
    is among ``rates`` (None: all are) and becomes 48 kHz otherwise.

    Raises:
        Internal: it is not [1 or 2 channels, samples] at a positive rate.
    """
    shape, rate = waveform.samples.shape, waveform.sample_rate
    if len(shape) != 2 or shape[0] not in LAYOUTS or rate <= 0:
        raise Internal(f"a sound of shape {shape} at {rate} Hz cannot be written")
    fitted = fit(waveform, 0, seconds)
    np.nan_to_num(fitted.samples, copy=False, nan=0, posinf=0, neginf=0)
    np.clip(fitted.samples, -1, 1, out=fitted.samples)
    if rates is None or rate in rates:
        return fitted
    return fit(change_rate(fitted, _FALLBACK_RATE), 0, seconds)


class SoundTrack:
    """The sound stream of one video, written piece by piece."""

    def __init__(self, container: OutputContainer, waveform: Waveform, codec: SoundCodec) -> None:
        """Add the stream, for a sound made :func:`encodable`, to a container that has no packets yet."""
        self._container = container
        self._samples = waveform.samples
        self._rate = waveform.sample_rate
        self._done = 0
        channels = self._samples.shape[0]
        stream = container.add_stream(codec.encoder, rate=self._rate, layout=LAYOUTS[channels])
        self._stream = cast("AudioStream", stream)
        self._stream.bit_rate = min(codec.bit_rates[channels], codec.bits_a_sample * self._rate * channels)
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
