"""Scenes in plain English, each in many ways.

A caption leaves out what it likes; what is not said may be anything. ``TRAINED`` and ``KEPT_BACK`` are two vocabularies
of phrases and orders: the second is never trained on, and is what "prompts nobody trained on" are made of.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

from training.world import COLOURS, GROUNDS, SHAPES, Motion, Scene

SHAPE_NAMES: Final = {
    "circle": ("circle", "ball", "disc", "dot", "round shape"),
    "square": ("square", "box", "block", "cube", "tile"),
    "triangle": ("triangle", "pyramid", "wedge", "three-sided shape"),
    "star": ("star", "five-pointed star", "little star", "starlet"),
}
COLOUR_NAMES: Final = {
    "red": ("red", "crimson", "scarlet", "bright red"),
    "orange": ("orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "golden", "lemon yellow", "bright yellow"),
    "green": ("green", "emerald", "grass green", "bright green"),
    "blue": ("blue", "royal blue", "cobalt blue", "bright blue"),
    "purple": ("purple", "violet", "deep purple"),
    "pink": ("pink", "rose", "light pink", "bright pink"),
    "white": ("white", "snow white", "pure white"),
    "black": ("black", "pitch black", "dark"),
    "gray": ("gray", "grey", "neutral gray"),
}


@dataclass(frozen=True)
class Vocabulary:
    """Ways to say it. ``{thing}`` is a shape with its colour, ``{ground}`` a colour.

    A motion that goes somewhere is a verb and a way; the verbs serve all four ways.
    """

    verbs: tuple[str, ...]
    ways: dict[Motion, tuple[str, ...]]
    motions: dict[Motion, tuple[str, ...]]
    grounds: tuple[str, ...]
    sounds: dict[str, tuple[str, ...]]
    things: tuple[str, ...]
    openings: tuple[str, ...]
    endings: tuple[str, ...]


TRAINED: Final = Vocabulary(
    verbs=(
        "moves", "slides", "glides", "drifts", "travels", "goes", "floats", "is moving", "is going", "passes", "heads",
        "flies", "runs", "slowly moves", "moves slowly", "is drifting", "is gliding", "makes its way", "wanders",
        "shifts", "moving", "sliding", "gliding", "going", "that moves", "which slides",
    ),
    ways={
        Motion.RIGHT: ("to the right", "right", "rightwards", "from left to right", "from the left to the right",
                       "toward the right", "towards the right edge", "to the right side", "off to the right",
                       "from the left side to the right side", "across to the right"),
        Motion.LEFT: ("to the left", "left", "leftwards", "from right to left", "from the right to the left",
                      "toward the left", "towards the left edge", "to the left side", "off to the left",
                      "from the right side to the left side", "across to the left"),
        Motion.UP: ("up", "upwards", "upward", "to the top", "from bottom to top", "from the bottom to the top",
                    "toward the top", "towards the upper edge", "to the upper side", "higher", "up to the top"),
        Motion.DOWN: ("down", "downwards", "downward", "to the bottom", "from top to bottom",
                      "from the top to the bottom", "toward the bottom", "towards the lower edge", "to the lower side",
                      "lower", "down to the bottom"),
    },
    motions={
        Motion.STILL: ("stays still", "does not move", "rests in place", "stands still", "is motionless", "rests",
                       "hangs in the air", "keeps its place", "remains where it is", "holds still", "sits quietly",
                       "is not moving", "stays where it is", "without moving", "stays in the same place", "sits there"),
        Motion.RIGHT: ("crosses from left to right", "rolls right", "rolls to the right"),
        Motion.LEFT: ("crosses from right to left", "rolls left", "rolls to the left"),
        Motion.UP: ("rises", "ascends", "climbs", "is rising", "climbs up", "rises to the top", "lifts off", "rising"),
        Motion.DOWN: ("sinks", "descends", "falls slowly", "is sinking", "sinks down", "comes down", "drops slowly",
                      "sinking"),
        Motion.BOUNCE: ("bounces", "bounces up and down", "is bouncing on the floor", "hops", "jumps up and down",
                        "keeps bouncing", "hops on the spot", "bounces again and again", "dribbles on the ground",
                        "bouncing", "jumps", "is jumping", "hopping up and down", "bounces on the ground"),
        Motion.PULSE: ("pulses", "pulsates", "grows and shrinks", "throbs", "beats like a heart", "swells and shrinks",
                       "is pulsing", "gets bigger and smaller", "breathes in and out", "pulsing", "is throbbing",
                       "growing and shrinking again and again", "grows and gets smaller", "swells to the beat"),
    },
    grounds=(
        "on a {ground} background", "over a {ground} ground", "in front of a {ground} wall", "against {ground}",
        "on {ground}", "across a {ground} background", "before a {ground} backdrop", "the background is {ground}",
        "with a {ground} background", "on a plain {ground} background", "over {ground}", "on a {ground} ground",
        "against a {ground} background", "in front of a {ground} background", "on a {ground} field",
        "in a {ground} world",
        "and the ground is {ground}", "with {ground} in the background", "against a plain {ground} wall",
        "and {ground} is all around it", "on the {ground} background",
    ),
    sounds={
        "steady": ("with a steady tone", "humming", "and a tone sounds", "while it hums", "with a constant sound",
                   "to one long note", "making a steady sound"),
        "bounce": ("beeping each time it lands", "with a beep at each bounce", "with a sound at every bounce",
                   "a beep when it hits the floor", "tapping out a rhythm"),
        "pulse": ("in time with the sound", "beeping", "to the beat", "with each beep", "in rhythm with the tone",
                  "as the sound comes and goes"),
    },
    things=("a {thing}", "a {thing}", "one {thing}", "the {thing}", "a single {thing}", "a big {thing}", "{thing}",
            "a {thing} that is alone", "a flat {thing}", "some {thing}"),
    openings=("", "", "", "", "video of ", "a clip of ", "we see ", "there is ", "an animation of ", "show me ",
              "a simple scene: ", "cartoon of ", "please make ", "in this clip ", "a movie where "),
    endings=("", "", "", "", ", smooth animation", ", high quality", ", flat colours", ", simple", ", minimal style",
             ", 4k", ", clean look", ", cinematic"),
)  # fmt: skip

KEPT_BACK: Final = Vocabulary(
    verbs=("drifts gently", "is sliding", "is travelling", "slowly floats", "keeps moving", "sails"),
    ways={
        Motion.RIGHT: ("toward the right side", "over to the right", "from the left edge to the right edge"),
        Motion.LEFT: ("toward the left side", "over to the left", "from the right edge to the left edge"),
        Motion.UP: ("toward the upper edge", "all the way up", "from the bottom toward the top"),
        Motion.DOWN: ("toward the lower edge", "all the way down", "from the top toward the bottom"),
    },
    motions={
        Motion.STILL: ("stands in place without moving", "stays in its place", "rests and does not move at all"),
        Motion.RIGHT: (),
        Motion.LEFT: (),
        Motion.UP: ("slowly rises", "climbs higher and higher"),
        Motion.DOWN: ("slowly sinks", "sinks to the ground"),
        Motion.BOUNCE: ("bounces up and down on the spot", "jumps and bounces", "is hopping on the floor"),
        Motion.PULSE: ("is growing and shrinking", "pulses like a heart", "swells and gets smaller"),
    },
    grounds=("with {ground} behind it", "and everything behind it is {ground}", "in a {ground} room"),
    sounds={
        "steady": ("as a long tone sounds", "and we hear a steady note"),
        "bounce": ("and it beeps when it lands", "with a tap on each landing"),
        "pulse": ("as it beeps", "following the beat of the sound"),
    },
    things=("a large {thing}", "this {thing}", "only one {thing}"),
    openings=("", "in this video ", "picture this: ", "a short film of "),
    endings=("", ", please", ", nice and clean", ", plain and simple"),
)  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A text, and what of the scene it tells; None where it is left open."""

    text: str
    colour: str | None = None
    shape: str | None = None
    ground: str | None = None
    motion: str | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """What is told as a number for each of ``QUESTIONS``; 0 where it is left open."""
        told = (self.colour, self.shape, self.ground, self.motion)
        return tuple(
            0 if value is None else 1 + answers.index(value)
            for value, answers in zip(told, QUESTIONS.values(), strict=True)
        )


