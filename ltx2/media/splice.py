"""Frames that are kept of a video and frames that are new, put together as they come."""

from collections.abc import Callable, Iterator, Sequence

from ltx2.errors import Internal
from ltx2.media.footage import Chunk


def splice_frames(
    num_frames: int,
    kept: Sequence[tuple[int, int, int]],
    read: Callable[[int, int], Iterator[Chunk]],
    new: Iterator[Chunk],
) -> Iterator[Chunk]:
    """All frames of a clip in order, never more than two chunks at a time.

    Args:
        num_frames: of the clip.
        kept: first frame, one after the last, and the source's frame that the first one is: ascending, disjoint.
        read: the source's frames from one up to another.
        new: all other frames of the clip, in order, in chunks of any size.

    Raises:
        Internal: there are too few of them.
    """
    rest = _Rest(new)
    at = 0
    for first, last, source in kept:
        yield from rest.take(first - at)
        yield from read(source, source + last - first)
        at = last
    yield from rest.take(num_frames - at)


class _Rest:
    """What is left of chunks of frames."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._held: Chunk | None = None

    def take(self, count: int) -> Iterator[Chunk]:
        """The next frames."""
        while count > 0:
            held = self._held if self._held is not None else next(self._chunks, None)
            if held is None:
                raise Internal(f"{count} frames are missing")
            part, self._held = held[:count], held[count:] if len(held) > count else None
            count -= len(part)
            yield part
