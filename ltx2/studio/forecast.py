"""How long a clip will take, learned from those that were made.

Each phase costs a sum of few things, none of them less than nothing: denoising so much for each pass, for each token of
it and for each pair of tokens; decoding so much for each run and each pixel. What each costs is fitted to the seconds
that finished clips took, by least absolute relative errors, so that some that were made while the machine was busy
change little. What the clips seen do not tell apart (all of one size, say) is shared out evenly.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

from ltx2.engine import ClipFacts, ModelFacts
from ltx2.errors import LTX2Error
from ltx2.footprint import pixels, tokens
from ltx2.pieces import NOTHING
from ltx2.plan import Plan, make_plan
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

KEPT: Final = 200
"""Clips that are learned from at most."""
HALF_LIFE: Final = 30
"""After so many clips one counts half: machines and settings change."""
COLD_SECONDS: Final = 0.1
"""A clip that waited for its model for longer was the first one of a process."""
AGREES: Final = 0.25
"""How far, relatively, a first clip may be from what the others say, to be learned from as well."""
REMEMBERED: Final = 30
"""Prompts that are likely to need no encoding again."""

_ROUNDS: Final = 12
_SWEEPS: Final = 60
_EXACT: Final = 0.02
"""A relative error that is as good as none."""
_GUESSED: Final = 1e-2
"""How much a guess weighs beside what was seen."""
_GUESSES: Final[Mapping[str, tuple[float, ...]]] = {"denoising": (0.5, 0.5, 0.0)}
"""The share of each thing in a typical clip, as far as the clips seen do not tell; else all are alike."""
ATTENTION_TOKENS: Final = 40_000
"""So many tokens attend to each other in the time that all else takes of the full-size transformer: of its blocks'
multiplications some 20 · 4096² for each token, and 2 · 4096 for each pair of them."""
_ONCE: Final = ("loading", "checking")
"""Phases that a clip goes through once, however often it is made."""
_SHORT: Final = 0.05
"""Of what is typical: how much shorter something may be before its relative error says nothing."""

Work = Mapping[str, tuple[float, ...]]
"""What each phase of a clip has to do: numbers of the things that cost time there."""


def work_of(request: GenerationRequest, plan: Plan, *, is_new: bool) -> Work:
    """What a clip takes.

    Args:
        request: its length settled.
        plan: of the request.
        is_new: whether its prompt has to be encoded.
    """
    appended = sum(not keyframe.is_first for keyframe in request.shown_keyframes) / len(plan.pieces)
    refined = plan.run_steps - plan.steps
    passes = each = pairs = drawn = shown = 0.0
    for run in plan.runs:
        grid = plan.grid_of(run)
        stages = [(refined, grid)] if refined else []
        stages.append((plan.steps * plan.step_passes, grid.halved if plan.stages == 2 else grid))
        for count, at in stages:
            length = tokens(at) + appended * at.latent_height * at.latent_width
            passes, pairs = passes + count, pairs + count * length**2
            each += count * length * (1 + length / ATTENTION_TOKENS)
        is_last = run is plan.runs[-1]
        drawn += 0 if run.pictures == NOTHING or (is_last and request.is_sound_only) else pixels(grid)
        shown += request.width * request.height * (run.known[1] - run.known[0])
    written = 0 if request.is_sound_only else request.width * request.height * request.length
    work = {
        "encoding": (
            float(is_new),
            float(len(request.shown_keyframes)),
            float(request.driving_audio is not None),
            shown,
            float(request.enhance_prompt),
        ),
        "denoising": (passes, each, pairs),
        "decoding": (float(len(plan.runs)), drawn),
        "muxing": (1.0, float(written)),
    }
    return work if request.content_check == "none" else work | {"checking": (1.0, float(written))}


def fit(
    rows: Sequence[Sequence[float]], seconds: Sequence[float], weights: Sequence[float], guess: Sequence[float]
) -> tuple[float, ...]:
    """What each of some things costs, in seconds, none less than nothing.

    Args:
        rows: how much of each thing there was, for each clip.
        seconds: what each clip took.
        weights: how much each clip says.
        guess: the share of each thing in a typical clip, where the clips do not tell.
    """
    count = len(rows[0])
    typical = median(seconds)
    if typical <= 0:
        return (0.0,) * count
    # in shares of what is typical, so that no unit counts more than another
    units = [fmean(column) for column in zip(*rows, strict=True)]
    known = [index for index in range(count) if units[index] > 0]
    takes = [max(each, _SHORT * typical) for each in seconds]
    scaled = [
        [row[index] / units[index] * typical / took for index in known] for row, took in zip(rows, takes, strict=True)
    ]
    wanted = [each / took for each, took in zip(seconds, takes, strict=True)]
    whole = sum(guess[index] for index in known)
    guess = shares = [guess[index] / whole if whole else 0.0 for index in known]
    for _ in range(_ROUNDS):
        # least squares, in which each clip weighs less the worse it fits: that makes them least absolute errors
        errors = [abs(want - _dot(row, shares)) for row, want in zip(scaled, wanted, strict=True)]
        says = [weight / max(error, _EXACT) for weight, error in zip(weights, errors, strict=True)]
        shares = _least_squares(scaled, wanted, says, guess)
    costs = [0.0] * count
    for index, share in zip(known, shares, strict=True):
        costs[index] = share * typical / units[index]
    return tuple(costs)


def _least_squares(
    rows: Sequence[Sequence[float]], wanted: Sequence[float], weights: Sequence[float], guess: Sequence[float]
) -> list[float]:
    """Shares that are not negative, those guessed where the rows do not tell."""
    count = len(guess)
    weighted = list(zip(rows, wanted, weights, strict=True))
    pairs = [[sum(w * row[i] * row[j] for row, _, w in weighted) for j in range(count)] for i in range(count)]
    goals = [sum(w * row[i] * want for row, want, w in weighted) for i in range(count)]
    shares = [*guess]
    for _ in range(_SWEEPS):
        for i in range(count):
            others = _dot(pairs[i], shares) - pairs[i][i] * shares[i]
            guessed = _GUESSED * pairs[i][i]
            shares[i] = max(0.0, (goals[i] + guessed * guess[i] - others) / (pairs[i][i] + guessed))
    return shares


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Seen:
    """What one finished clip tells."""

    request: GenerationRequest
    """As it was made, without words."""
    model: str
    seconds: Mapping[str, float]
    is_new: bool
    """Whether its prompt was not among the last ones."""
    is_first: bool
    """Whether it was the first clip of a process: such ones take longer."""
    times: int
    """How often it was made: twice, where the first one had a flaw."""


Costs = Mapping[str, tuple[float, ...]]
"""What each thing costs, in seconds, by phase."""


def costs_of(model: ModelFacts, seen: Iterable[Seen], settings: Settings) -> Costs:
    """What each thing costs that a model does, as far as its clips tell.

    Args:
        model: that made them.
        seen: the clips, the oldest first.
        settings: which say in what pieces clips are made.
    """
    done: dict[str, list[tuple[Seen, tuple[float, ...]]]] = {}
    for each in seen:
        try:
            plan = make_plan(each.request, model.recipe, can_refine=True, piece_seconds=settings.piece_seconds)
        except LTX2Error:  # another version of this program made it
            continue
        work = {"loading": (1.0,), **work_of(each.request, plan, is_new=each.is_new)}
        for phase, things in work.items():
            if each.seconds.get(phase, 0.0) > (COLD_SECONDS if phase == "loading" else 0.0):
                times = 1 if phase in _ONCE else each.times
                done.setdefault(phase, []).append((each, tuple(times * number for number in things)))
    return {phase: _fitted(phase, clips) for phase, clips in done.items()}


def _fitted(phase: str, clips: Sequence[tuple[Seen, tuple[float, ...]]]) -> tuple[float, ...]:
    """What the things of one phase cost. The first clip of a process says nothing where the others say otherwise."""

    def costs(some: Sequence[tuple[Seen, tuple[float, ...]]]) -> tuple[float, ...]:
        weights = [0.5 ** (age / HALF_LIFE) for age in reversed(range(len(some)))]
        rows, seconds = [things for _, things in some], [each.seconds[phase] for each, _ in some]
        return fit(rows, seconds, weights, _GUESSES.get(phase, (1.0,) * len(rows[0])))

    warm = [clip for clip in clips if not clip[0].is_first]
    if phase == "loading" or not warm or len(warm) == len(clips):
        return costs(clips)
    known = costs(warm)
    agreeing = [
        (each, things)
        for each, things in clips
        if not each.is_first or abs(_dot(known, things) / each.seconds[phase] - 1) <= AGREES
    ]
    return costs(agreeing)


class Forecast:
    """Learns from clips, and says how long others will take. Usable from any thread.

    Args:
        settings: which say in what pieces clips are made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._seen: deque[Seen] = deque(maxlen=KEPT)
        self._prompts: deque[tuple[int, str]] = deque(maxlen=REMEMBERED)
        """With whose they are: what others have asked for is nobody's business."""
        self._is_fresh = True
        self._learned = 0
        self._known: tuple[ModelFacts, int, Costs] | None = None
        """What the model's things cost, and how much had been learned then."""

    def start(self) -> None:
        """A server starts: its first clip is the first of a process, and no prompt is remembered."""
        with self._lock:
            self._is_fresh = True
            self._prompts.clear()

    def learn(self, request: GenerationRequest, clip: ClipFacts, owner: str = "") -> None:
        """Take note of a clip that was made.

        Args:
            request: of which it was made.
            clip: what became of it.
            owner: who asked for it.
        """
        with self._lock:
            is_first = self._is_fresh or clip.seconds.get("loading", 0.0) > COLD_SECONDS
            if is_first:
                self._prompts.clear()
            self._is_fresh = False
            made = request.model_copy(
                update={
                    "prompt": "-",
                    "negative_prompt": None,
                    "num_frames": clip.num_frames,
                    "num_inference_steps": clip.steps,
                    "pipeline": "two_stage" if clip.stages == 2 else "one_stage",
                }
            )
            encoded = hash(clip.prompt or request.prompt)
            is_new = encoded not in [prompt for prompt, _ in self._prompts]
            self._prompts.append((encoded, owner))
            times = 2 if clip.retried_for else 1
            self._seen.append(Seen(made, clip.model, clip.seconds, is_new, is_first, times))
            self._learned += 1

    def predict(
        self, model: ModelFacts, request: GenerationRequest, plan: Plan, *, is_loaded: bool, owner: str = ""
    ) -> dict[str, float]:
        """The seconds of each phase; none while no clip of this model was made.

        Args:
            model: that will make it.
            request: its length settled.
            plan: of the request.
            is_loaded: whether the model is there already.
            owner: who asks for it.
        """
        with self._lock:
            known, learned = self._known, self._learned
            seen = [each for each in self._seen if each.model == model.name]
            is_new = not is_loaded or (hash(request.prompt), owner) not in self._prompts
        if known is None or known[:2] != (model, learned):
            # without the lock: it may take a tenth of a second, and the event loop learns
            known = self._known = model, learned, costs_of(model, seen, self._settings)
        costs = known[2]
        work = {"loading": (0.0 if is_loaded else 1.0,), **work_of(request, plan, is_new=is_new)}
        known_phases = {phase: _dot(costs[phase], things) for phase, things in work.items() if phase in costs}
        return {"loading": 0.0, **known_phases} if costs and is_loaded else known_phases

    def count(self, model: ModelFacts) -> int:
        """How many clips of a model are learned from."""
        with self._lock:
            return sum(seen.model == model.name for seen in self._seen)
