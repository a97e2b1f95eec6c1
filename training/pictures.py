"""Scenes as pictures."""

import numpy as np

from training.world import Floats, Pixels, Scene


def frames(
    scene: Scene,
    width: int,
    height: int,
    indices: Floats,
    fps: float,
    window: tuple[int, int, int, int] | None = None,
) -> Pixels:
    """What a camera would see, with soft edges of one pixel.

    Args:
        scene: what there is.
        width: of the whole picture, pixels.
        height: the same.
        indices: of the frames ``[F]``.
        fps: frames a second.
        window: left, top, width and height of the part that is wanted; everything without.

    Returns:
        RGB ``[F, height, width, 3]``.
    """
    cover = np.clip(0.5 - away(scene, width, height, indices, fps, window), 0, 1)[..., None]
    colour, ground = scene.colours
    return np.asarray(np.rint(ground + cover * (colour - ground)), np.uint8)


def away(
    scene: Scene,
    width: int,
    height: int,
    indices: Floats,
    fps: float,
    window: tuple[int, int, int, int] | None = None,
) -> Floats:
    """How far each pixel of :func:`frames` is from the shape's edge, ``[F, height, width]``; negative inside."""
    left, top, columns, rows = window or (0, 0, width, height)
    look = scene.at(indices.astype(np.float32) / np.float32(fps))
    full = scene.radius * min(width, height)
    x = full + look.x * (width - 2 * full)
    y = full + look.y * (height - 2 * full)
    across = np.arange(left, left + columns, dtype=np.float32)[None, None, :] + 0.5 - x[:, None, None]
    down = np.arange(top, top + rows, dtype=np.float32)[None, :, None] + 0.5 - y[:, None, None]
    return distance(scene.shape, across, down, (full * look.size)[:, None, None])


def distance(shape: str, across: Floats, down: Floats, radius: Floats) -> Floats:
    """About how far points are from the edge of a shape, pixels; negative inside."""
    if shape == "circle":
        return np.asarray(np.sqrt(across**2 + down**2) - radius, np.float32)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(across), np.abs(down)) - 0.86 * radius, np.float32)
    if shape == "triangle":
        # equilateral and upright: the floor, and two slopes
        return np.asarray(
            np.maximum(down - 0.62 * radius, np.abs(across) * 0.8660254 - down * 0.5 - 0.5 * radius), np.float32
        )
    angle = np.arctan2(across, -down)
    fifth = 2 * np.pi / 5
    # folded into half of one of five points
    folded = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    length = np.sqrt(across**2 + down**2)
    px, py = length * np.cos(folded), length * np.sin(folded)
    inner = 0.42
    tip, dent = (1.0, 0.0), (inner * np.cos(fifth / 2), inner * np.sin(fifth / 2))
    normal = np.array((dent[1] - tip[1], tip[0] - dent[0]), np.float32)
    normal /= np.linalg.norm(normal)
    return np.asarray((px - tip[0] * radius * 1.08) * normal[0] + (py - tip[1] * radius) * normal[1], np.float32)
