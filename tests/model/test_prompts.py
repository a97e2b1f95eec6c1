"""What a prompt costs the second time."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.prompts import encode_prompt

Tiny = Callable[[str], Components]
CPU = torch.device("cpu")


def contexts(value: float) -> Contexts:
    """40 bytes."""
    return Contexts(torch.full((1, 2, 3), value), torch.full((1, 2, 2), value))


def test_a_repeated_prompt_runs_neither_text_encoder_nor_connectors(tiny: Tiny) -> None:
    components = replace(tiny("tiny"), prompt_cache=PromptCache(2**20))
    calls: list[str] = []
    hooks = [
        getattr(components, part).register_forward_hook(lambda *_, part=part: calls.append(part))
        for part in ("connectors", "text_encoder")
    ]
    language_model = components.text_encoder.model.language_model
    hooks.append(language_model.register_forward_hook(lambda *_: calls.append("language_model")))
    hooks.append(components.text_encoder.lm_head.register_forward_hook(lambda *_: calls.append("lm_head")))
    try:
        with torch.inference_mode():
            once = encode_prompt(components, "a lighthouse")
            again = encode_prompt(components, " a lighthouse\n")
            encode_prompt(components, "a ship")
    finally:
        for hook in hooks:
            hook.remove()
    # the head over the vocabulary is never run, and neither is the class around the language model
    assert calls == ["language_model", "connectors"] * 2
    assert torch.equal(once.video, again.video)
    assert torch.equal(once.audio, again.audio)


def test_what_was_used_longest_ago_goes_first_and_the_bound_holds() -> None:
    cache = PromptCache(100)
    for name, value in (("a", 1.0), ("b", 2.0)):
        cache.put(name, contexts(value))
    assert cache.nbytes == 80
    assert cache.get("a", CPU) is not None
    cache.put("c", contexts(3.0))
    assert cache.nbytes == 80
    assert cache.get("b", CPU) is None
    kept = cache.get("a", CPU)
    assert kept is not None
    assert kept.video.unique().tolist() == [1.0]


def test_what_is_larger_than_the_whole_cache_does_not_empty_it() -> None:
    cache = PromptCache(50)
    cache.put("a", contexts(1.0))
    cache.put("b", Contexts(torch.zeros(1, 10, 10), torch.zeros(1, 1, 1)))
    assert cache.get("a", CPU) is not None
    assert cache.get("b", CPU) is None


def test_a_cache_of_no_size_keeps_nothing() -> None:
    cache = PromptCache(0)
    cache.put("a", contexts(1.0))
    assert cache.get("a", CPU) is None