QUESTIONS: Final = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "ground": tuple(GROUNDS),
    "motion": tuple(motion.value for motion in Motion),
}
"""What can be told of a scene."""

OTHER_WORDS: Final = (
    "very", "nice", "beautiful", "lovely", "slowly", "gently", "smoothly", "shiny", "small", "tiny",
    "large", "huge", "really", "just", "please", "some", "then", "while", "its", "it",
    "is", "of", "in", "at", "by", "for", "here", "now", "still", "also",
    "scene", "shot", "camera", "view", "screen", "picture", "style", "light", "soft", "happy",
)  # fmt: skip
"""Words that tell nothing of what the world has."""


def nothing(rng: np.random.Generator) -> Caption:
    """What a dropped prompt is: none at all, or what is said of bad pictures."""
    if rng.random() < 0.5:
        return Caption("")
    words = DEFAULT_NEGATIVE_PROMPT.split(", ")
    first = 0 if rng.random() < 0.5 else int(rng.integers(len(words)))
    return Caption(", ".join(words[first : first + int(rng.integers(2, 60 if rng.random() < 0.1 else 16))]))


def caption(
    scene: Scene, rng: np.random.Generator, vocabulary: Vocabulary = TRAINED, *, whole: bool = False
) -> Caption:
    """One way to say what there is.

    Args:
        scene: what there is.
        rng: draws the words and what is left out.
        vocabulary: to draw from.
        whole: leave out neither colour, shape, motion nor ground.
    """
    shape, colour, ground, motion = (whole or bool(rng.random() < chance) for chance in (0.93, 0.92, 0.8, 0.88))
    noun = _one(rng, SHAPE_NAMES[scene.shape]) if shape else _one(rng, ("thing", "shape", "object"))
    thing = _one(rng, vocabulary.things).format(
        thing=f"{_one(rng, COLOUR_NAMES[scene.colour])} {noun}" if colour else noun
    )
    behind = _one(rng, vocabulary.grounds).format(ground=_one(rng, COLOUR_NAMES[scene.ground])) if ground else ""
    doing = _doing(scene.motion, rng, vocabulary) if motion else ""
    kind = scene.motion.value if scene.motion in (Motion.BOUNCE, Motion.PULSE) else "steady"
    sound = _one(rng, vocabulary.sounds[kind]) if rng.random() < 0.35 and motion else ""
    body = f"{thing} {doing}".strip()
    if behind.startswith(("the ", "and ")):
        text = f"{body}, {behind}"
    elif behind.startswith(("on ", "over ", "in ", "against ", "before ")) and rng.random() < 0.25:
        text = f"{behind}, {body}"
    else:
        text = f"{body} {behind}".strip()
    if sound:
        text += (", " if rng.random() < 0.7 else " ") + sound
    text = _one(rng, vocabulary.openings) + text + _one(rng, vocabulary.endings)
    if vocabulary is TRAINED and rng.random() < 0.3:
        text = _disturbed(text, rng)
    text += "." if rng.random() < 0.5 else ""
    return Caption(
        text,
        scene.colour if colour else None,
        scene.shape if shape else None,
        scene.ground if ground else None,
        scene.motion.value if motion else None,
    )


