"""The figures of a quality report, measured while a clip is written.

They have to cost next to nothing beside encoding: of a picture some ten thousand pixels are looked at, and a sound
goes once through FFmpeg's meter of loudness.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from ltx2.media.audio import LAYOUTS, Waveform, audio_frame, fit

_SAMPLES: Final = 20_000
"""At most about so many pixels of a frame are looked at, evenly spread."""
_CELL: Final = 4
"""Of these pixels each way are compared as one, so that noise averages out."""
_CHANGE: Final = 3
"""Steps of 255 by which a cell differs on average where something moves. What comes of one still latent differs from
frame to frame by rounding and a little noise, one step or so; an edge that moves by one pixel makes many."""
_CHANGED: Final = 0.002
"""Share of the cells that has to change. A mouth that speaks is larger in all but the widest shots, the glitter that a
decoder may make of a fine texture is smaller."""
_BLACK: Final = 16
"""Luma below which a pixel is black to the eye, on a screen that is not in the dark."""
_BLACK_PIXELS: Final = 0.98
"""Share of the pixels of a black frame that are. FFmpeg's blackdetect has the same."""
_CRUSHED: Final = 1
_BURNT: Final = 254
"""Luma up to which, and from which on, there can be no detail."""

_WINDOW_SECONDS: Final = Fraction(1, 20)
_SILENT_DBFS: Final = -60.0
"""Below this a window is silent, by its root mean square: lower than the noise of a quiet room in a recording."""
_UNHEARD_LUFS: Final = -70.0
"""R128 counts nothing that is quieter, and FFmpeg says this of a sound that has nothing to count."""
_PIECE: Final = 2**16


class PictureMeter:
    """Sees the frames of one clip in order."""

    def __init__(self, width: int, height: int) -> None:
        self._stride = max(1, math.ceil(math.sqrt(width * height / _SAMPLES)))
        self._last: NDArray[np.int16] | None = None
        self._frames = self._still = self._black = 0
        self._clipped = 0.0

    def see(self, frames: NDArray[np.uint8]) -> None:
        """Look at the next frames, RGB ``[n, height, width, 3]``."""
        for frame in frames:
            self._see(_luma(frame[:: self._stride, :: self._stride]))

    def _see(self, luma: NDArray[np.int16]) -> None:
        self._frames += 1
        self._black += bool(np.mean(luma < _BLACK) >= _BLACK_PIXELS)
        self._clipped += float(np.mean((luma <= _CRUSHED) | (luma >= _BURNT)))
        if self._last is None or _differs(luma, self._last):
            # compared with the last that did, not with the one before: what moves slowly gets there, noise never does
            self._last = luma
        else:
            self._still += 1

    def figures(self) -> dict[str, float | None]:
        """Those of the pictures, by their names in the report."""
        return {
            "frozen_frames": _share(self._still, self._frames - 1),
            "black_frames": _share(self._black, self._frames),
            "clipped_pixels": _share(self._clipped, self._frames),
        }


def sound_figures(sound: Waveform, seconds: Fraction) -> dict[str, float | None]:
    """The figures of a sound, by their names in the report.

    Args:
        sound: as it was made, not yet cut or filled to the length of the pictures; one or two channels.
        seconds: the length of the pictures.
    """
    samples = fit(sound, 0, seconds).samples
    np.nan_to_num(samples, copy=False, nan=0, posinf=0, neginf=0)
    peak = float(np.abs(samples).max(initial=0))
    heard = Waveform(samples.clip(-1, 1), sound.sample_rate)
    return {
        "loudness_lufs": _loudness(heard),
        "peak_dbfs": None if peak == 0 else round(20 * math.log10(peak), 2),
        "silence": _silence(heard),
        "audio_video_seconds": round(float(seconds - Fraction(sound.samples.shape[1], sound.sample_rate)), 4),
    }


def _share(part: float, whole: int) -> float | None:
    return round(part / whole, 4) if whole > 0 else None


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Of BT.709, 0 … 255."""
    red, green, blue = (pixels[..., channel].astype(np.uint16) for channel in range(3))
    return ((54 * red + 183 * green + 19 * blue) >> 8).astype(np.int16)


def _differs(luma: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
    height, width = (size - size % _CELL for size in luma.shape)
    change = np.abs(luma[:height, :width] - other[:height, :width])
    cells = change.reshape(height // _CELL, _CELL, width // _CELL, _CELL).sum(axis=(1, 3))
    return bool(np.mean(cells > _CHANGE * _CELL**2) > _CHANGED)


def _silence(sound: Waveform) -> float | None:
    """Share of the time whose windows are silent in all channels."""
    length = sound.samples.shape[1]
    starts = np.arange(0, length, max(1, round(_WINDOW_SECONDS * sound.sample_rate)))
    if not len(starts):
        return None
    lengths = np.diff(starts, append=length)
    energy = np.add.reduceat(np.square(sound.samples, dtype=np.float64), starts, axis=1)
    is_silent = (energy / lengths).max(axis=0) < 10 ** (_SILENT_DBFS / 10)
    return _share(float(lengths[is_silent].sum()), length)


def _loudness(sound: Waveform) -> float | None:
    """Integrated, in LUFS, by FFmpeg's meter for EBU R128. One channel counts as one, so it is 3 LU below both."""
    graph, rate = Graph(), sound.sample_rate
    source = graph.add_abuffer(
        sample_rate=rate, format="fltp", layout=LAYOUTS[len(sound.samples)], time_base=Fraction(1, rate)
    )
    meter, sink = graph.add("ebur128", "metadata=1:framelog=quiet"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    loudness = _UNHEARD_LUFS
    for first in range(0, sound.samples.shape[1], _PIECE):
        frame = audio_frame(sound.samples[:, first : first + _PIECE], rate)
        frame.pts, frame.time_base = first, Fraction(1, rate)
        source.push(frame)
        # every tenth of a second has the loudness of all before it
        loudness = _latest(graph, loudness)
    source.push(None)
    loudness = _latest(graph, loudness)
    return round(loudness, 2) if loudness > _UNHEARD_LUFS else None


def _latest(graph: Graph, loudness: float) -> float:
    for frame in _ready(graph):
        loudness = float(frame.metadata.get("lavfi.r128.I", loudness))
    return loudness


def _ready(graph: Graph) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
