"""Scenes as sounds: the pitch is the colour's, the timbre the shape's, and it is heard from where the shape is."""

import numpy as np

from training.world import PARTIALS, PITCHES, Floats, Scene

LEVEL = 0.35


def sound(scene: Scene, seconds: float, rate: int) -> Floats:
    """What is heard, ``[2, samples]``, -1 to 1."""
    times = np.arange(round(seconds * rate), dtype=np.float64) / rate
    look = scene.at(times.astype(np.float32))
    tone = voice(scene.colour, scene.shape, times) * look.loudness * LEVEL
    # what is at the left is heard there, with the same power in all
    angle = (0.15 + 0.7 * look.x) * (np.pi / 2)
    return np.stack((tone * np.cos(angle), tone * np.sin(angle))).astype(np.float32)


def voice(colour: str, shape: str, times: np.ndarray) -> Floats:
    """A steady tone, with a root mean square of 0.7."""
    partials = PARTIALS[shape]
    power = np.sqrt(sum(amplitude**2 for amplitude in partials))
    wave = sum(
        amplitude * np.sin(2 * np.pi * PITCHES[colour] * (index + 1) * times)
        for index, amplitude in enumerate(partials)
        if amplitude
    )
    return np.asarray(wave / power, np.float32)


def anything(rng: np.random.Generator, seconds: float, rate: int) -> Floats:
    """What else there is to hear: chords, sweeps, noise, silence between. ``[2, samples]``."""
    times = np.arange(round(seconds * rate), dtype=np.float64) / rate
    wave = np.zeros_like(times)
    for _ in range(rng.integers(0, 4)):
        low, high = np.exp(rng.uniform(np.log(90), np.log(3000), 2))
        slope = (high - low) / seconds if rng.random() < 0.4 else 0.0
        loud = 10 ** rng.uniform(-1.5, -0.3)
        wave += loud * np.sin(2 * np.pi * (low + slope * times / 2) * times + rng.uniform(0, 6)) * _swell(rng, times)
    if rng.random() < 0.5:
        wave += rng.standard_normal(times.size) * 10 ** rng.uniform(-3, -0.8) * _swell(rng, times)
    wave *= min(1.0, 0.9 / (np.abs(wave).max() + 1e-6))
    angle = rng.uniform(0, np.pi / 2)
    return np.stack((wave * np.cos(angle), wave * np.sin(angle))).astype(np.float32)


def _swell(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """An envelope: steady, on and off, or dying away."""
    kind = rng.integers(3)
    if kind == 0:
        return np.ones_like(times)
    cycle = times * rng.uniform(0.5, 5) + rng.random()
    if kind == 1:
        return np.asarray(np.clip(8 * np.sin(2 * np.pi * cycle) + 0.5, 0, 1))
    return np.asarray(np.exp(-(cycle % 1) * rng.uniform(2, 12)))
