"""In which pieces a clip is made: stretches of frames, of which some are there already. Pure arithmetic.

A clip that is short enough is one piece, all of it new. A longer one, and a video that goes on, is made piece by piece:
each is shown the last seconds of what there is. A retake is one piece of which all but a part is there.

LTX-2 makes eight frames at once, the first of a piece alone. What is made anew is widened to whole groups of them, as
in the official code; what was there is cut to whole groups where it is shown to the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Final

from ltx2.errors import InvalidRequest
from ltx2.geometry import AUDIO_LATENTS_PER_SECOND, TEMPORAL_RATIO, TRAINED_SECONDS, extend_frames, round_up
from ltx2.request import GenerationRequest, Retake

Range = tuple[int, int]
"""The first, and the one after the last."""

CONTEXT_SECONDS: Final = 4.0
"""How much of what there is a piece is shown: enough to go on with movements and voices, a fifth of the longest."""
SLACK_FRAMES: Final = 4
"""A piece may be longer than asked by so many, as the trained length is: 20 seconds and a frame are one piece."""
ROUNDED: Final = Fraction(1, 2000)
"""Seconds. A time to the millisecond may be that of a frame: no other is taken in for what was rounded away."""
NOTHING: Final = (0, 0)

_MEL_SECONDS: Final = 0.01


@dataclass(frozen=True)
class Piece:
    """One run of the model. All frames are counted in the finished clip."""

    start: int
    """Where its first frame lies; below 0 where more is made before a video than was asked for."""
    num_frames: int
    pictures: Range
    """The frames whose pictures it makes."""
    sound: Range
    """The frames whose sound it makes."""
    known: Range = NOTHING
    """The frames it is shown, from the piece's own first frame on or up to its last."""

    @property
    def offset(self) -> int:
        """At which of its own frames what it is shown begins: 0, or a multiple of 8."""
        return self.known[0] - self.start if self.known != NOTHING else 0

    def is_kept(self, latent_frame: int) -> bool:
        """Whether a latent frame of the piece stays as it is shown."""
        first = self.start + max(0, TEMPORAL_RATIO * (latent_frame - 1) + 1)
        last = self.start + TEMPORAL_RATIO * latent_frame + 1
        # the padding after the last frame of a piece belongs to nobody
        last = min(last, max(first + 1, self.start + self.num_frames))
        within = self.known[0] <= first and last <= self.known[1]
        return within and not _overlap((first, last), self.pictures)


def pieces_of(request: GenerationRequest, piece_seconds: float = TRAINED_SECONDS) -> tuple[Piece, ...]:
    """The pieces of a request whose length is settled, in the order in which they are made.

    Args:
        request: checked.
        piece_seconds: what is longer is made in several pieces, as far as it can be.
    """
    fps, length = request.exact_fps, request.length
    most = max(TEMPORAL_RATIO + 1, floor(piece_seconds * fps) + SLACK_FRAMES)
    context = floor(CONTEXT_SECONDS * fps)
    if request.retake is not None:
        return (_retaken(request.retake, length, fps, most, context),)
    if request.extend is None:
        first = length if length <= most else _cut(most)
        fresh = Piece(0, first, (0, first), (0, first))
        return (fresh, *_after(first, length, most, context))
    added = extend_frames(request.extend.seconds, fps)
    if request.extend.side == "end":
        return tuple(_after(length - added, length, most, context))
    return tuple(_before(added, length, most, context))


def source_frames(request: GenerationRequest) -> int:
    """How many frames the video of a request has, whose length is settled; 0 without one."""
    if request.video is None:
        return 0
    added = 0 if request.extend is None else extend_frames(request.extend.seconds, request.exact_fps)
    return request.length - added


def source_start(request: GenerationRequest) -> int:
    """The frame of the clip at which the request's video begins."""
    is_before = request.extend is not None and request.extend.side == "start"
    return request.length - source_frames(request) if is_before else 0


