"""Prompts as the contexts both streams attend to."""

from typing import Any

import torch

from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts

MAX_TOKENS = 1024
"""A multiple of the connectors' 128 registers, which take the place of the padding."""


def encode_prompt(components: Components, prompt: str) -> Contexts:
    """Encode one prompt, cut after ``MAX_TOKENS`` tokens.

    Since the connectors put learned registers where padding was, all of the contexts are attended to and
    no mask is needed.
    """
    prompt = prompt.strip()
    cache = components.prompt_cache
    if cached := cache.get(prompt, components.device):
        return cached
    tokens = components.tokenizer(
        [prompt], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).to(components.device)
    with components.using("text_encoder"):
        text_encoder: Any = components.text_encoder
        # the language model alone: the head's logits over 1024 tokens would cost half a gigabyte
        output = text_encoder.model.language_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        )
    layers = torch.stack(output.hidden_states, dim=-1)
    with components.using("connectors"):
        video, audio, _ = components.connectors(layers, tokens.attention_mask, padding_side="left")
    contexts = Contexts(video, audio)
    cache.put(prompt, contexts)
    return contexts


def is_cut(components: Components, prompt: str) -> bool:
    """Whether a prompt is longer than the model reads."""
    return len(components.tokenizer(prompt.strip(), verbose=False).input_ids) > MAX_TOKENS
