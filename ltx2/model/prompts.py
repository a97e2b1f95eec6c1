"""Prompts as the contexts both streams attend to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts
from ltx2.model.lora import Lora, applied

MAX_TOKENS = 1024
"""A multiple of the connectors' 128 registers, which take the place of the padding."""


def encode_prompts(
    components: Components, *prompts: str, loras: Sequence[tuple[Lora, float]] = ()
) -> tuple[Contexts, ...]:
    """Encode prompts, each cut after ``MAX_TOKENS`` tokens; those that are remembered cost nothing.

    Since the connectors put learned registers where padding was, all of the contexts are attended to and
    no mask is needed.

    Args:
        components: of the model.
        prompts: as they are.
        loras: what the clip wears, each with its scale; those that change the connectors are worn by them.
    """
    worn = [(lora.connectors, scale) for lora, scale in loras if lora.connectors is not None and scale]
    wearing = tuple((lora.digest, scale) for lora, scale in worn)
    texts = [prompt.strip() for prompt in prompts]
    cache, device = components.prompt_cache, components.device
    known = {text: contexts for text in texts if (contexts := cache.get(text, device, wearing))}
    if new := [text for text in dict.fromkeys(texts) if text not in known]:
        # one prompt at a time, so that its contexts do not depend on its company; but the parts come once for all
        with components.using("text_encoder"):
            read = [_read(components, text) for text in new]
        with components.using("connectors"), applied(components.connectors, worn):
            for text, (layers, mask) in zip(new, read, strict=True):
                video, audio, _ = components.connectors(layers.to(device), mask.to(device), padding_side="left")
                known[text] = Contexts(video, audio)
                cache.put(text, known[text], wearing)
    return tuple(known[text] for text in texts)


def _read(components: Components, text: str) -> tuple[Tensor, Tensor]:
    """The hidden states of all layers ``[1, tokens, width, layers + 1]``, and the mask of the padding.

    In host memory: those of one prompt have 0.4 GB, and others are to be read beside them.
    """
    tokens = components.tokenizer(
        [text], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).to(components.device)
    text_encoder: Any = components.text_encoder
    # the language model alone: the head's logits over 1024 tokens would cost half a gigabyte
    output = text_encoder.model.language_model(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
    )
    return torch.stack(output.hidden_states, dim=-1).cpu(), tokens.attention_mask.cpu()


def is_cut(components: Components, prompt: str) -> bool:
    """Whether a prompt is longer than the model reads."""
    return len(components.tokenizer(prompt.strip(), verbose=False).input_ids) > MAX_TOKENS
