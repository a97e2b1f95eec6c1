from typing import Any

import pytest
from diffusers.pipelines.ltx2 import utils as stock

from ltx2.errors import InvalidRequest
from ltx2.plan import make_plan
from ltx2.recipes import DISTILLED_SIGMAS, NEGATIVE_PROMPT, NEUTRAL, REFINE_SIGMAS, Kind, Scales, recipe_for
from ltx2.request import AudioTrack, GenerationRequest, Guidance, Keyframe, Retake

DEV, DISTILLED = recipe_for("2.0", "dev"), recipe_for("2.0", "distilled")


def make(**fields: Any) -> GenerationRequest:
    return GenerationRequest(prompt="x", **fields)


def test_the_constants_are_those_diffusers_took_from_the_official_code() -> None:
    assert NEGATIVE_PROMPT == stock.DEFAULT_NEGATIVE_PROMPT
    assert (*stock.DISTILLED_SIGMA_VALUES, 0.0) == DISTILLED_SIGMAS
    assert (*stock.STAGE_2_DISTILLED_SIGMA_VALUES, 0.0) == REFINE_SIGMAS
    assert recipe_for("2.0", "dev").image_crf == recipe_for("2.3", "distilled").image_crf == stock.DEFAULT_IMAGE_CRF
    assert recipe_for("2.5", "dev").image_crf == stock.LTX2_5_IMAGE_CRF


@pytest.mark.parametrize(
    ("generation", "kind", "steps", "block", "sampler"),
    [
        ("2.0", "dev", 40, 29, "euler"),
        ("2.3", "dev", 30, 28, "euler"),
        ("2.5", "dev", 30, 28, "euler"),
        ("2.0", "distilled", 8, 29, "euler"),
        ("2.3", "distilled", 8, 28, "euler"),
        ("2.5", "distilled", 8, 28, "euler_ancestral"),
    ],
)
def test_recipes(generation: Any, kind: Kind, steps: int, block: int, sampler: str) -> None:
    recipe = recipe_for(generation, kind)
    assert (recipe.steps, recipe.stg_blocks, recipe.sampler) == (steps, (block,), sampler)
    guided = (Scales(3, 1, 3, 0.7), Scales(7, 1, 3, 0.7))
    assert (recipe.video, recipe.audio) == (guided if kind == "dev" else (NEUTRAL, NEUTRAL))


def test_what_is_not_asked_for_is_the_recipe_s() -> None:
    plan = make_plan(make(), DEV)
    assert (plan.steps, plan.video, plan.audio, plan.negative_prompt) == (40, DEV.video, DEV.audio, NEGATIVE_PROMPT)
    assert plan.warnings == ()
    assert make_plan(make(), DISTILLED).warnings == ()


def test_what_is_asked_for_wins() -> None:
    plan = make_plan(
        make(guidance=Guidance(video_cfg=5, audio_stg=0, audio_rescale=0), num_inference_steps=12, negative_prompt=""),
        DEV,
    )
    assert plan.video == Scales(5, 1, 3, 0.7)
    assert plan.audio == Scales(7, 0, 3, 0)
    assert (plan.steps, plan.negative_prompt) == (12, "")


def test_a_frozen_sound_is_not_guided_and_a_noised_one_is() -> None:
    assert make_plan(make(audio=AudioTrack(source="a")), DEV).audio == NEUTRAL
    assert make_plan(make(audio=AudioTrack(source="a", strength=0.5)), DEV).audio == DEV.audio


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_inference_steps": 40}, "made for 8 steps"),
        ({"guidance": Guidance(video_cfg=3)}, "needs no guidance"),
        ({"negative_prompt": "fog"}, "negative_prompt has no effect"),
        ({"audio": AudioTrack(source="a"), "guidance": Guidance(audio_cfg=5)}, "guidance of it has no effect"),
        ({"keyframes": (Keyframe(image="k", frame=3, strength=0.0),)}, "An image is ignored"),
        ({"num_frames": 505}, "made in 2 pieces"),
        ({"audio": AudioTrack(source="a", strength=0)}, "sound is ignored"),
    ],
)
def test_a_doubt_is_said(fields: dict[str, Any], said: str) -> None:
    (warning,) = make_plan(make(**fields), DISTILLED).warnings
    assert said in warning


def test_a_negative_prompt_needs_guidance_on_a_dev_checkpoint_too() -> None:
    unguided = make(guidance=Guidance(video_cfg=1, audio_cfg=1), negative_prompt="fog")
    (warning,) = make_plan(unguided, DEV).warnings
    assert "negative_prompt has no effect" in warning


def test_no_doubt_where_there_is_none() -> None:
    quick = make(num_inference_steps=8, guidance=Guidance(video_cfg=1), num_frames=504)
    assert make_plan(quick, DISTILLED).warnings == ()
    guided = make(num_inference_steps=20, guidance=Guidance(video_cfg=3), negative_prompt="fog")
    assert make_plan(guided, DEV).warnings == ()
    # its first image closes it as well
    loop = make(loop=True, keyframes=(Keyframe(image="k", frame="first"),))
    assert make_plan(loop, DISTILLED).warnings == ()


def test_what_is_longer_than_the_model_knows_says_what_to_do() -> None:
    (warning,) = make_plan(make(num_frames=505), DISTILLED, piece_seconds=30).warnings
    assert "more than the 504" in warning
    assert "LTX2_PIECE_SECONDS" in warning
    video = {"video": "v", "num_frames": 1001, "retake": Retake(start=2, end=32, streams="sound")}
    (warning,) = make_plan(make(**video), DISTILLED).warnings
    assert "Retake less at once" in warning


@pytest.mark.parametrize(
    ("width", "height", "pipeline", "can_refine", "stages"),
    [
        (288, 512, "auto", True, 1),
        (1024, 768, "auto", True, 1),
        (1280, 704, "auto", True, 2),
        (1280, 704, "auto", False, 1),
        (1280, 704, "one_stage", True, 1),
        (288, 512, "two_stage", True, 2),
    ],
)
def test_large_pictures_are_made_in_two_stages_where_the_model_can(
    width: int, height: int, pipeline: Any, can_refine: bool, stages: int
) -> None:
    request = make(width=width, height=height, pipeline=pipeline)
    plan = make_plan(request, DISTILLED, can_refine=can_refine)
    assert plan.stages == stages
    assert plan.all_steps == 8 + (3 if stages == 2 else 0)
    multiple = 32 * stages
    assert plan.grid.grid_width % multiple == plan.grid.grid_height % multiple == 0
    assert any("in one stage" in warning for warning in plan.warnings) == (
        pipeline == "auto" and width == 1280 and not can_refine
    )


def test_two_stages_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_plan(make(pipeline="two_stage"), DISTILLED)
    assert caught.value.field == "pipeline"
    assert "LTX2_UPSAMPLER" in str(caught.value.hint)


@pytest.mark.parametrize("steps", [5, 8, 30, 40])
def test_a_distilled_checkpoint_runs_the_steps_asked_for_and_says_when_it_was_made_for_others(steps: int) -> None:
    plan = make_plan(make(num_inference_steps=steps), DISTILLED)
    assert plan.steps == steps
    assert [warning for warning in plan.warnings if f"with {steps} it" in warning] == list(plan.warnings)
    assert len(plan.warnings) == (0 if steps == 8 else 1)
