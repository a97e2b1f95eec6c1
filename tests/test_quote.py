"""What is said of a request before it is sent: the answer put together, without a server."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from ltx2.engine import EngineStatus, ModelFacts
from ltx2.geometry import make_grid
from ltx2.model.memory import ACTIVATIONS, PARAMETERS
from ltx2.model.placement import Card, plan_placement, planned_shape
from ltx2.payload import GenerateBody, parse, to_request
from ltx2.plan import make_plan
from ltx2.quote import NO_GPU, NOT_TOLD, NOTHING_MADE, Quote, QuoteQueue, make_quote, predicted
from ltx2.recipes import NEGATIVE_PROMPT, recipe_for
from ltx2.settings import Settings

GB = 10**9
DEV = ModelFacts("a dev model", recipe_for("2.3", "dev"), can_refine=True)
LOADED = EngineStatus((DEV.name,), 1.0, 1.0, model=DEV)
NOBODY = QuoteQueue(length=0, running=0, seconds=0.0)


def quote(
    model: ModelFacts = DEV,
    phases: dict[str, float] | None = None,
    queue: QuoteQueue = NOBODY,
    status: EngineStatus = LOADED,
    settings: Settings | None = None,
    **fields: Any,
) -> Quote:
    settings, body = settings or Settings(), GenerateBody(**{"prompt": "x"} | fields)
    request, _ = to_request(body)
    is_open = request.num_frames is None
    request = request.lasting(request.num_frames or 49)
    plan = make_plan(request, model.recipe, can_refine=model.can_refine, piece_seconds=settings.piece_seconds)
    seconds = predicted(phases or {}, len(phases or {}))
    return make_quote(body, request, plan, model, seconds, queue, status, settings, is_open=is_open)


def test_every_default_is_filled_in_and_the_body_may_be_sent() -> None:
    found = quote(width=1280, height=704, num_frames=121, quality=90, guidance={"audio_stg": 0.5})
    body = found.request
    assert body.negative_prompt == NEGATIVE_PROMPT
    # the recipe of LTX-2.3 dev, but for what was asked for
    pictures = {"video_cfg": 3.0, "video_stg": 1.0, "video_modality": 3.0, "video_rescale": 0.7}
    sound = {"audio_cfg": 7.0, "audio_stg": 0.5, "audio_modality": 3.0, "audio_rescale": 0.7}
    assert body.guidance.model_dump() == pictures | sound
    assert (body.num_inference_steps, body.pipeline, body.crf, body.quality) == (30, "two_stage", 18, None)
    assert (body.image_end_strength, body.seed) == (1.0, None)
    again, _ = parse(body.model_dump(mode="json"))
    assert make_plan(again, DEV.recipe, can_refine=True).passes == found.passes == 30 * 4 + 3
    assert (found.stages, found.steps, found.pieces) == (2, 33, 1)
    assert found.duration_seconds == 4.84


def test_media_are_named_and_not_repeated() -> None:
    image = {"image": "data:image/png;base64,AAAA", "frame": 8}
    body = quote(image_start="https://host/secret?token=1", keyframes=[image], audio="UklGRg==").request
    assert (body.image_start, body.audio, body.image_end) == ("image_start", "audio", None)
    assert [keyframe.image for keyframe in body.keyframes] == ["keyframes[0].image"]


def test_the_grid_says_what_is_cut_and_where_nothing_would_be() -> None:
    found = quote(width=500, height=300, num_frames=50)
    grid = found.grid
    assert (grid.width, grid.height, grid.num_frames) == (512, 320, 57)
    assert (grid.crop_left, grid.crop_top, grid.kept_frames) == (6, 10, 50)
    (warning,) = found.warnings
    assert "multiples of 32" in warning
    assert quote(width=512, height=320, num_frames=57).warnings == []


def test_nobody_is_told_to_choose_the_size_of_a_video() -> None:
    body = GenerateBody.model_validate({"prompt": "x", "video": "-", "retake": {"start": 0.0, "end": 1.0}})
    request = to_request(body)[0].model_copy(update={"width": 66, "height": 66})
    plan = make_plan(request, DEV.recipe)
    found = make_quote(body, request, plan, DEV, predicted({}, 0), NOBODY, LOADED, Settings(), is_open=False)
    assert not any("waste" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("gib", "precision", "offload", "fits"),
    [(141, "bf16", "none", True), (24, "fp8", "model", True), (24, "fp8", "model", False)],
)
def test_the_memory_is_that_of_the_placement_for_this_clip(gib: int, precision: Any, offload: Any, fits: bool) -> None:
    # 23.2 GB of a 24 GB card can be used: float8 takes 22.7 for 768x512x121 there, as test_placement.py reckons
    card = Card("cuda", gib * 2**30, gib * 2**30, fp8_matmul=True)
    small = planned_shape(Settings(plan_for="288x512x49"))
    placement = plan_placement(card, PARAMETERS["2.3"], precision, offload, small, ACTIVATIONS["2.3"])
    model = replace(DEV, footprint=placement.footprint)
    width, height = (768, 512) if fits else (1024, 768)
    found = quote(model, width=width, height=height, num_frames=121)
    wanted = replace(placement, shape=make_grid(width, height, 121, Fraction(25)))
    assert found.memory.peak_gb == pytest.approx(wanted.peak_bytes / GB, abs=0.01)
    assert found.memory.budget_gb == pytest.approx(card.available_bytes / GB, abs=0.01)
    assert found.memory.resident_gb == pytest.approx(placement.resident_bytes / GB, abs=0.01)
    assert found.memory.fits is fits
    assert any("should fit" in warning for warning in found.warnings) is not fits
    if not fits:
        (warning,) = (warning for warning in found.warnings if "should fit" in warning)
        # the same length at half the size is 512x384x121
        assert "121 frames at 512x384" in warning


def test_what_cannot_be_known_is_null_and_says_why() -> None:
    found = quote()
    assert (found.memory.peak_gb, found.memory.fits, found.memory.reason) == (None, None, NO_GPU)
    assert (found.seconds.total, found.seconds.phases, found.seconds.reason) == (None, {}, NOTHING_MADE)
    assert found.cost_usd is None
    elsewhere = quote(status=replace(LOADED, model=None))
    assert elsewhere.memory.reason == NOT_TOLD
    assert "its name" in elsewhere.warnings[0]


def test_seconds_and_what_they_cost() -> None:
    phases = {"muxing": 0.5, "denoising": 3.0, "loading": 0.0}
    found = quote(phases=phases, settings=Settings(price_per_second=0.002))
    assert found.seconds.total == 3.5
    assert [*found.seconds.phases] == ["loading", "denoising", "muxing"]
    assert found.cost_usd == 0.007
    assert quote(phases=phases).cost_usd is None


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("LTX2_DEADLINE_SECONDS", {"phases": {"loading": 0.0, "denoising": 4000.0}}),
        ("sent away after 1800 seconds", {"phases": {"loading": 0.0, "denoising": 2000.0}}),
        ("loaded first", {"phases": {"denoising": 1.0}}),
        ("The queue is full", {"queue": QuoteQueue(length=100, running=1, seconds=None)}),
        ("No clip can be made now: it is gone.", {"status": replace(LOADED, fault="it is gone", recovers=True)}),
        ("means nothing", {"model": replace(DEV, doubts=("It means nothing.",))}),
        ("twice as much", {"retry_if": ["silent"]}),
        ("it will have 49 frames", {"num_frames": None}),
        ("reckoned with the longest", {"num_frames": None, "model": replace(DEV, has_duration_head=True)}),
        ("in 2 pieces", {"num_frames": 545, "settings": Settings(piece_seconds=20)}),
    ],
)
def test_what_a_caller_would_want_to_know_before(said: str, change: dict[str, Any]) -> None:
    (warning,) = quote(**change).warnings
    assert said in warning


def test_what_the_model_decides_is_left_open() -> None:
    assert quote(num_frames=None).request.num_frames is None
    assert quote(num_frames=None).num_frames == 49
