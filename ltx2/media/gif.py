"""The arithmetic of GIF's clock: its times are hundredths of a second.

Browsers show a frame of one hundredth for ten. So above 50 frames a second some are left out, and the clip is as long
as it should be.
"""

from fractions import Fraction
from math import floor
from typing import Final

CLOCK: Final = 100
"""Ticks a second."""
_SHORTEST: Final = 2
"""Ticks a frame is shown at least."""


def shown_at(index: int, fps: Fraction) -> int | None:
    """The tick at which a frame appears; None if it is left out."""
    if fps * _SHORTEST <= CLOCK:
        return round(index * CLOCK / fps)
    slot, earlier = (floor(number * CLOCK / fps / _SHORTEST) for number in (index, index - 1))
    return None if slot == earlier else slot * _SHORTEST


def final_delay(num_frames: int, fps: Fraction) -> int:
    """How many ticks the last frame is shown, so that all of them take ``num_frames / fps``, rounded."""
    last = next(at for index in reversed(range(num_frames)) if (at := shown_at(index, fps)) is not None)
    return max(_SHORTEST, round(num_frames * CLOCK / fps) - last)
