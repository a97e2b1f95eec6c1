"""Videos whose every frame and sample is known: a smooth picture that moves slowly, and a steady tone."""

from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ltx2.media.audio import Waveform
from ltx2.media.video import write_video

RATE = 48_000
HERTZ = 440


def smooth(num_frames: int, width: int, height: int) -> np.ndarray:
    """``[n, height, width, 3]``: a soft wave of brightness that passes slowly, another one in each colour."""
    across, down = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    frames = []
    for index in range(num_frames):
        phases = [across + down / 2 + index / 60 + shift for shift in (0, 1 / 3, 2 / 3)]
        frames.append(np.stack([128 + 60 * np.sin(2 * np.pi * phase) for phase in phases], axis=-1))
    return np.rint(np.stack(frames)).astype(np.uint8)


def tone(seconds: float, level: float = 0.25) -> Waveform:
    """A steady sine in stereo."""
    wave = level * np.sin(2 * np.pi * HERTZ * np.arange(round(seconds * RATE)) / RATE)
    return Waveform(np.repeat(wave[None].astype(np.float32), 2, axis=0), RATE)


@cache
def video(num_frames: int, width: int = 64, height: int = 64, fps: int = 25, *, sound: bool = True) -> bytes:
    """An MP4 of both, as a caller would send it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "source.mp4"
        write_video(
            path,
            [smooth(num_frames, width, height)],
            width=width,
            height=height,
            fps=Fraction(fps),
            num_frames=num_frames,
            audio=tone(num_frames / fps) if sound else None,
            crf=10,
            preset="veryfast",
        )
        return path.read_bytes()
