"""The world the embedded model knows: one coloured shape that moves over a coloured ground, and sounds.

A scene is drawn from a seed and is then a function of time: where the shape is, how large, how loud. Pictures at any
size and rate, and sound, follow from it, so that both tell of the same thing at the same moment.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

COLOURS: Final = {
    "red": (220, 32, 36),
    "orange": (245, 130, 20),
    "yellow": (250, 220, 40),
    "green": (36, 160, 60),
    "blue": (36, 80, 215),
    "purple": (125, 45, 165),
    "pink": (250, 130, 190),
    "white": (245, 245, 245),
}
"""sRGB. Each has a pitch, see ``PITCHES``."""
GROUNDS: Final = COLOURS | {"black": (14, 14, 18), "gray": (118, 118, 122)}
SHAPES: Final = ("circle", "square", "triangle", "star")
UNSEEN_PAIRS: Final = frozenset({("blue", "star"), ("yellow", "triangle"), ("pink", "square"), ("purple", "circle")})
"""Never trained on: what is asked of these has to be put together."""
PITCHES: Final = {
    "red": 220.0,
    "orange": 294.0,
    "yellow": 370.0,
    "green": 466.0,
    "blue": 587.0,
    "purple": 740.0,
    "pink": 932.0,
    "white": 1175.0,
}
"""Hz of the fundamental."""
PARTIALS: Final = {
    "circle": (1.0,),
    "square": (1.0, 0.0, 0.55, 0.0, 0.35),
    "triangle": (1.0, 0.8),
    "star": (0.8, 0.6, 0.6, 0.5, 0.4, 0.4),
}
"""Amplitudes of the harmonics, by shape."""
CONTRAST: Final = 120.0
"""Of a shape's colour and its ground at least, as distance in RGB."""
SPEED: Final = 0.38
"""Of what moves steadily, in widths (or heights) of the room it has, per second."""
BEEP_SECONDS: Final = 0.16
BOUNCE_HEIGHT: Final = 0.7
"""Of the room above the floor."""
PULSE_DUTY: Final = 0.5


class Motion(StrEnum):
    """What the shape does."""

    STILL = "still"
    RIGHT = "right"
    LEFT = "left"
    UP = "up"
    DOWN = "down"
    BOUNCE = "bounce"
    PULSE = "pulse"


STEADY: Final = {Motion.RIGHT: (1, 0), Motion.LEFT: (-1, 0), Motion.UP: (0, -1), Motion.DOWN: (0, 1)}


@dataclass(frozen=True, slots=True)
class Look:
    """What a moment looks and sounds like, one value for each time asked.

    ``x`` and ``y`` go from 0 to 1 over the room that the shape has without leaving the picture, ``size`` is a fraction
    of its full size, ``loudness`` a fraction of full.
    """

    x: Floats
    y: Floats
    size: Floats
    loudness: Floats


@dataclass(frozen=True)
class Scene:
    """One clip's worth of the world.

    Args:
        colour: of ``COLOURS``.
        shape: of ``SHAPES``.
        ground: of ``GROUNDS``.
        motion: what it does.
        x: where the shape is at time 0, see :class:`Look`.
        y: the same.
        radius: of the shape, as a fraction of the picture's short side.
        speed: in rooms a second for steady motions; bounces or pulses a second else.
        phase: of bounces and pulses, in cycles at time 0.
    """

    colour: str
    shape: str
    ground: str
    motion: Motion
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.25
    speed: float = SPEED
    phase: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, *, unseen: bool = False) -> "Scene":
        """Any scene that is trained on, or with ``unseen`` one of the pairs that are not."""
        while True:
            colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
            ground = str(rng.choice(list(GROUNDS)))
            if ((colour, shape) in UNSEEN_PAIRS) == unseen and contrast(colour, ground) >= CONTRAST:
                break
        motion = Motion(rng.choice(list(Motion)))
        x, y = (float(value) for value in rng.uniform(0.1, 0.9, 2))
        if motion in STEADY:
            across, down = STEADY[motion]
            ahead = float(rng.uniform(0.0, 0.3))
            x = (ahead if across > 0 else 1 - ahead) if across else x
            y = (ahead if down > 0 else 1 - ahead) if down else y
            speed = SPEED * float(rng.uniform(0.85, 1.15))
        else:
            speed = float(rng.uniform(0.9, 1.5))
        radius = float(rng.uniform(0.22, 0.30))
        return cls(colour, shape, ground, motion, x, y, radius, speed, float(rng.uniform(0, 1)))

    def at(self, times: Floats) -> Look:
        """What it is like at these seconds."""
        still = np.ones_like(times)
        if self.motion in STEADY:
            across, down = STEADY[self.motion]
            way = np.float32(self.speed) * times
            return Look(_between(self.x + across * way), _between(self.y + down * way), still, still)
        cycle = self.speed * times + self.phase
        if self.motion is Motion.BOUNCE:
            height = np.abs(np.sin(np.pi * cycle))
            since = (cycle % 1) / self.speed
            return Look(still * self.x, 1 - BOUNCE_HEIGHT * height, still, _beep(since))
        if self.motion is Motion.PULSE:
            loudness = _gate(cycle % 1)
            return Look(still * self.x, still * self.y, 0.55 + 0.45 * loudness, loudness)
        return Look(still * self.x, still * self.y, still, still)

    @cached_property
    def colours(self) -> tuple[Floats, Floats]:
        """RGB of the shape and of the ground, 0 to 255."""
        return np.array(COLOURS[self.colour], np.float32), np.array(GROUNDS[self.ground], np.float32)

    def beats(self, seconds: float) -> list[float]:
        """When it touches the floor, or begins to sound, within that time."""
        if self.motion not in (Motion.BOUNCE, Motion.PULSE):
            return []
        first = int(np.ceil(self.phase))
        times = (np.arange(first, first + int(seconds * self.speed) + 2) - self.phase) / self.speed
        return [float(time) for time in times if time < seconds]


def contrast(colour: str, ground: str) -> float:
    """How far a shape's colour is from a ground's, in RGB."""
    return float(np.linalg.norm(np.subtract(COLOURS[colour], GROUNDS[ground])))


def _between(value: Floats) -> Floats:
    """Back and forth between the walls."""
    return (1 - np.abs((value % 2) - 1)).astype(np.float32)


def _beep(since: Floats) -> Floats:
    """A short tone: sudden, then less and less."""
    loud = np.minimum(since / 0.008, 1) * np.exp(-np.maximum(since - 0.04, 0) / (BEEP_SECONDS / 3))
    return np.asarray(loud, np.float32)


def _gate(cycle: Floats) -> Floats:
    """On for the first part of each cycle, off for the rest, with soft edges."""
    soft = 0.08
    rise, fall = np.clip(cycle / soft, 0, 1), np.clip((PULSE_DUTY - cycle) / soft + 1, 0, 1)
    return np.asarray(np.minimum(rise, fall), np.float32)
