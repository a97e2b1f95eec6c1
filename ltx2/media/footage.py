"""What there is of a clip that is made piece by piece: frames and sound, of a video that was sent and newly made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from ltx2.media.audio import LAYOUTS, Waveform, change_rate, fit
from ltx2.media.audiofile import Samples
from ltx2.media.video import Chunk
from ltx2.pieces import Range

FADE_SECONDS: Final = 0.02
"""What is kept fades into what is new for so long: two waves that do not meet would click."""
HOLE_SECONDS: Final = 0.06
"""Generated sounds end a little before their pictures, and silence fills the gap. A gap of up to this in the sound of a
video that goes on is no silence of anybody's, and is not kept."""
SILENCE: Final = 1e-3
"""Full scale is 1: -60 dB."""
REMNANT: Final = 0.03
"""Of what is loudest around it: so much a codec may leave in a gap after a sound that ends at once, about -30 dB."""


@dataclass(frozen=True)
class Source:
    """A video that a clip is made from."""

    start: int
    """The frame of the clip that its first one is."""
    num_frames: int
    read: Callable[[int, int], Iterator[Chunk]]
    """Its frames from one index up to another, by its own counting, a few at a time."""
    sound: Waveform | None

    @property
    def frames(self) -> Range:
        """Its frames by the clip's counting."""
        return self.start, self.start + self.num_frames


class Footage:
    """The frames and the sound of one clip, as far as there are any.

    Args:
        length: frames of the finished clip.
        fps: frames a second.
        rate: samples a second of what will be added.
        source: what there is from the beginning.
    """

    def __init__(self, length: int, fps: Fraction, rate: int, source: Source | None = None) -> None:
        self.length, self.fps, self.source = length, fps, source
        self._made: list[tuple[int, Chunk]] = []
        given = None if source is None else source.sound
        self.rate = rate if given is None else max(rate, given.sample_rate)
        self._samples = np.zeros((2, round(length / fps * self.rate)), np.float32)
        self.heard: tuple[float, float] | None = None
        """From when to when there is sound, in seconds of the clip."""
        if source is not None and given is not None:
            begin = float(source.start / fps)
            sound = fit(self._usual(given), 0.0, source.num_frames / fps)
            self._put(sound.samples, begin)
            self.heard = begin, begin + _end(sound)

    def add_frames(self, first: int, frames: Chunk) -> None:
        """Put newly made frames at their place."""
        self._made.append((first, frames))

    def add_sound(self, new: Waveform, at: float, span: tuple[float, float]) -> None:
        """Put newly made sound at its place. What there was fades into it at the ends, as far as that lies beyond them.

        Args:
            new: a sound.
            at: the second of the clip at which it begins; may be below 0.
            span: from when to when it is wanted, in seconds of the clip. Around that it is only faded with. Where what
                there is has ended a little before, it is wanted from there on.
        """
        new = self._usual(new)
        wanted = span if self.heard is None else (min(span[0], self.heard[1]), span[1])
        first, last = (min(max(0, round(second * self.rate)), self._samples.shape[1]) for second in wanted)
        begin = round(at * self.rate)
        laid = np.zeros_like(self._samples)
        source, target = max(0, -begin), max(0, begin)
        length = max(0, min(new.samples.shape[1] - source, laid.shape[1] - target))
        laid[:, target : target + length] = new.samples[:, source : source + length]
        fade = round(FADE_SECONDS * self.rate)
        weight = np.zeros(laid.shape[1], np.float32)
        weight[first:last] = 1
        rising = np.linspace(0, 1, fade + 2, dtype=np.float32)[1:-1]
        before, after = weight[max(0, first - fade) : first], weight[last : last + fade]
        before[:] = rising[fade - len(before) :]
        after[:] = rising[::-1][: len(after)]
        self._samples += weight * (laid - self._samples)
        until = min(span[1], (begin + new.samples.shape[1]) / self.rate)
        begun = max(0.0, span[0])
        self.heard = (begun, until) if self.heard is None else (min(begun, self.heard[0]), max(until, self.heard[1]))

    def frames(self, first: int, last: int) -> Chunk:
        """The frames from one to another, which must all be there."""
        return np.concatenate([*self.chunks(first, last)])

    def sound(self, begin: float, end: float) -> Waveform:
        """The sound from one second to another."""
        return fit(Waveform(self._samples, self.rate), begin, end - begin)

    def chunks(self, first: int = 0, last: int | None = None) -> Iterator[Chunk]:
        """The frames from one to another in order, a few at a time: newly made ones before those of the source."""
        last = self.length if last is None else last
        while first < last:
            begin, frames = self._at(first)
            if frames is not None:
                part = frames[first - begin : last - begin]
                yield part
                first += len(part)
                continue
            later = [start for start, _ in self._made if start > first]
            until = min([last, *later])
            yield from self._kept(first, until)
            first = until

    def _at(self, frame: int) -> tuple[int, Chunk | None]:
        """The newly made frames among which one is, and where they begin."""
        return next(((start, made) for start, made in self._made if start <= frame < start + len(made)), (0, None))

    def _kept(self, first: int, last: int) -> Iterator[Chunk]:
        source = self.source
        if source is None or first < source.frames[0] or last > source.frames[1]:
            raise IndexError(f"there are no frames from {first} to {last} yet")
        return source.read(first - source.start, last - source.start)

    def _usual(self, sound: Waveform) -> Waveform:
        """A sound in stereo, at this clip's rate."""
        if sound.sample_rate != self.rate:
            sound = change_rate(sound, self.rate)
        samples: Samples = np.broadcast_to(sound.samples, (max(LAYOUTS), sound.samples.shape[1]))
        return Waveform(samples, self.rate)

    def _put(self, samples: Samples, at: float) -> None:
        begin = round(at * self.rate)
        part = self._samples[:, begin : begin + samples.shape[1]]
        part[:] = samples[:, : part.shape[1]]


def _end(sound: Waveform) -> float:
    """When a sound ends, in seconds: a short gap at its end is not part of it."""
    levels = np.abs(sound.samples).max(axis=0)
    around = levels[-round(4 * HOLE_SECONDS * sound.sample_rate) :].max(initial=0)
    loud = np.flatnonzero(levels > max(SILENCE, REMNANT * around))
    end = 0.0 if not len(loud) else float(loud[-1] + 1) / sound.sample_rate
    return end if sound.seconds - end <= HOLE_SECONDS else sound.seconds
