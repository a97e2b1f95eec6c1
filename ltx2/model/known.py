"""What is known of one piece before its first step: images, sounds, and what is there of the clip."""

from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from ltx2.geometry import AUDIO_LATENTS_PER_SECOND, Grid
from ltx2.media.audio import Waveform
from ltx2.media.footage import Footage
from ltx2.model.components import Components
from ltx2.model.conditioning import (
    Conditioning,
    ImageConditioning,
    KnownPictures,
    KnownSound,
    SoundConditioning,
)
from ltx2.model.encode import dithered, encode_image, encode_sound, encode_video
from ltx2.model.inputs import Inputs
from ltx2.pieces import NOTHING, Piece, sound_tokens, token_seconds
from ltx2.request import GenerationRequest

ROUNDING = 1e-6
"""Seconds and tokens that are no difference."""


@dataclass(frozen=True)
class Shot:
    """One piece that is to be made, and what it has to go with."""

    piece: Piece
    heard: Waveform | None = None
    """The part of the sound to follow that goes with it."""
    footage: Footage | None = None
    """What there is of the clip."""
    number: int = 0
    """How many runs of the model came before it."""


def encode_pictures(
    components: Components, request: GenerationRequest, inputs: Inputs, shot: Shot, grid: Grid, scale: int = 1
) -> list[Conditioning]:
    """What is known of the video stream of a piece: the pictures that are there, and images.

    Args:
        components: with the VAE.
        request: its length settled.
        inputs: with the images.
        shot: the piece.
        grid: the piece's, or the smaller one of a first stage.
        scale: how many times smaller that is.
    """
    piece, (first, last) = shot.piece, shot.piece.pictures
    fps = float(grid.fps)
    known: list[Conditioning] = []
    latents: dict[str, Tensor] = {}
    # the VAE comes once for all of them
    with components.using("vae") if request.shown_keyframes or shot.footage else nullcontext():
        if shot.footage is not None and piece.known != NOTHING:
            there = encode_video(components, shot.footage.frames(*piece.known), grid, scale)
            kept = tuple(piece.is_kept(frame) for frame in range(grid.latent_frames))
            known.append(KnownPictures(there, piece.offset, kept, fps))
        for keyframe in request.shown_keyframes:
            index, name = keyframe.index(request.length), keyframe.image
            if first <= index < last:
                # that which closes a loop is the first one again
                if name not in latents:
                    latents[name] = encode_image(components, inputs.image(name), grid)
                known.append(ImageConditioning(latents[name], index - piece.start, keyframe.strength, fps))
    return known


def encode_track(components: Components, request: GenerationRequest, shot: Shot, grid: Grid) -> list[Conditioning]:
    """What is known of the audio stream of a piece: the sound to follow, or that which is there."""
    track = request.driving_audio
    if track is not None and shot.heard is not None:
        sound = shot.heard
        if track.dither_db is not None:
            sound = dithered(sound, track.dither_db, request.seed or 0)
        return [SoundConditioning(encode_sound(components, sound, grid), track.strength)]
    if shot.footage is None or shot.footage.heard is None or shot.piece.known == NOTHING:
        return []
    fps, start = grid.fps, float(shot.piece.start / grid.fps)
    if shot.piece.sound == NOTHING:
        # it stays as a whole, and so does the silence after it: all of it is frozen, like a sound to follow
        whole = shot.footage.sound(start, start + grid.grid_seconds)
        return [SoundConditioning(encode_sound(components, whole, grid), strength=1.0)]
    first, last = (float(frame / fps) for frame in shot.piece.known)
    first, last = max(first, shot.footage.heard[0]), min(last, shot.footage.heard[1])
    kept = kept_tokens(shot.piece, grid, first - start, last - start)
    if not any(kept):
        return []
    token = kept_from(first - start)
    sound = shot.footage.sound(start + token / AUDIO_LATENTS_PER_SECOND, last)
    return [KnownSound(encode_sound(components, sound, grid), token, kept)]


def kept_from(seconds: float) -> int:
    """The first audio latent of a piece that begins no earlier than what is known, so many seconds into it."""
    return max(0, ceil(seconds * AUDIO_LATENTS_PER_SECOND - ROUNDING))


def kept_tokens(piece: Piece, grid: Grid, first: float, last: float) -> tuple[bool, ...]:
    """Which audio latents of a piece stay as they are known, from ``first`` to ``last`` seconds into it."""
    count, start = grid.audio_latent_frames, float(piece.start / grid.fps)
    begin, end = (float(frame / grid.fps) - start for frame in piece.sound)
    made = set(sound_tokens((begin, end), count))
    token = kept_from(first)

    def is_kept(at: int) -> bool:
        # the first latent of a sound stands for a quarter of the others' time: it fits at the beginning alone
        within = at >= token and (at > token or token == 0) and token_seconds(at)[1] <= last + ROUNDING
        return within and at not in made

    return tuple(is_kept(at) for at in range(count))
