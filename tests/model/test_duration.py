"""How long a clip becomes whose length was left to the model."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_clips import MEDIA, make

from ltx2.engine import CancelFlag
from ltx2.errors import InvalidRequest
from ltx2.geometry import exact_fps
from ltx2.media.probe import probe_video
from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts
from ltx2.model.duration import frames_of, predict_frames
from ltx2.model.local import LocalEngine
from ltx2.model.original import OriginalFiles
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.prompts import encode_prompts
from ltx2.request import Keyframe
from ltx2.settings import Settings

Tiny = Callable[[str], Components]


@pytest.mark.parametrize(
    ("row", "fps", "most", "frames"),
    [
        # the official code says 0.820 and 0.882 seconds, here ten times as many: 8.203 and 8.820
        (0, "24", 1441, 193),
        (1, "24", 1441, 209),
        (0, "25", 1441, 201),
        (0, "24000/1001", 1441, 193),
        (0, "120", 1441, 977),
        (0, "1", 1441, 1),
        (1, "1", 1441, 9),
        (0, "24", 193, 193),
        (0, "24", 192, 185),
        (0, "24", 9, 9),
        (0, "24", 8, 1),
        (0, "24", 1, 1),
    ],
)
@torch.inference_mode()
def test_what_the_head_says_is_brought_to_the_grid(
    checkpoints: Callable[[str], Path], row: int, fps: str, most: int, frames: int
) -> None:
    numbers = load_file(checkpoints("expected-2.5.safetensors"))
    head = OriginalFiles([checkpoints("ltx-2.5-tiny-duration-head.safetensors")]).load("duration_head", torch.float32)
    head.mlp_out.bias += math.log(10)  # it says the logarithm of the seconds
    video, audio = (numbers[f"text.out_{stream}_context"][row : row + 1] for stream in ("video", "audio"))
    assert float(head(video, audio)) == pytest.approx(10 * float(numbers["duration_head.out_seconds"][row]), rel=1e-5)
    assert frames_of(head, Contexts(video, audio), Fraction(fps), most) == frames


@pytest.mark.parametrize(("seconds", "fps", "frames"), [(0.1, 24, 25), (0.1, 25, 25), (300, 24, 473), (300, 25, 497)])
@torch.inference_mode()
def test_no_clip_is_shorter_than_one_second_or_longer_than_twenty(
    checkpoints: Callable[[str], Path], seconds: float, fps: int, frames: int
) -> None:
    head = OriginalFiles([checkpoints("ltx-2.5-tiny-duration-head.safetensors")]).load("duration_head", torch.float32)
    head.mlp_out.weight.zero_()
    head.mlp_out.bias.fill_(math.log(seconds))
    contexts = Contexts(torch.zeros(1, 4, 64), torch.zeros(1, 4, 32))
    assert frames_of(head, contexts, Fraction(fps), 1441) == frames


@torch.inference_mode()
def test_the_prompt_is_encoded_once_for_the_length_and_the_clip(tiny: Tiny) -> None:
    components = replace(tiny("tiny-2.5"), prompt_cache=PromptCache(2**20))
    calls: list[object] = []
    hook = components.connectors.register_forward_hook(lambda *_: calls.append(1))
    try:
        frames = predict_frames(components, "a lighthouse", Fraction(24), 1441)
        (contexts,) = encode_prompts(components, "a lighthouse")
    finally:
        hook.remove()
    assert len(calls) == 1
    seconds = float(components.duration_head(contexts.video, contexts.audio))
    whole = max(24, min(480, round(24 * seconds)))
    assert frames is not None
    assert frames % 8 == 1
    assert abs(frames - whole) < 8
    assert frames == predict_frames(
        replace(components, prompt_cache=PromptCache(0)), "a lighthouse", Fraction(24), 1441
    )


def test_a_clip_is_as_long_as_the_model_says(tiny: Tiny, tmp_path: Path) -> None:
    engine = LocalEngine(Settings(model="tiny-2.5", data_dir=tmp_path, device="cpu", max_num_frames=30))
    request = make(num_frames=None, width=64, fps=12.0)
    frames = predict_frames(tiny("tiny-2.5"), request.prompt, exact_fps(12.0), 30)
    clip = engine.generate(request, {}, lambda _: None, CancelFlag())
    assert clip.num_frames == frames == probe_video(clip.path).num_frames
    assert not any("how long" in warning for warning in clip.warnings)
    late = (Keyframe(image="a", frame=0), Keyframe(image="b", frame=30))
    with pytest.raises(InvalidRequest, match=f"the last one of this clip, {frames - 1}") as refused:
        engine.generate(request.model_copy(update={"keyframes": late}), MEDIA, lambda _: None, CancelFlag())
    assert refused.value.field == "b"


def test_a_model_that_cannot_tell_makes_a_clip_of_the_usual_length_and_says_so(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu")
    clip = LocalEngine(settings).generate(make(num_frames=None, width=64), {}, lambda _: None, CancelFlag())
    assert clip.num_frames == 49
    assert "This model cannot tell how long a clip should be: it has 49 frames." in clip.warnings
