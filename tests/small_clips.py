"""Requests for clips so small that a tiny model makes them at once, with media to go into them."""

from io import BytesIO
from typing import Any, Self

import numpy as np
import soundfile
import torch
from PIL import Image

from ltx2.model.components import Components
from ltx2.model.conditioning import Stream
from ltx2.model.inputs import Inputs
from ltx2.model.known import Shot
from ltx2.model.pipeline import encode_texts, sample
from ltx2.plan import Plan, make_plan
from ltx2.request import AudioTrack, GenerationRequest, Keyframe

NOISE = np.random.default_rng(7)
SOUNDS = {name: 0.2 * NOISE.standard_normal((16_000, 2)).astype(np.float32) for name in ("a", "b")}


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(NOISE.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def wav(samples: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


MEDIA = {"a": png(), "b": png(), "sound a": wav(SOUNDS["a"]), "sound b": wav(SOUNDS["b"])}
INPUTS = Inputs(MEDIA, max_image_megapixels=1, max_audio_seconds=10)


def make(**fields: Any) -> GenerationRequest:
    small = {"prompt": "x", "width": 96, "height": 64, "num_frames": 17, "seed": 3, "num_inference_steps": 2}
    return GenerationRequest(**small | fields)


def planned(components: Components, request: GenerationRequest) -> Plan:
    return make_plan(request, components.recipe, can_refine=components.can_refine)


@torch.inference_mode()
def latents(components: Components, request: GenerationRequest) -> tuple[Stream, Stream]:
    """Both streams after the last step, by the functions ``generate`` calls."""
    plan = planned(components, request)
    shot = Shot(plan.pieces[0], INPUTS.heard(request, plan, plan.pieces[0]))
    prompts = encode_texts(components, request, plan)
    noise = torch.Generator().manual_seed(request.seed or 0)
    return sample(components, request, plan, INPUTS, shot, prompts, noise)


def first(name: str, strength: float = 1.0) -> tuple[Keyframe, ...]:
    return (Keyframe(image=name, frame="first", strength=strength),)


def track(strength: float = 1.0, name: str = "a") -> AudioTrack:
    return AudioTrack(source=f"sound {name}", strength=strength)


def same(one: tuple[Stream, Stream], other: tuple[Stream, Stream]) -> bool:
    return all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))


class Calls:
    """Counts the calls of a module by a hook."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        self._handle = module.register_forward_hook(self._called)

    def _called(self, *_: object) -> None:
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
