"""Prompts written out by a language model before they are encoded.

Who writes, with which words it is asked and how it decodes is diffusers' (``pipelines/ltx2``), which has it from the
official code: LTX-2.0 and 2.3 ask their text encoder, a Gemma 3, 2.5 a small Gemma 4 beside it.
"""

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx2.prompt_enhancement import clean_response
from diffusers.pipelines.ltx2.utils import (
    GEMMA3_PROMPT_ENHANCEMENT_CONFIG,
    GEMMA4_PROMPT_ENHANCEMENT_CONFIG,
    I2V_DEFAULT_SYSTEM_PROMPT,
    LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT,
    LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT,
    T2V_DEFAULT_SYSTEM_PROMPT,
)
from numpy.typing import NDArray
from torch import Tensor
from transformers import StoppingCriteria

from ltx2.engine import Cancelled
from ltx2.errors import Canceled, InvalidRequest, NotReady
from ltx2.media.images import with_long_side
from ltx2.model.components import Components, dtype_of
from ltx2.model.inputs import Inputs
from ltx2.model.parts import Module
from ltx2.model.placement import free_memory, read_card
from ltx2.model.source import Enhancer
from ltx2.request import GenerationRequest

log = logging.getLogger(__name__)

LONG_SIDE = 896
"""Pixels of the longer side of an image that is shown, as in the official code."""
TURNS = ("<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>")
"""What begins and ends what one side says, to a Gemma 3 and a Gemma 4."""
WRITING_SHARE = 1.5
"""What writing takes of a device, of what the writer's weights take."""


@torch.inference_mode()
def enhance(
    components: Components,
    request: GenerationRequest,
    inputs: Inputs,
    max_chars: int,
    cancelled: Cancelled = lambda: False,
) -> str | None:
    """Have the prompt of a request written out, looking at the image of its first frame if there is one.

    The same request with the same seed gives the same text on the same machine. LTX-2.5 takes the likeliest word
    each time, so that its text is the same for all seeds. No other randomness is touched.

    Args:
        components: the model.
        request: with a seed.
        inputs: with its images.
        max_chars: of the text; what is more is cut off.
        cancelled: asked before each token.

    Returns:
        A legal prompt; None when nothing came that can be one.

    Raises:
        Canceled: ``cancelled()`` answered True.
        InvalidRequest: the model has not what it takes; the message says what is missing.
    """
    try:
        enhancer = components.enhancer
    except NotReady as error:
        raise InvalidRequest(error.message, field="enhance_prompt", hint=_to_the_operator(error.hint)) from error
    shown = next((keyframe.image for keyframe in request.shown_keyframes if keyframe.is_first), None)
    if shown is not None and enhancer.image_processor is None:
        raise InvalidRequest(
            f"the model {components.name!r} has no image processor, so that nobody can look at {shown}",
            field="enhance_prompt",
            hint=_to_the_operator("add the preprocessor_config.json of its text encoder"),
        )
    image = None if shown is None else with_long_side(inputs.image(shown), LONG_SIDE)
    with _writer(components, enhancer) as model:
        asked = question(model, enhancer, components.recipe.generation == "2.5", request.prompt, image)
        with _seeded(request.seed or 0, components.device):
            return legal_prompt(_write(model, enhancer, asked, cancelled), max_chars)


def legal_prompt(text: str, max_chars: int) -> str | None:
    """What a model wrote, as a prompt that a caller could send; None when nothing is left of it."""
    text = clean_response(text)
    text = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"))
    return text[:max_chars].strip() or None


@contextmanager
def _writer(components: Components, enhancer: Enhancer) -> Iterator[Module]:
    """What writes, at work. One of its own is read each time, and freed again: it would be in the way of all else."""
    if enhancer.load is None:
        with components.using("text_encoder"):
            yield components.text_encoder
        return
    dtype, device = dtype_of(components.text_encoder), components.device
    model = enhancer.load(dtype)
    if device.type != "cpu":
        needed = WRITING_SHARE * enhancer.parameters * dtype.itemsize
        if needed <= read_card(device).available_bytes:
            model.to(device)
        else:
            log.warning("there is no room for the prompt enhancer on the device: it writes on the CPU")
    try:
        yield model
    finally:
        # others still hold on to the module, but to no memory
        model.to("meta")
        free_memory()


