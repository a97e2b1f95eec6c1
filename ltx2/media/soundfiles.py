"""A waveform into a sound file: WAV and FLAC of 16 bits, MP3."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final

import soundfile

from ltx2.errors import Canceled
from ltx2.formats import OutputFormat
from ltx2.media.audio import Waveform
from ltx2.media.partial import written_beside
from ltx2.media.soundtrack import encodable
from ltx2.media.tags import append_to_wav

_SUBTYPES: Final[Mapping[OutputFormat, str]] = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III"}
"""libsndfile's names."""
_QUALITY: Final[Mapping[OutputFormat, Mapping[str, object]]] = {
    # LAME's V2: about 190 kbit/s for stereo at 48 kHz
    "mp3": {"bitrate_mode": "VARIABLE", "compression_level": 0.2}
}
_RATES: Final[Mapping[OutputFormat, frozenset[int]]] = {
    "mp3": frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000})
}
"""Samples a second, where not all can be."""
_PIECE: Final = 2**16


def write_sound(
    path: Path,
    waveform: Waveform,
    *,
    output_format: OutputFormat,
    seconds: Fraction,
    cancelled: Callable[[], bool],
    comment: str | None = None,
    finish: Callable[[Path], None] | None = None,
) -> int:
    """Write a sound alone. Whatever goes wrong, no part of it is left, and a file of that name stays as it was.

    Args:
        path: the file to make or replace; its folder exists.
        waveform: one or two channels.
        output_format: wav, flac or mp3.
        seconds: it is cut or filled with silence to this length.
        cancelled: asked every few seconds of sound.
        comment: in ASCII.
        finish: called with the complete file before it gets its name, and may replace it.

    Returns:
        Samples a second of the file.

    Raises:
        Canceled: ``cancelled()`` answered True.
        StorageFull: the disk, the quota or the largest allowed file is full.
        Internal: the sound is not what was announced.
    """
    sound = encodable(waveform, seconds, _RATES.get(output_format))
    kind = {"format": output_format.upper(), "subtype": _SUBTYPES[output_format], **_QUALITY.get(output_format, {})}
    with written_beside(path) as partial:
        _write(partial, sound, kind, comment if output_format != "wav" else None, cancelled)
        if comment is not None and output_format == "wav":
            append_to_wav(partial, comment)
        if finish is not None:
            finish(partial)
    return sound.sample_rate


def _write(
    path: Path,
    sound: Waveform,
    kind: Mapping[str, object],
    comment: str | None,
    cancelled: Callable[[], bool],
) -> None:
    with path.open("xb", buffering=0) as file:
        sink = _Sink(file)
        try:
            with soundfile.SoundFile(sink, "w", sound.sample_rate, len(sound.samples), **kind) as writer:
                if comment is not None:
                    writer.comment = comment
                for first in range(0, sound.samples.shape[1], _PIECE):
                    if cancelled():
                        raise Canceled("the request was canceled while its sound was written")
                    writer.write(sound.samples[:, first : first + _PIECE].T)
        except (soundfile.LibsndfileError, AssertionError):
            # it says in many ways, or not at all, that less was written than was given
            sink.check()
            raise
        sink.check()


class _Sink:
    """A file for libsndfile, whose callbacks cannot raise: the first error is kept, and nothing written after it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest and self._error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data) - len(rest)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
