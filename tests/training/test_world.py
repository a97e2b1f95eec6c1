"""The world the embedded model is trained on: its pictures, sounds and captions tell of the same thing."""

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from training import pictures, senses, sounds
from training.captions import COLOUR_NAMES, KEPT_BACK, QUESTIONS, TRAINED, caption, nothing, written_out
from training.world import CONTRAST, PITCHES, STEADY, UNSEEN_PAIRS, Motion, Scene, contrast

RATE = 24_000
SIZES = ((160, 96), (96, 160), (160, 96), (288, 160))


def scenes(count: int, seed: int = 1, *, unseen: bool = False) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [Scene.draw(rng, unseen=unseen) for _ in range(count)]


def seen(scene: Scene, number: int, frames: int = 25, fps: float = 24) -> list[senses.Sight]:
    width, height = SIZES[number % len(SIZES)]
    clip = pictures.frames(scene, width, height, np.linspace(0, frames - 1, 9, dtype=np.float32), fps)
    assert clip.shape == (9, height, width, 3)
    return [senses.look(picture) for picture in clip]


def test_a_seed_is_a_scene() -> None:
    assert scenes(5) == scenes(5)
    assert scenes(5) != scenes(5, seed=2)
    for scene in scenes(200):
        assert (scene.colour, scene.shape) not in UNSEEN_PAIRS
        assert contrast(scene.colour, scene.ground) >= CONTRAST
    assert {(scene.colour, scene.shape) for scene in scenes(60, unseen=True)} == UNSEEN_PAIRS


def test_eyes_see_what_was_drawn_also_when_it_is_blurred_and_noisy() -> None:
    rng = np.random.default_rng(3)
    for number, scene in enumerate(scenes(40)):
        width, height = SIZES[number % len(SIZES)]
        clip = pictures.frames(scene, width, height, np.array([0, 5, 10], np.float32), 24).astype(np.float32)
        for axis in (1, 2):
            clip = (clip + np.roll(clip, 1, axis) + np.roll(clip, -1, axis)) / 3
        clip = np.clip(clip + rng.normal(0, 5, clip.shape), 0, 255).astype(np.uint8)
        sights = [senses.look(picture) for picture in clip]
        assert (senses.most(sights, "colour"), senses.most(sights, "shape")) == (scene.colour, scene.shape)
        assert senses.most(sights, "ground") == scene.ground


def test_nothing_is_seen_where_there_is_nothing() -> None:
    empty = senses.look(np.full((96, 160, 3), (36, 80, 215), np.uint8))
    assert (empty.ground, empty.colour, empty.shape, empty.area) == ("blue", None, None, 0.0)


def test_what_moves_goes_the_way_it_is_named_for_and_the_rest_stays() -> None:
    for number, scene in enumerate(scenes(40)):
        across, down = senses.travel(seen(scene, number))
        if scene.motion in STEADY:
            wanted = np.array(STEADY[scene.motion])
            assert np.dot(wanted, (across, down)) > 0.05
            assert abs(np.dot(wanted[::-1], (across, down))) < 0.01
        elif scene.motion in (Motion.STILL, Motion.PULSE):
            assert max(abs(across), abs(down)) < 0.02


def test_speed_is_a_matter_of_seconds_not_of_frames() -> None:
    scene = Scene("red", "square", "black", Motion.RIGHT, x=0.0, speed=0.4)
    slow, fast = (senses.travel(seen(scene, 0, frames, fps))[0] for frames, fps in ((49, 48), (25, 24)))
    assert slow == pytest.approx(fast, abs=0.01)


@pytest.mark.parametrize("motion", [Motion.BOUNCE, Motion.PULSE])
def test_beats_are_heard_when_they_are_seen(motion: Motion) -> None:
    for scene in [each for each in scenes(60, seed=4) if each.motion is motion][:4]:
        clip = pictures.frames(scene, 160, 96, np.arange(97, dtype=np.float32), 48)
        sights = [senses.look(picture) for picture in clip]
        heard = sounds.sound(scene, 2.0, RATE)
        beats = [beat for beat in scene.beats(2.0) if 0.1 < beat < 1.9]
        assert beats
        onsets = senses.onsets(heard, RATE, 2.0)
        for beat in beats:
            assert min(abs(onset - beat) for onset in onsets) < 0.06
            at = round(beat * 48)
            if motion is Motion.BOUNCE:
                # lowest when it touches the floor
                assert sights[at].y > max(sights[at - 4].y, sights[min(at + 4, 96)].y)
            else:
                assert sights[min(at + 8, 96)].area > 1.5 * sights[at - 1].area


def test_the_pitch_is_the_colours_and_the_place_is_heard() -> None:
    for scene in scenes(60, seed=5):
        heard = sounds.sound(scene, 1.0, RATE)
        assert senses.pitch(heard, RATE)[0] == scene.colour
        assert 0.05 < float(np.abs(heard).max()) < 1
    left = sounds.sound(Scene("red", "star", "black", Motion.STILL, x=0.0), 0.5, RATE)
    assert np.abs(left[0]).mean() > 2 * np.abs(left[1]).mean()
    assert senses.pitch(np.zeros((2, RATE), np.float32), RATE) == (None, 0.0)
    assert senses.onsets(np.zeros((2, RATE), np.float32), RATE, 1.0) == []


def test_pitches_lie_apart_on_the_mel_scale() -> None:
    tones = list(PITCHES.values())
    assert all(above / below > 1.2 for below, above in pairwise(tones))


def test_a_caption_tells_what_it_says_it_tells() -> None:
    rng = np.random.default_rng(6)
    for scene in scenes(200):
        told = caption(scene, rng)
        facts = asdict(scene)
        for question in QUESTIONS:
            value = getattr(told, question)
            assert value in (None, facts[question])
        if told.ground is None and told.colour is not None:
            assert any(name.split()[-1] in told.text for name in COLOUR_NAMES[scene.colour])
        assert len(told.classes) == len(QUESTIONS)
        whole = caption(scene, rng, KEPT_BACK, whole=True)
        assert 0 not in whole.classes
        assert scene.colour in written_out(scene, rng)
    assert nothing(rng).classes == (0, 0, 0, 0)


def test_what_is_kept_back_is_not_trained_on() -> None:
    for motion in Motion:
        assert not {*TRAINED.motions[motion]} & {*KEPT_BACK.motions[motion]}
        assert not {*TRAINED.ways.get(motion, ())} & {*KEPT_BACK.ways.get(motion, ())}
    assert not {*TRAINED.verbs} & {*KEPT_BACK.verbs}
    assert not {*TRAINED.grounds} & {*KEPT_BACK.grounds}
    assert not {*TRAINED.things} & {*KEPT_BACK.things}


def test_what_a_clip_does_is_seen() -> None:
    for scene in scenes(40, seed=7):
        clip = pictures.frames(scene, 160, 96, np.arange(0, 33, 2, dtype=np.float32), 24)
        assert senses.motion([senses.look(picture) for picture in clip]) is scene.motion
