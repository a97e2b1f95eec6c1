"""Eyes and ears: what pictures show and sounds say, measured without any model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training import pictures
from training.world import COLOURS, GROUNDS, PITCHES, SHAPES, Floats, Motion, Pixels

APART = 60.0
"""Of a pixel's colour from the ground's at least, to belong to something, as distance in RGB."""
LEAST = 0.01
"""Of the picture, that something has to cover."""
TEMPLATE = 48
QUIET = 0.01


@dataclass(frozen=True)
class Sight:
    """What one picture shows. Without anything on its ground, ``colour`` and ``shape`` are None."""

    ground: str
    colour: str | None = None
    shape: str | None = None
    x: float = 0.5
    """Of its middle, as a fraction of the width."""
    y: float = 0.5
    area: float = 0.0
    """Fraction of the picture."""


def look(picture: Pixels) -> Sight:
    """What a picture ``[height, width, 3]`` shows."""
    image = picture.astype(np.float32)
    edge = max(2, min(image.shape[:2]) // 16)
    frame = np.concatenate(
        [part.reshape(-1, 3) for part in (image[:edge], image[-edge:], image[:, :edge], image[:, -edge:])]
    )
    middle = np.median(frame, axis=0)
    ground = nearest(middle, GROUNDS)
    away = np.linalg.norm(image - middle, axis=2)
    mask = away > APART
    area = float(mask.mean())
    if area < LEAST:
        return Sight(ground)
    rows, columns = np.nonzero(mask)
    # its colour is that of what differs most: edges are mixtures
    inside = image[away >= np.quantile(away[mask], 0.4)]
    return Sight(
        ground,
        nearest(np.median(inside, axis=0), COLOURS),
        outline(mask),
        float(columns.mean() + 0.5) / mask.shape[1],
        float(rows.mean() + 0.5) / mask.shape[0],
        area,
    )


def nearest(colour: Floats, names: dict[str, tuple[int, int, int]]) -> str:
    """The name of the colour that is closest."""
    return min(names, key=lambda name: float(np.linalg.norm(np.asarray(names[name]) - colour)))


def outline(mask: NDArray[np.bool_]) -> str:
    """Which shape a mask is most like, once both fill the same box."""
    rows, columns = np.nonzero(mask)
    # without stray pixels
    top, bottom = (int(value) for value in np.quantile(rows, (0.003, 0.997)))
    left, right = (int(value) for value in np.quantile(columns, (0.003, 0.997)))
    box = mask[top : bottom + 1, left : right + 1]
    pick_rows = (np.arange(TEMPLATE) + 0.5) * box.shape[0] / TEMPLATE
    pick_columns = (np.arange(TEMPLATE) + 0.5) * box.shape[1] / TEMPLATE
    filled = box[pick_rows.astype(int)][:, pick_columns.astype(int)]
    return max(SHAPES, key=lambda shape: _overlap(filled, _template(shape)))


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


@lru_cache
def _template(shape: str) -> NDArray[np.bool_]:
    line = np.linspace(-1.3, 1.3, 260, dtype=np.float32)
    across, down = np.meshgrid(line, line)
    inside = pictures.distance(shape, across, down, np.ones((1, 1), np.float32)) < 0
    rows, columns = np.nonzero(inside)
    box = inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    pick = [((np.arange(TEMPLATE) + 0.5) * size / TEMPLATE).astype(int) for size in box.shape]
    found: NDArray[np.bool_] = box[pick[0]][:, pick[1]]
    return found


def most(sights: Sequence[Sight], what: str) -> str | None:
    """What is seen in most pictures: ``colour``, ``shape`` or ``ground``."""
    seen: list[str | None] = [getattr(sight, what) for sight in sights]
    return max(set(seen), key=seen.count)


def travel(sights: Sequence[Sight]) -> tuple[float, float]:
    """How far it gets from the first quarter of the pictures to the last, in widths and heights."""
    quarter = max(1, len(sights) // 4)
    first, last = sights[:quarter], sights[-quarter:]
    return tuple(  # type: ignore[return-value]
        float(np.mean([getattr(sight, axis) for sight in last]) - np.mean([getattr(sight, axis) for sight in first]))
        for axis in ("x", "y")
    )


def pitch(sound: Floats, rate: int) -> tuple[str | None, float]:
    """Which colour's tone is loudest, and its share of all of their power. None where it is quiet.

    Args:
        sound: ``[channels, samples]``.
        rate: samples a second.
    """
    mono = sound.mean(0)
    if not mono.size or float(np.sqrt(np.mean(mono**2))) < QUIET:
        return None, 0.0
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(mono.size))) ** 2
    frequencies = np.fft.rfftfreq(mono.size, 1 / rate)
    power = {}
    for name, tone in PITCHES.items():
        near = np.abs(frequencies - tone) < 0.06 * tone
        power[name] = float(spectrum[near].sum())
    best = max(power, key=lambda name: power[name])
    return best, power[best] / (sum(power.values()) + 1e-12)


def loudness(sound: Floats, rate: int, times: Floats, span: float = 0.04) -> Floats:
    """Root mean square of a sound around some moments, over all channels."""
    found = []
    for time in times:
        part = sound[:, max(0, int((time - span / 2) * rate)) : int((time + span / 2) * rate) + 1]
        found.append(float(np.sqrt(np.mean(part**2))) if part.size else 0.0)
    return np.array(found, np.float32)


def onsets(sound: Floats, rate: int, seconds: float) -> list[float]:
    """When something begins to sound, in seconds."""
    times = np.arange(0, seconds, 0.01, dtype=np.float32)
    loud = loudness(sound, rate, times)
    high = 0.35 * float(loud.max(initial=0.0))
    if high < QUIET:
        return []
    found: list[float] = []
    ready = True
    for time, value in zip(times, loud, strict=True):
        if ready and value > high:
            found.append(float(time))
            ready = False
        elif value < 0.5 * high:
            ready = True
    return found


def psnr(one: Pixels, other: Pixels) -> float:
    """Decibels between pictures of one size; 99 where they are the same."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))
    return 99.0 if error < 1e-3 else float(10 * np.log10(255**2 / error))


def motion(sights: Sequence[Sight]) -> Motion:
    """What a shape does in a clip of a second or more."""
    there = [sight for sight in sights if sight.colour is not None]
    if len(there) < len(sights) / 2:
        return Motion.STILL
    areas = np.array([sight.area for sight in there])
    xs, ys = np.array([sight.x for sight in there]), np.array([sight.y for sight in there])
    if np.quantile(areas, 0.9) > 1.6 * np.quantile(areas, 0.1):
        return Motion.PULSE
    across, down = travel(there)
    # a bounce goes down and up: more way than it gets far
    steps = np.abs(np.diff(ys)).sum()
    if np.ptp(ys) > 0.08 and (steps > 1.8 * abs(down) or _bend(ys) > 0.25 * np.ptp(ys)):
        return Motion.BOUNCE
    if max(abs(across), abs(down)) < 0.06 and np.ptp(xs) < 0.12 and np.ptp(ys) < 0.12:
        return Motion.STILL
    if abs(across) > abs(down):
        return Motion.RIGHT if across > 0 else Motion.LEFT
    return Motion.DOWN if down > 0 else Motion.UP


def _bend(values: NDArray[np.float64]) -> float:
    """How far a curve is from a straight line, at most."""
    times = np.arange(values.size)
    line = np.polynomial.Polynomial.fit(times, values, 1)(times)
    return float(np.abs(values - line).max())
