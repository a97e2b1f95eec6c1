"""Draws ``start.jpg``, plays ``chime.ogg`` and puts both into ``test_input.json``.

Run it from anywhere: ``python examples/make.py``. The files are ours, free to use.
"""

import base64
import json
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HERE = Path(__file__).parent
WIDTH, HEIGHT = 288, 512
RATE = 48_000
SECONDS = 2.0
NOTES = ((0.0, 523.25), (0.35, 659.26), (0.7, 783.99), (1.05, 1046.5))
"""When each note of the chime begins, in seconds, and its pitch in Hz."""


def draw() -> Image.Image:
    """Evening over the sea: a low sun, its path on the water, two headlands."""
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    sky = np.array([28, 34, 84]) * (1 - rows) + np.array([255, 150, 90]) * rows
    picture = Image.fromarray(np.broadcast_to(sky, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    horizon = 330
    pen.ellipse((104, 240, 184, 320), fill=(255, 236, 170))
    picture = picture.filter(ImageFilter.GaussianBlur(2))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, horizon, WIDTH, HEIGHT), fill=(40, 52, 98))
    noise = np.random.default_rng(2)
    for row in range(horizon + 4, HEIGHT, 5):
        half = 18 + (row - horizon) * 0.35 + noise.uniform(-8, 8)
        middle = 144 + noise.uniform(-5, 5)
        pen.line((middle - half, row, middle + half, row), fill=(255, 190, 120), width=2)
    pen.polygon([(0, 300), (60, 270), (120, 330), (0, 330)], fill=(18, 20, 44))
    pen.polygon([(288, 288), (230, 262), (180, 330), (288, 330)], fill=(24, 24, 52))
    return picture.filter(ImageFilter.GaussianBlur(0.7))


def play() -> NDArray[np.float32]:
    """Four bells, one after the other, panned from left to right: ``[samples, 2]``."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    sound = np.zeros((len(time), 2))
    for number, (begin, pitch) in enumerate(NOTES):
        since = np.clip(time - begin, 0, None)
        bell = np.sin(2 * np.pi * pitch * since) + 0.4 * np.sin(2 * np.pi * 2.76 * pitch * since) * np.exp(-9 * since)
        bell *= np.exp(-3.5 * since) * (time >= begin) * np.clip(since / 0.004, 0, 1)
        right = number / (len(NOTES) - 1)
        sound += bell[:, None] * np.array([1 - 0.7 * right, 0.3 + 0.7 * right])
    return (0.35 * sound).astype(np.float32)


def main() -> None:
    image, sound = HERE / "start.jpg", HERE / "chime.ogg"
    draw().save(image, quality=85)
    soundfile.write(sound, play(), RATE, format="OGG", subtype="VORBIS")
    job = {
        "prompt": "The evening sun sinks into a calm sea, slow waves glitter, four bells ring one after the other",
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": 49,
        "fps": 25,
        "seed": 42,
        "image_start": "data:image/jpeg;base64," + base64.b64encode(image.read_bytes()).decode(),
        "audio": "data:audio/ogg;base64," + base64.b64encode(sound.read_bytes()).decode(),
    }
    (HERE.parent / "test_input.json").write_text(json.dumps({"input": job}, indent=2) + "\n")
    print(f"{image} {image.stat().st_size} bytes, {sound} {sound.stat().st_size} bytes")


if __name__ == "__main__":
    main()
