"""What else pictures can be: several shapes, slopes of colour, patches. For the VAE alone."""

import numpy as np

from training import pictures
from training.world import SHAPES, Floats, Pixels


def frames(rng: np.random.Generator, side: int, count: int) -> Pixels:
    """A square clip in which a few things move steadily, ``[count, side, side, 3]``."""
    line = np.linspace(0, 1, side, dtype=np.float32)
    across, down = np.meshgrid(line, line)
    corners = rng.uniform(0, 255, (4, 3)).astype(np.float32)
    if rng.random() < 0.3:
        corners[1:] = corners[0]
    ground = _slope(corners, across[..., None], down[..., None])
    if rng.random() < 0.3:
        coarse = rng.uniform(-60, 60, (rng.integers(2, 9), rng.integers(2, 9), 3)).astype(np.float32)
        rows = np.arange(side) * coarse.shape[0] // side
        columns = np.arange(side) * coarse.shape[1] // side
        ground = ground + coarse[rows][:, columns]
    clip = np.repeat(ground[None], count, 0)
    xs = np.arange(side, dtype=np.float32)[None, None, :] + 0.5
    ys = np.arange(side, dtype=np.float32)[None, :, None] + 0.5
    times = np.arange(count, dtype=np.float32)[:, None, None]
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, side, 2)
        right, fall = rng.uniform(-2.5, 2.5, 2)
        radius = rng.uniform(6, side / 2)
        cover = np.clip(
            0.5
            - pictures.distance(
                str(rng.choice(SHAPES)),
                (xs - x - right * times).astype(np.float32),
                (ys - y - fall * times).astype(np.float32),
                np.float32(radius),  # type: ignore[arg-type]
            ),
            0,
            1,
        )[..., None]
        clip += cover * (rng.uniform(0, 255, 3).astype(np.float32) - clip)
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


def _slope(corners: Floats, across: Floats, down: Floats) -> Floats:
    top = corners[0] + across * (corners[1] - corners[0])
    bottom = corners[2] + across * (corners[3] - corners[2])
    return np.asarray(top + down * (bottom - top), np.float32)
