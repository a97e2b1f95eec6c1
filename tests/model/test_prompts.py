"""What a prompt costs the second time."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ltx2.model.checkpoint import load_components
from ltx2.model.components import Components
from ltx2.model.denoiser import Contexts
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.prompts import encode_prompts
from ltx2.settings import Settings

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
            (once,) = encode_prompts(components, "a lighthouse")
            again, _ship = encode_prompts(components, " a lighthouse\n", "a ship")
    finally:
        for hook in hooks:
            hook.remove()
    # the head over the vocabulary is never run, and neither is the class around the language model
    assert calls == ["language_model", "connectors"] * 2
    assert components.prompt_cache.nbytes == 2 * once.nbytes
    assert torch.equal(once.video, again.video)
    assert torch.equal(once.audio, again.audio)


def test_what_was_used_longest_ago_goes_first_and_the_bound_holds() -> None:
    cache = PromptCache(100)
    for name, value in (("a", 1.0), ("b", 2.0)):
        cache.put(name, contexts(value))
    assert cache.nbytes == 80
    assert cache.get("a", CPU) is not None
    cache.put("c", contexts(3.0))
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


def test_two_prompts_bring_the_text_encoder_once_and_do_not_depend_on_each_other(tiny: Tiny) -> None:
    components = load_components(Settings(model="tiny", offload="model", prompt_cache_mb=0))
    with torch.inference_mode():
        alone, _ = encode_prompts(tiny("tiny"), "fog", "fog")
        together = encode_prompts(components, "fog", "rain")
    assert components.residency is not None
    assert components.residency.visits["text_encoder"] == components.residency.visits["connectors"] == 1
    assert torch.equal(alone.video, together[0].video)
    assert not torch.equal(alone.video, together[1].video)
