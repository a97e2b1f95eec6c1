"""From the decoder's tensor to an MP4: post-processing, encoding and muxing.

Stock is what the LTX-2 pipelines of diffusers do with ``output_type="np"`` and their examples with the
result: ``VideoProcessor.postprocess_video``, then ``encode_video``. The latter has no x264 settings and so
takes x264's own: crf 23, preset medium. Ours is given the same. Both start from the same float32 tensor.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import encode_video
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from bench.measure import Row, cost
from ltx2.media.audio import Waveform
from ltx2.media.video import write_video
from ltx2.model.decode import to_uint8_chunks

WIDTH, HEIGHT, NUM_FRAMES, FPS = 1280, 704, 121, 24
SAMPLE_RATE = 48_000


@dataclass(frozen=True)
class Decoded:
    """What a generation ends with, before it is a file."""

    video: Tensor
    """[1, 3, frames, height, width], -1 … 1."""
    sound: Tensor
    """[2, samples]."""


def rows() -> list[Row]:
    """CPU seconds, memory and wall seconds beside stock's."""
    stock, ours = cost(prepare, write_stock), cost(prepare, write_ours)
    name = f"post-process + mux, {NUM_FRAMES}x{HEIGHT}x{WIDTH} float32, crf 23 medium"
    return [
        Row(name, stock.cpu_seconds, ours.cpu_seconds, "CPU s", guard=2),
        Row(f"{name}: above the input", stock.peak_mb, ours.peak_mb, "MB", guard=8),
        Row(f"{name}: wall time", stock.wall_seconds, ours.wall_seconds, "s"),
    ]


def prepare() -> Decoded:
    """Slow waves that drift across the picture, a different way in each colour, and a rising tone."""
    video = torch.empty(1, 3, NUM_FRAMES, HEIGHT, WIDTH)
    x, y = torch.arange(WIDTH) / 90, torch.arange(HEIGHT) / 70
    for color in range(3):
        for frame in range(NUM_FRAMES):
            drift = frame * 0.06 * (color + 1)
            torch.outer(torch.cos(y - drift), torch.sin(x * (1 + 0.2 * color) + drift), out=video[0, color, frame])
    seconds = torch.arange(NUM_FRAMES * SAMPLE_RATE // FPS) / SAMPLE_RATE
    tone = 0.5 * torch.sin(2 * torch.pi * (220 + 40 * seconds) * seconds)
    return Decoded(video, torch.stack([tone, -tone]))


def write_stock(decoded: Decoded) -> None:
    video = VideoProcessor(vae_scale_factor=32).postprocess_video(decoded.video, output_type="np")
    _in_a_file(
        lambda path: encode_video(
            video[0], fps=FPS, output_path=str(path), audio=decoded.sound, audio_sample_rate=SAMPLE_RATE
        )
    )


def write_ours(decoded: Decoded) -> None:
    _in_a_file(
        lambda path: write_video(
            path,
            to_uint8_chunks(decoded.video),
            width=WIDTH,
            height=HEIGHT,
            fps=Fraction(FPS),
            num_frames=NUM_FRAMES,
            audio=Waveform(np.asarray(decoded.sound), SAMPLE_RATE),
            crf=23,
            preset="medium",
        )
    )


def _in_a_file(write: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "clip.mp4")
