"""The transformer is called as often as the plan said, by whatever way a clip is made."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from small_clips import INPUTS, Calls, first, make, track
from small_videos import video

from ltx2.media.videofile import VideoLimits
from ltx2.model.components import Components
from ltx2.model.pipeline import generate
from ltx2.plan import make_plan
from ltx2.request import Extend, Guidance, Retake

Tiny = Callable[[str], Components]
OLD = 17
"""Frames of the video that is changed."""
GIVEN = replace(INPUTS, media=INPUTS.media | {"v": video(OLD)}, video_limits=VideoLimits(10_000, 60.0, 1000))
PIECE_SECONDS = 1.0
"""29 frames and fewer are one piece; more are added by up to 16 to 9 that are shown."""
TWO = {"width": 128, "pipeline": "two_stage"}

# In parentheses: the passes of one step. A dev checkpoint's recipe wants cond, uncond, perturbed and isolated.
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("tiny", {}, 2),
    ("tiny", {"guidance": Guidance(video_cfg=3.0)}, 2 * 2),
    ("tiny-2.5", {"keyframes": first("a"), "num_inference_steps": 3}, 3),
    ("tiny", {"audio": track()}, 2),
    ("tiny-dev", {}, 2 * 4),
    ("tiny-dev", {"guidance": Guidance(video_stg=0.0, audio_stg=0.0)}, 2 * 3),
    ("tiny-dev", {"audio": track(), "guidance": Guidance(video_modality=1.0)}, 2 * 3),
    ("tiny", TWO, 2 + 3),
    ("tiny-dev", TWO, 2 * 4 + 3),
    ("tiny", TWO | {"output": {"format": "wav"}}, 2 + 3),
    ("tiny-dev", TWO | {"output": {"format": "wav"}}, 2 * 4),
    ("tiny-dev", {"video": "v", "retake": Retake(start=0.1, end=0.4)}, 2 * 4),
    ("tiny-dev", {"video": "v", "retake": Retake(start=0.1, end=0.4, streams="picture")}, 2 * 4),
    ("tiny", {"video": "v", "extend": Extend(seconds=0.32), "num_frames": OLD + 8}, 2),
    ("tiny", {"video": "v", "extend": Extend(seconds=1.0, side="start"), "num_frames": OLD + 25}, 2 * 2),
    ("tiny", {"num_frames": 49}, 2 * 3),
    ("tiny", {"loop": True, "keyframes": first("a")}, 2),
    ("tiny", {"loop": True}, 2 * 2),
]


@pytest.mark.parametrize(("name", "fields", "passes"), CASES)
def test_the_plan_says_how_often_the_transformer_is_called(
    tiny: Tiny, name: str, fields: dict[str, Any], passes: int
) -> None:
    components = tiny(name)
    request = make(**{"width": 64, "num_frames": 9} | ({"num_frames": OLD} if "retake" in fields else {}) | fields)
    plan = make_plan(request, components.recipe, can_refine=components.can_refine, piece_seconds=PIECE_SECONDS)
    steps: list[int] = []
    with Calls(components.transformer) as calls:
        result = generate(components, request, plan, GIVEN, lambda *report: steps.append(report[1]))
        for _ in result.chunks() or ():
            pass
    assert calls.count == plan.passes == passes
    assert max(steps) == plan.all_steps
