"""What is kept and what is new, by arithmetic."""

from collections.abc import Iterator

import numpy as np
import pytest

from ltx2.errors import Internal
from ltx2.media.footage import Chunk
from ltx2.media.splice import splice_frames


def frames(numbers: Iterator[int] | range, size: int) -> Iterator[Chunk]:
    """Frames of one pixel with these values, in chunks."""
    listed = [*numbers]
    for at in range(0, len(listed), size):
        yield np.array(listed[at : at + size], np.uint8).reshape(-1, 1, 1, 1)


def spliced(num_frames: int, kept: list[tuple[int, int, int]], new: int, size: int) -> list[int]:
    """The source's frames are 100 and more, the new ones 0 and more."""

    def read(first: int, last: int) -> Iterator[Chunk]:
        return frames(range(100 + first, 100 + last), 3)

    chunks = splice_frames(num_frames, kept, read, frames(range(new), size))
    return [int(value) for chunk in chunks for value in chunk.ravel()]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_frames_come_from_where_they_are_kept_and_the_others_in_order(size: int) -> None:
    retake = [*range(100, 104), 0, 1, 2, *range(107, 110)]
    assert spliced(10, [(0, 4, 0), (7, 10, 7)], 3, size) == retake
    assert spliced(10, [(0, 4, 0)], 6, size) == [100, 101, 102, 103, 0, 1, 2, 3, 4, 5]
    assert spliced(10, [(6, 10, 0)], 6, size) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]
    assert spliced(5, [(1, 2, 0), (3, 4, 1)], 3, size) == [0, 100, 1, 101, 2]
    assert spliced(3, [], 3, size) == [0, 1, 2]
    assert spliced(3, [(0, 3, 5)], 0, size) == [105, 106, 107]


def test_new_frames_that_are_missing_are_a_bug() -> None:
    with pytest.raises(Internal, match="2 frames"):
        spliced(10, [(0, 4, 0)], 4, 3)