def question(
    model: Module, enhancer: Enhancer, is_gemma_4: bool, prompt: str, image: NDArray[np.uint8] | None
) -> dict[str, Tensor]:
    """What the model is asked, on its device.

    transformers' own processors would do the same, but that of Gemma 4 comes with one for videos, which needs
    torchvision.
    """
    tokenizer, config = enhancer.tokenizer, model.config
    soft, begin, end = (
        tokenizer.convert_ids_to_tokens(token)
        for token in (config.image_token_id, config.boi_token_id, config.eoi_token_id)
    )
    for token in (*tokenizer.all_special_tokens, soft, begin, end, *TURNS):
        # they are the template's to say, not the caller's
        prompt = prompt.replace(token, " ")
    if image is None:
        system = LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT if is_gemma_4 else T2V_DEFAULT_SYSTEM_PROMPT
        said: Any = f"user prompt: {prompt}"
    else:
        system = LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT if is_gemma_4 else I2V_DEFAULT_SYSTEM_PROMPT
        said = [{"type": "image"}, {"type": "text", "text": f"User Raw Input Prompt: {prompt}."}]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": said}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked: dict[str, Tensor] = {}
    if image is not None and enhancer.image_processor is not None:
        seen = enhancer.image_processor(images=[image], return_tensors="pt")
        asked["pixel_values"] = seen["pixel_values"].to(dtype_of(model))
        if is_gemma_4:
            asked["image_position_ids"] = seen["image_position_ids"]
            text = _shown(text, soft, f"{begin}{soft * int(seen['num_soft_tokens_per_image'][0])}{end}")
        else:
            text = _shown(text, begin, f"\n\n{begin}{soft * config.mm_tokens_per_image}{end}\n\n")
    tokens = tokenizer([text], return_tensors="pt", verbose=False)
    asked |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    kinds = "mm_token_type_ids" if is_gemma_4 else "token_type_ids"
    asked[kinds] = (tokens.input_ids == config.image_token_id).long()
    return {name: tensor.to(model.device) for name, tensor in asked.items()}


def _shown(text: str, place: str, tokens: str) -> str:
    """The text with an image's tokens where the template has put it."""
    if text.count(place) != 1:
        raise InvalidRequest(
            "the chat template of the model has no place for an image",
            field="enhance_prompt",
            hint=_to_the_operator("add the folder processor of its repository"),
        )
    return text.replace(place, tokens)


def _write(model: Module, enhancer: Enhancer, asked: dict[str, Tensor], cancelled: Cancelled) -> str:
    tokenizer, own = enhancer.tokenizer, model.generation_config
    recipe = GEMMA3_PROMPT_ENHANCEMENT_CONFIG if enhancer.load is None else GEMMA4_PROMPT_ENHANCEMENT_CONFIG
    written = model.generate(
        **asked,
        **recipe.generation_kwargs,
        max_new_tokens=min(recipe.max_new_tokens, own.max_new_tokens or recipe.max_new_tokens),
        eos_token_id=_ends(tokenizer, own.eos_token_id),
        pad_token_id=tokenizer.pad_token_id,
        # those of other kinds have torch compile the model, which would not see its weights come and go
        cache_implementation="dynamic",
        stopping_criteria=[_Cancellation(cancelled)],
    )
    text: str = tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def _ends(tokenizer: Any, known: int | list[int] | None) -> list[int]:
    """The tokens that end what is written: those the model names, and what ends a turn, which not every copy does."""
    ends = known if isinstance(known, list) else [known]
    ends += [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(TURNS))]
    return sorted({end for end in ends if end not in (None, tokenizer.unk_token_id)})


class _Cancellation(StoppingCriteria):  # type: ignore[misc]  # of a library without types
    """Ends a generation that was cancelled, between two tokens."""

    def __init__(self, cancelled: Cancelled) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002 (the library's)
        if self._cancelled():
            raise Canceled("the generation was cancelled")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed for a while: transformers takes no generator. Afterwards all is as it was."""
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            torch.cuda.manual_seed(seed)
        yield


def _to_the_operator(hint: str | None) -> str:
    return f"leave it out; the operator can help: {hint}" if hint else "leave it out"