def check_keyframes(request: GenerationRequest, piece_seconds: float = TRAINED_SECONDS) -> None:
    """Refuse images where nothing is made anew.

    Args:
        request: with a video, its length settled.
        piece_seconds: as for :func:`pieces_of`.

    Raises:
        InvalidRequest: naming the image.
    """
    made = [piece.pictures for piece in pieces_of(request, piece_seconds)]
    for keyframe in request.keyframes:
        frame = keyframe.index(request.length)
        if not any(first <= frame < last for first, last in made):
            said = " and ".join(f"{first} to {last - 1}" for first, last in made if last > first)
            raise InvalidRequest(
                f"frame {frame} stays that of the video",
                field=keyframe.image,
                hint=f"images may be given for the frames that are made anew, {said}" if said else None,
            )


def sound_tokens(span: tuple[float, float], count: int) -> Iterator[int]:
    """The audio latents that overlap a span of seconds, of the first ``count``.

    One stands for four mel frames of 10 ms, the first one for a single frame: so the model hears them.
    """
    for token in range(count):
        begin, end = token_seconds(token)
        if end > span[0] and begin < span[1]:
            yield token


def token_seconds(token: int) -> tuple[float, float]:
    """From when to when an audio latent sounds, in seconds."""
    mel = round(1 / AUDIO_LATENTS_PER_SECOND / _MEL_SECONDS)
    return max(0, mel * (token - 1) + 1) * _MEL_SECONDS, (mel * token + 1) * _MEL_SECONDS


def _retaken(retake: Retake, length: int, fps: Fraction, most: int, context: int) -> Piece:
    """The part of a video around a retake, or all of it."""
    first = min(floor(_frames_until(retake.start, fps) + ROUNDED * fps), length - 1)
    last = min(max(ceil(_frames_until(retake.end, fps) - ROUNDED * fps), first + 1), length)
    start, end = 0, length
    if length > most:
        spare = max(most - (last - first), 2 * context)
        start = min(max(0, first - spare // 2), max(0, length - (last - first) - spare))
        end = min(length, start + (last - first) + spare)
    asked = (first, last)
    pictures = NOTHING if retake.streams == "sound" else _widened(asked, start, end)
    sound = NOTHING if retake.streams == "picture" else asked
    return Piece(start, end - start, pictures, sound, known=(start, end))


def _frames_until(seconds: float, fps: Fraction) -> Fraction:
    """A time in frames, exactly: of the decimal number that was sent."""
    return Fraction(str(seconds)) * fps


def _after(have: int, length: int, most: int, context: int) -> Iterator[Piece]:
    """The pieces that go on after so many frames."""
    for made in _shares(length - have, most, context):
        shown = _shown(have, most, context)
        added = (have, have + made)
        yield Piece(have - shown, shown + made, added, added, known=(have - shown, have))
        have += made


def _before(added: int, length: int, most: int, context: int) -> Iterator[Piece]:
    """The pieces that lead up to a video, the last of them first."""
    have = length - added
    for made in _shares(added, most, context):
        shown = _shown(have, most, context)
        begin = length - have
        before = (begin - made, begin)
        # the video's first frame becomes the last one of a group of eight
        start = begin - round_up(made, TEMPORAL_RATIO)
        yield Piece(start, begin + shown - start, before, before, known=(begin, begin + shown))
        have += made


def _shares(added: int, most: int, context: int) -> Iterator[int]:
    """Frames that are added, in as few and as equal parts as can be."""
    room = most - _cut(min(context, most // 2))
    room = max(TEMPORAL_RATIO, room - room % TEMPORAL_RATIO)
    parts = max(1, ceil(added / room))
    share = round_up(ceil(added / parts), TEMPORAL_RATIO)
    while added > 0:
        yield min(share, added)
        added -= share


def _shown(have: int, most: int, context: int) -> int:
    """How many of the frames there are the next piece is shown."""
    return _cut(min(have, context, most // 2))


def _cut(frames: int) -> int:
    """The largest 8k + 1 that is not above a number of frames; at least 1."""
    return max(0, frames - 1) // TEMPORAL_RATIO * TEMPORAL_RATIO + 1


def _widened(asked: Range, start: int, end: int) -> Range:
    """A range of frames and what is made together with them, in a piece from ``start`` to ``end``."""
    first, last = asked[0] - start, asked[1] - start
    before = 0 if first == 0 else (first - 1) // TEMPORAL_RATIO * TEMPORAL_RATIO + 1
    after = round_up(last - 1, TEMPORAL_RATIO) + 1
    return start + before, min(end, start + after)


def _overlap(one: Range, other: Range) -> bool:
    return one[0] < other[1] and other[0] < one[1]
