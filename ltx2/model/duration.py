"""How long the clip of a prompt should be, as LTX-2.5's duration head tells it."""

from collections.abc import Sequence
from fractions import Fraction

import torch

from ltx2.geometry import SHORTEST_SECONDS, TEMPORAL_RATIO, TRAINED_SECONDS
from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts
from ltx2.model.lora import Lora
from ltx2.model.parts import Module
from ltx2.model.prompts import encode_prompts


@torch.inference_mode()
def predict_frames(
    components: Components, prompt: str, fps: Fraction, most: int, loras: Sequence[tuple[Lora, float]] = ()
) -> int | None:
    """How many frames the clip of a prompt should have; None where the model cannot tell.

    The contexts it is told from are those the clip is made with: the prompt cache keeps them until then.

    Args:
        components: the model.
        prompt: that is used, written out or not.
        fps: frame rate of the clip.
        most: frames that a clip may have here.
        loras: what the connectors wear, each with its scale.
    """
    if components.duration_head is None:
        return None
    (contexts,) = encode_prompts(components, prompt, loras=loras)
    with components.using("duration_head"):
        return frames_of(components.duration_head, contexts, fps, most)


def frames_of(head: Module, contexts: Contexts, fps: Fraction, most: int) -> int:
    """What the head says of the contexts of one prompt, as frames: 8k + 1 of them, and within bounds.

    Between 1 and 20 seconds, as in the official pipelines, and never more than ``most`` frames.
    """
    # a bound that is on the grid itself is never overstepped on the way to it
    most = (most - 1) // TEMPORAL_RATIO * TEMPORAL_RATIO + 1
    longest = min(float(TRAINED_SECONDS), float(most / fps))
    frames: int = head.predict_num_frames(
        contexts.video,
        contexts.audio,
        frame_rate=float(fps),
        temporal_compression_ratio=TEMPORAL_RATIO,
        min_seconds=min(float(SHORTEST_SECONDS), longest),
        max_seconds=longest,
    )
    return frames
