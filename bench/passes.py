"""One text-to-video generation of the embedded distilled model: passes of the transformer and CPU seconds.

Stock is diffusers' ``LTX2Pipeline`` over the same modules with the distilled sigmas and
``guidance_scale=1``, which is how one turns guidance off there. Its other six scales keep their defaults and
go on costing a pass each.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2 import LTX2Pipeline

from bench.measure import Row, cost
from ltx2.model.components import Components
from ltx2.model.decode import to_uint8_chunks
from ltx2.model.inputs import Inputs
from ltx2.model.pipeline import generate
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.tiny import build_tiny
from ltx2.plan import make_plan
from ltx2.recipes import DISTILLED_SIGMAS
from ltx2.request import GenerationRequest

REQUEST = GenerationRequest(prompt="A lighthouse in the fog, waves break on the rocks", seed=1)


@dataclass(frozen=True)
class Prepared:
    """A model, and stock's pipeline over it."""

    components: Components
    stock: Any


def rows() -> list[Row]:
    """Passes are counted, CPU seconds are the least of two processes."""
    stock, ours = cost(prepare, run_stock), cost(prepare, run_ours)
    name = f"tiny T2V, {REQUEST.width}x{REQUEST.height}x{REQUEST.num_frames}, 8 steps"
    return [
        Row(f"{name}: transformer passes", count(run_stock), count(run_ours), "", guard=3),
        Row("the same prompt again: text encoder calls", repeated(run_stock), repeated(run_ours), "", guard=1),
        Row(f"{name}: CPU", stock.cpu_seconds, ours.cpu_seconds, "CPU s"),
        Row(f"{name}: wall time", stock.wall_seconds, ours.wall_seconds, "s"),
    ]


def prepare() -> Prepared:
    """Build the model and, so that neither pays for first calls, run one step of each."""
    components = build_tiny("tiny", torch.device("cpu"), torch.float32)
    components = replace(components, prompt_cache=PromptCache(2**28))
    stock = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=components.vae,
        audio_vae=components.audio_vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        connectors=components.connectors,
        transformer=components.transformer,
        vocoder=components.vocoder,
    )
    stock.set_progress_bar_config(disable=True)
    prepared = Prepared(components, stock)
    run_stock(prepared, sigmas=(1.0,))
    run_ours(prepared, REQUEST.model_copy(update={"num_inference_steps": 1}))
    return prepared


def run_stock(prepared: Prepared, sigmas: tuple[float, ...] = DISTILLED_SIGMAS[:-1]) -> None:
    prepared.stock(
        prompt=REQUEST.prompt,
        width=REQUEST.width,
        height=REQUEST.height,
        num_frames=REQUEST.num_frames,
        frame_rate=REQUEST.fps,
        num_inference_steps=len(sigmas),
        sigmas=list(sigmas),
        guidance_scale=1.0,
        spatio_temporal_guidance_blocks=list(prepared.components.recipe.stg_blocks),
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    )


def run_ours(prepared: Prepared, request: GenerationRequest = REQUEST) -> None:
    components = prepared.components
    made = generate(components, request, make_plan(request, components.recipe), Inputs({}, 1, 1))
    assert made.pictures is not None
    for _chunk in to_uint8_chunks(made.pictures):  # stock, too, ends with frames in host memory
        pass


def count(run: Any) -> int:
    """How often a run calls the transformer."""
    prepared = prepare()
    calls = count_calls(prepared.components.transformer)
    run(prepared)
    return len(calls)


def repeated(run: Any) -> int:
    """How often the second run of the same request calls the text encoder's language model."""
    prepared = prepare()
    run(prepared)
    calls = count_calls(prepared.components.text_encoder.model.language_model)
    run(prepared)
    return len(calls)


def count_calls(module: Any) -> list[None]:
    """A list that grows by one with each call of a module."""
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls
