"""Clips whose length was left open, to a sound that they follow."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from ltx2.errors import InvalidRequest
from ltx2.request import AudioTrack, GenerationRequest, Keyframe
from ltx2.settings import Settings
from ltx2.studio.intake import take_in


def sound(samples: int) -> bytes:
    """Silence at 16 kHz."""
    file = BytesIO()
    soundfile.write(file, np.zeros(samples, np.float32), 16_000, format="WAV")
    return file.getvalue()


def image() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def settled(track: AudioTrack, samples: int = 16_000, most: int = 1441, **fields: Any) -> GenerationRequest:
    """A request as it is after its media were taken in."""
    request = GenerationRequest(**{"prompt": "x", "num_frames": None, "audio": track} | fields)
    sources = {"audio": sound(samples)} | {key.image: image() for key in request.keyframes}
    with ThreadPoolExecutor(1) as executor:
        return asyncio.run(take_in(request, sources, Settings(max_num_frames=most), executor))[0]


@pytest.mark.parametrize(
    ("start", "samples", "fps", "frames"),
    [
        (0.0, 16_000, 25.0, 25),
        (0.0, 16_001, 25.0, 26),
        (0.2, 16_000, 25.0, 20),
        (0.7, 16_000, 10.0, 3),
        (0.99, 16_000, 24.0, 1),
        (0.0, 160_000, 29.97, 300),
    ],
)
def test_a_clip_is_as_long_as_the_sound_it_follows(start: float, samples: int, fps: float, frames: int) -> None:
    assert settled(AudioTrack(source="audio", start=start), samples, fps=fps).num_frames == frames


def test_it_is_no_longer_than_clips_may_be() -> None:
    assert settled(AudioTrack(source="audio"), most=17).num_frames == 17


def test_a_sound_that_is_not_followed_says_nothing_of_the_length() -> None:
    assert settled(AudioTrack(source="audio", strength=0)).num_frames is None


def test_an_image_after_the_end_of_the_sound_is_named() -> None:
    late = (Keyframe(image="early", frame="last"), Keyframe(image="late", frame=25))
    with pytest.raises(InvalidRequest, match="frame 25 is beyond the last one of this clip, 24") as refused:
        settled(AudioTrack(source="audio"), keyframes=late)
    assert refused.value.field == "late"


def test_where_a_length_was_asked_for_it_stays() -> None:
    assert settled(AudioTrack(source="audio"), num_frames=9).num_frames == 9
