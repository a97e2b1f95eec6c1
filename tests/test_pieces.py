"""In which pieces clips are made: arithmetic alone."""

from itertools import pairwise, product
from typing import Any

import pytest

from ltx2.errors import InvalidRequest
from ltx2.geometry import exact_fps, make_grid
from ltx2.pieces import NOTHING, Piece, check_keyframes, pieces_of, sound_tokens, source_frames, source_start
from ltx2.request import Extend, GenerationRequest, Keyframe, Retake


def ask(num_frames: int, **fields: Any) -> GenerationRequest:
    return GenerationRequest(prompt="x", num_frames=num_frames, **fields)


def extended(have: int, seconds: float, side: Any = "end", fps: float = 25.0) -> GenerationRequest:
    added = max(1, round(seconds * fps))
    return ask(have + added, fps=fps, video="v", extend=Extend(seconds=seconds, side=side))


def retaken(num_frames: int, start: float, end: float, **fields: Any) -> GenerationRequest:
    return ask(num_frames, video="v", retake=Retake(start=start, end=end, **fields))


@pytest.mark.parametrize("num_frames", [1, 49, 500, 504])
def test_a_clip_of_up_to_twenty_seconds_is_one_piece(num_frames: int) -> None:
    whole = (0, num_frames)
    assert pieces_of(ask(num_frames)) == (Piece(0, num_frames, whole, whole),)


def test_longer_ones_are_made_in_as_few_and_as_equal_pieces_as_can_be() -> None:
    # 20 s at 25 fps and 4 frames are 504, of which 497 are whole eights and one; 4 s of them, 97, are shown again
    first, *others = pieces_of(ask(1441))
    assert first == Piece(0, 497, (0, 497), (0, 497))
    # the other 944 fit into three of at most 504 - 97 = 407: 315 each, up to whole eights
    assert [piece.pictures for piece in others] == [(497, 817), (817, 1137), (1137, 1441)]
    assert [piece.known for piece in others] == [(400, 497), (720, 817), (1040, 1137)]
    assert [(piece.start, piece.num_frames) for piece in others] == [(400, 417), (720, 417), (1040, 401)]


CASES = [
    *(ask(n, fps=fps) for n, fps in product((505, 700, 1441, 4000), (12.5, 25, 23.976, 60))),
    *(extended(n, s, side) for n, s, side in product((1, 8, 49, 600), (0.02, 1, 3.3, 45), ("end", "start"))),
]


@pytest.mark.parametrize("piece_seconds", [0.1, 1.0, 7.5, 20.0])
def test_whatever_is_asked_the_pieces_make_all_of_it_once_and_are_shown_what_is_there(piece_seconds: float) -> None:
    for request in CASES:
        pieces = pieces_of(request, piece_seconds)
        have = source_frames(request)
        assert sum(last - first for first, last in (piece.pictures for piece in pieces)) + have == request.length
        there = (source_start(request), source_start(request) + have)
        for piece in pieces:
            first, last = piece.pictures
            assert piece.sound == piece.pictures
            if piece.known != NOTHING:
                assert there[0] <= piece.known[0] < piece.known[1] <= there[1]
                assert (piece.known[1] - piece.known[0]) % 8 == 1
                assert piece.offset % 8 == 0
                assert last == piece.known[0] or first == piece.known[1]
            there = (min(there[0], first), max(there[1], last)) if there[0] < there[1] else (first, last)
            grid = make_grid(64, 64, piece.num_frames, request.exact_fps)
            kept = [piece.is_kept(frame) for frame in range(grid.latent_frames)]
            if piece.known != NOTHING:
                # all that is shown but the single first frame of what comes later stays, and nothing else
                assert sum(kept) == (piece.known[1] - piece.known[0] - 1) // 8 + (piece.offset == 0)
                assert sum(before != after for before, after in pairwise(kept)) <= 1
            assert piece.num_frames <= max(9, piece_seconds * request.exact_fps + 4) + 8
        assert there == (0, request.length)