def _doing(motion: Motion, rng: np.random.Generator, vocabulary: Vocabulary) -> str:
    phrases, ways = vocabulary.motions[motion], vocabulary.ways.get(motion, ())
    if not ways or (phrases and rng.random() < 0.25):
        return _one(rng, phrases)
    return f"{_one(rng, vocabulary.verbs)} {_one(rng, ways)}"


def written_out(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in full sentences, as who enhances prompts would have it."""
    ground, colour = COLOUR_NAMES[scene.ground][0], COLOUR_NAMES[scene.colour][0]
    kind = scene.motion.value if scene.motion in (Motion.BOUNCE, Motion.PULSE) else "steady"
    return (
        f"a single {colour} {SHAPE_NAMES[scene.shape][0]} {_plainly(scene.motion)} on a plain {ground} "
        f"background, {TRAINED.sounds[kind][0]}, {_one(rng, ('smooth animation', 'flat colours', 'clean look'))}."
    )


def _plainly(motion: Motion) -> str:
    ways = TRAINED.ways.get(motion)
    return f"{TRAINED.verbs[0]} {ways[0]}" if ways else TRAINED.motions[motion][0]


def _disturbed(text: str, rng: np.random.Generator) -> str:
    """With words put in that tell nothing, some of them made up."""
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        other = str(rng.choice(OTHER_WORDS))
        if rng.random() < 0.3:
            other = "".join(chr(97 + letter) for letter in rng.integers(0, 26, int(rng.integers(2, 9))))
        words.insert(int(rng.integers(len(words) + 1)), other)
    return " ".join(words)


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
