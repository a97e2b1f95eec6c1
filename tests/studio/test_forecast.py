"""What is learned from the seconds of clips, with clips whose cost is known: the estimator, without a clock."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ltx2.engine import ClipFacts, ModelFacts
from ltx2.plan import Plan, make_plan
from ltx2.recipes import recipe_for
from ltx2.request import AudioTrack, Extend, GenerationRequest, Keyframe, Retake
from ltx2.settings import Settings
from ltx2.studio.forecast import Forecast, fit, work_of

MODEL = ModelFacts("a model", recipe_for("2.3", "distilled"), can_refine=True)
SHAPES = ((64, 64, 9), (288, 512, 49), (512, 512, 97), (768, 512, 121), (1280, 704, 121))

Costs = Mapping[str, Sequence[float]]
MINIATURE: Costs = {  # each call costs more than what it does
    "encoding": (0.02, 0.01, 0.01, 0, 0),
    "denoising": (0.008, 1e-5, 1e-9),
    "decoding": (0.01, 3e-8),
    "muxing": (0.02, 4e-8),
}
REAL: Costs = {
    "encoding": (0.4, 0.1, 0.1, 0, 0),
    "denoising": (0.03, 5e-5, 1.4e-9),
    "decoding": (0.1, 2e-8),
    "muxing": (0.05, 2e-8),
}


def make(shape: tuple[int, int, int] = SHAPES[1], **fields: Any) -> GenerationRequest:
    width, height, num_frames = shape
    return GenerationRequest(**{"prompt": "x", "width": width, "height": height, "num_frames": num_frames} | fields)


def planned(request: GenerationRequest) -> Plan:
    return make_plan(request, MODEL.recipe, can_refine=True)


def cost(request: GenerationRequest, costs: Costs, *, is_new: bool = True) -> dict[str, float]:
    """What each phase of a clip takes."""
    work = work_of(request, planned(request), is_new=is_new)
    return {phase: sum(a * b for a, b in zip(costs[phase], work[phase], strict=True)) for phase in costs}


def clip(request: GenerationRequest, seconds: Mapping[str, float], **facts: Any) -> ClipFacts:
    plan = planned(request)
    known = {
        "width": request.width,
        "height": request.height,
        "num_frames": request.length,
        "fps": request.exact_fps,
        "audio_sample_rate": None,
        "seed": 0,
        "steps": plan.steps,
        "stages": plan.stages,
        "model": MODEL.name,
        "warnings": (),
        "seconds": {"loading": 0.0001} | dict(seconds),
    }
    return ClipFacts(**known | facts)


class Machine:
    """Makes clips in seconds that are known, and has a forecast learn from them."""

    def __init__(self, costs: Costs, seed: int = 0) -> None:
        self.costs = costs
        self.dice = random.Random(seed)
        self.forecast = Forecast(Settings())
        self.made = 0

    def make(self, request: GenerationRequest, factor: float = 1.0, noise: float = 0.07) -> None:
        self.made += 1
        request = request.model_copy(update={"prompt": f"{self.made}"})
        spread = {phase: self.dice.uniform(1 - noise, 1 + noise) for phase in self.costs}
        seconds = {phase: each * factor * spread[phase] for phase, each in cost(request, self.costs).items()}
        self.forecast.learn(request, clip(request, seconds))

    def is_off(self, request: GenerationRequest) -> float:
        """By how much of what a clip takes it is predicted wrongly."""
        predicted = sum(self.forecast.predict(MODEL, request, planned(request), is_loaded=True).values())
        return abs(predicted / sum(cost(request, self.costs).values()) - 1)


@pytest.mark.parametrize("costs", [MINIATURE, REAL], ids=["miniature", "real"])
@pytest.mark.parametrize("shape", SHAPES)
def test_after_three_clips_of_a_size_the_next_one_is_known_though_the_first_was_slow(
    costs: Costs, shape: tuple[int, int, int]
) -> None:
    machine = Machine(costs)
    for factor in (4.0, 1.0, 1.0):
        machine.make(make(shape), factor)
    assert machine.is_off(make(shape, prompt="another")) < 0.1


@pytest.mark.parametrize("costs", [MINIATURE, REAL], ids=["miniature", "real"])
@pytest.mark.parametrize("seed", range(10))
def test_after_three_clips_of_different_sizes_those_between_are_known(costs: Costs, seed: int) -> None:
    machine = Machine(costs, seed)
    for shape, factor in (((512, 512, 49), 3.0), (SHAPES[1], 1.0), (SHAPES[3], 1.0)):
        machine.make(make(shape), factor)
    for between in (SHAPES[1], (512, 512, 49), SHAPES[2], SHAPES[3], (768, 512, 97)):
        assert machine.is_off(make(between, prompt="another")) < 0.3


def test_some_clips_of_a_busy_machine_change_little() -> None:
    machine = Machine(REAL)
    for number in range(20):
        machine.make(make(SHAPES[1 + number % 3]), factor=5.0 if number % 4 == 3 else 1.0)
    for shape in SHAPES[1:]:
        assert machine.is_off(make(shape, prompt="another")) < 0.15


def test_a_machine_that_has_become_slower_is_believed() -> None:
    machine = Machine(REAL)
    for number in range(140):
        machine.make(make(SHAPES[1 + number % 3]), factor=1.0 if number < 60 else 3.0)
    machine.costs = {phase: [3 * each for each in costs] for phase, costs in REAL.items()}
    assert machine.is_off(make(prompt="another")) < 0.15


def test_nothing_is_said_of_a_model_that_has_made_nothing() -> None:
    machine = Machine(REAL)
    assert machine.forecast.predict(MODEL, make(), planned(make()), is_loaded=True) == {}
    machine.make(make())
    other = ModelFacts("another", MODEL.recipe)
    assert machine.forecast.predict(other, make(), planned(make()), is_loaded=True) == {}
    assert (machine.forecast.count(MODEL), machine.forecast.count(other)) == (1, 0)
    assert machine.is_off(make(prompt="another")) < 0.1


def test_two_stages_and_pieces_are_the_sum_of_their_passes() -> None:
    machine = Machine(REAL)
    for shape in (SHAPES[1], SHAPES[2], SHAPES[3], SHAPES[1]):
        machine.make(make(shape), noise=0.0)
    long, large = make((512, 512, 1201)), make(SHAPES[4])
    assert len(planned(long).pieces) == 3
    assert planned(large).stages == 2
    for request in (long, large):
        assert machine.is_off(request.model_copy(update={"prompt": "another"})) < 0.3


def test_a_prompt_that_was_encoded_lately_costs_nothing() -> None:
    forecast, request = Forecast(Settings()), make(prompt="the same")
    for number in range(3):
        forecast.learn(request, clip(request, {"encoding": 0.001 if number else 2.0, "denoising": 1.0}))
    forecast.learn(make(prompt="an other one"), clip(request, {"encoding": 2.0, "denoising": 1.0}))
    plan = planned(request)
    assert forecast.predict(MODEL, request, plan, is_loaded=True)["encoding"] < 0.1
    assert forecast.predict(MODEL, make(prompt="new"), plan, is_loaded=True)["encoding"] == pytest.approx(2, rel=0.1)
    # a process that is started anew remembers no prompt
    assert forecast.predict(MODEL, request, plan, is_loaded=False)["encoding"] == pytest.approx(2, rel=0.1)
    forecast.start()
    assert forecast.predict(MODEL, request, plan, is_loaded=True)["encoding"] == pytest.approx(2, rel=0.1)


def test_loading_counts_where_the_model_is_not_there() -> None:
    forecast, request = Forecast(Settings()), make()
    plan = planned(request)
    forecast.learn(request, clip(request, {"denoising": 1.0}))
    assert forecast.predict(MODEL, request, plan, is_loaded=True)["loading"] == 0
    assert "loading" not in forecast.predict(MODEL, request, plan, is_loaded=False)
    for seconds in (7.0, 9.0, 8.0):
        forecast.learn(request, clip(request, {"loading": seconds, "denoising": 1.0}))
    assert forecast.predict(MODEL, request, plan, is_loaded=True)["loading"] == 0
    assert forecast.predict(MODEL, request, plan, is_loaded=False)["loading"] == pytest.approx(8, rel=0.1)


def test_a_clip_that_was_made_twice_for_its_flaw_counts_as_two() -> None:
    forecast, request = Forecast(Settings()), make()
    for _ in range(3):
        forecast.learn(request, clip(request, {"denoising": 4.0, "muxing": 2.0}, retried_for=("silent",)))
    predicted = forecast.predict(MODEL, request, planned(request), is_loaded=True)
    assert predicted["denoising"] == pytest.approx(2, rel=0.05)
    assert predicted["muxing"] == pytest.approx(1, rel=0.05)
    # the operator's checker sees only the second
    shown = make(content_check="full")
    for _ in range(3):
        forecast.learn(shown, clip(shown, {"denoising": 4.0, "checking": 3.0}, retried_for=("silent",)))
    predicted = forecast.predict(MODEL, shown, planned(shown), is_loaded=True)
    assert predicted["checking"] == pytest.approx(3, rel=0.05)


def test_a_prompt_that_was_written_out_is_the_one_that_is_encoded() -> None:
    forecast, asked = Forecast(Settings()), make(prompt="a lamp", enhance_prompt=True)
    forecast.learn(asked, clip(asked, {"encoding": 2.0, "denoising": 1.0}, prompt="a lamp, in detail"))
    for prompt in ("one", "another"):
        forecast.learn(make(prompt=prompt), clip(make(), {"encoding": 1.0, "denoising": 1.0}))
    found = {}
    for prompt in ("a lamp", "a lamp, in detail"):
        request = make(prompt=prompt)
        found[prompt] = forecast.predict(MODEL, request, planned(request), is_loaded=True)["encoding"]
    assert found["a lamp"] == pytest.approx(1, rel=0.1)
    assert found["a lamp, in detail"] < 0.1


def test_images_a_sound_and_a_check_cost_what_they_cost_before() -> None:
    forecast = Forecast(Settings())
    plain = make()
    shown = make(keyframes=(Keyframe(image="a", frame="first"),), audio=AudioTrack(source="b"), content_check="full")
    for number in range(4):
        for request, seconds in ((plain, {}), (shown, {"checking": 3.0})):
            new = request.model_copy(update={"prompt": f"{number} {request.mode}"})
            forecast.learn(new, clip(new, {"encoding": 3.0 if seconds else 1.0, "denoising": 1.0} | seconds))
    asked = {"plain": plain, "shown": shown}
    found = {name: forecast.predict(MODEL, each, planned(each), is_loaded=True) for name, each in asked.items()}
    assert found["plain"]["encoding"] == pytest.approx(1, rel=0.1)
    assert found["shown"]["encoding"] == pytest.approx(3, rel=0.1)
    assert "checking" not in found["plain"]
    assert found["shown"]["checking"] == pytest.approx(3, rel=0.1)


def test_work_is_counted_over_all_stages_and_pieces() -> None:
    # 64x64: 4 cells of 32x32; 9 frames: 2 latent ones; 9 / 25 s: 9 audio latents, half as wide
    work = work_of(make((64, 64, 9)), planned(make((64, 64, 9))), is_new=True)
    assert work["denoising"] == pytest.approx((8, 8 * 12 * (1 + 12 / 40_000), 8 * 12**2))
    assert work["decoding"] == (1, 64 * 64 * 9)
    assert work["muxing"] == (1, 64 * 64 * 9)
    assert work["encoding"] == (1, 0, 0, 0, 0)
    # at half the size 8 passes over 8 + 4 tokens, then 3 over 4 times 8 and 4
    two = make((128, 128, 9), pipeline="two_stage")
    assert work_of(two, planned(two), is_new=False)["denoising"][2] == 8 * 12**2 + 3 * 36**2
    sound = make((64, 64, 9), output={"format": "wav"})
    assert work_of(sound, planned(sound), is_new=True)["decoding"] == (1, 0)
    # the second piece is shown the pictures of the first
    both = make((64, 64, 601), output={"format": "wav"})
    assert [planned(both).grid_of(piece).num_frames for piece in planned(both).pieces] == [497, 201]
    assert work_of(both, planned(both), is_new=True)["decoding"] == (2, 64 * 64 * 497)
    # where only the sound is made anew, all pictures are those of the video
    kept = make((64, 64, 33), video="v", retake=Retake(start=0, end=1, streams="sound"))
    assert work_of(kept, planned(kept), is_new=True)["decoding"] == (1, 0)
    longer = make((64, 64, 33), video="v", extend=Extend(seconds=0.64))
    assert work_of(longer, planned(longer), is_new=True)["encoding"][3] == 64 * 64 * 17


def test_costs_are_never_below_nothing_and_fit_what_was_seen() -> None:
    # 2 + 3x, and one that is far off
    rows = [(1.0, float(x)) for x in range(1, 8)]
    seconds = [2 + 3 * x for _, x in rows]
    seconds[3] *= 10
    assert fit(rows, seconds, [1.0] * 7, (1.0, 1.0)) == pytest.approx((2, 3), rel=0.15)
    falling = fit(rows, [10 - x for _, x in rows], [1.0] * 7, (1.0, 1.0))
    assert min(falling) >= 0
    # of one size nothing can be told apart: shared as guessed
    assert fit([(1.0, 5.0)] * 3, [6.0] * 3, [1.0] * 3, (1.0, 1.0)) == pytest.approx((3, 3 / 5), rel=0.01)
    assert fit([(1.0, 0.0)], [0.0], [1.0], (1.0, 1.0)) == (0, 0)


def test_whose_prompts_were_encoded_lately_is_nobody_elses_business() -> None:
    forecast, ours = Forecast(Settings()), make(prompt="a secret")
    forecast.learn(make(prompt="another"), clip(make(), {"encoding": 1.0, "denoising": 1.0}), "ann")
    forecast.learn(ours, clip(ours, {"encoding": 1.0, "denoising": 1.0}), "ann")
    found = {
        owner: forecast.predict(MODEL, ours, planned(ours), is_loaded=True, owner=owner)["encoding"]
        for owner in ("ann", "bob")
    }
    assert found["ann"] < 0.1
    assert found["bob"] == pytest.approx(1, rel=0.1)