def test_a_retake_is_widened_to_what_is_made_at_once() -> None:
    # frames 30 up to 45; eights begin at 25 and 41
    (piece,) = pieces_of(retaken(49, 1.2, 1.8))
    assert piece == Piece(0, 49, (25, 49), (30, 45), known=(0, 49))
    assert [piece.is_kept(frame) for frame in range(7)] == [True] * 4 + [False] * 3
    (piece,) = pieces_of(retaken(49, 0.0, 0.04))
    assert (piece.pictures, piece.is_kept(0), piece.is_kept(1)) == ((0, 1), False, True)
    (piece,) = pieces_of(retaken(50, 1.0, 1.9))  # the last frame is an eight by itself, to be filled
    assert (piece.pictures, piece.is_kept(7)) == ((25, 49), True)


@pytest.mark.parametrize("fps", [12.5, 23.976, 24, 25, 29.97, 30, 60])
def test_a_retake_from_frame_to_frame_takes_in_no_other(fps: float) -> None:
    for first in range(1, 400, 8):
        # such times are no binary fractions, and people write them to the millisecond
        start, end = (round(float(frame / exact_fps(fps)), 3) for frame in (first, first + 8))
        request = retaken(409, start, end).model_copy(update={"fps": fps})
        (piece,) = pieces_of(request, piece_seconds=100)
        assert piece.pictures == piece.sound == (first, first + 8)


@pytest.mark.parametrize(
    ("streams", "pictures", "sound"), [("picture", (25, 49), NOTHING), ("sound", NOTHING, (30, 45))]
)
def test_of_a_retake_one_stream_may_stay(streams: Any, pictures: Any, sound: Any) -> None:
    (piece,) = pieces_of(retaken(49, 1.2, 1.8, streams=streams))
    assert (piece.pictures, piece.sound) == (pictures, sound)


def test_of_a_long_video_only_the_surroundings_of_a_retake_are_looked_at() -> None:
    (piece,) = pieces_of(retaken(1400, 30.0, 32.0))
    assert (piece.num_frames, piece.known) == (504, (piece.start, piece.start + 504))
    assert piece.pictures[0] <= 750 < 800 <= piece.pictures[1]
    assert piece.pictures[1] - piece.pictures[0] < 50 + 16
    (late,) = pieces_of(retaken(1400, 55.0, 56.0))
    assert late.known[1] == 1400


def test_images_belong_on_frames_that_are_made() -> None:
    image = (Keyframe(image="image_start", frame="first"),)
    check_keyframes(retaken(49, 0, 1).model_copy(update={"keyframes": image}))
    with pytest.raises(InvalidRequest, match="frame 0 stays that of the video") as caught:
        check_keyframes(extended(49, 1).model_copy(update={"keyframes": image}))
    assert (caught.value.field, caught.value.hint) == (
        "image_start",
        "images may be given for the frames that are made anew, 49 to 73",
    )
    check_keyframes(extended(49, 1).model_copy(update={"keyframes": (Keyframe(image="a", frame="last"),)}))


def test_how_far_a_retake_is_widened_depends_on_where_its_piece_begins() -> None:
    request = retaken(400, 8.0, 8.04)
    ranges = {pieces_of(request, seconds)[0].pictures for seconds in (5.0, 10.0)}
    assert len(ranges) == 2
    for seconds in (5.0, 10.0):
        first, last = pieces_of(request, seconds)[0].pictures
        for frame in (first, last - 1):
            check_keyframes(request.model_copy(update={"keyframes": (Keyframe(image="a", frame=frame),)}), seconds)
        with pytest.raises(InvalidRequest):
            check_keyframes(request.model_copy(update={"keyframes": (Keyframe(image="a", frame=last),)}), seconds)


def test_audio_latents_stand_for_four_mel_frames_each_and_the_first_for_one() -> None:
    # 0 … 0.01, 0.01 … 0.05, 0.05 … 0.09, 0.09 … 0.13 seconds
    assert [*sound_tokens((0.0, 0.005), 4)] == [0]
    assert [*sound_tokens((0.02, 0.06), 4)] == [1, 2]
    assert [*sound_tokens((0.06, 9.0), 4)] == [2, 3]
