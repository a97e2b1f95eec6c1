"""Prompts that need no encoding again."""

from collections import OrderedDict

import torch

from ltx2.model.denoiser import Contexts

Wearing = tuple[tuple[str, float], ...]
"""The LoRAs that the connectors wore: what tells each from others, and its scale."""


class PromptCache:
    """What the connectors made of the prompts used last, in host memory; the oldest goes first.

    A prompt's contexts have some 13 MB. Encoding it runs a text encoder of 12 billion weights, which may have to
    be moved to the device first.

    Args:
        max_bytes: of all contexts together; 0 keeps none.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._contexts: OrderedDict[tuple[str, Wearing], Contexts] = OrderedDict()

    def get(self, prompt: str, device: torch.device, wearing: Wearing = ()) -> Contexts | None:
        """The contexts of a prompt, on a device; None when they are not here."""
        if (contexts := self._contexts.get((prompt, wearing))) is None:
            return None
        self._contexts.move_to_end((prompt, wearing))
        return Contexts(contexts.video.to(device), contexts.audio.to(device))

    def put(self, prompt: str, contexts: Contexts, wearing: Wearing = ()) -> None:
        """Keep the contexts of a prompt, if they fit at all."""
        if contexts.nbytes > self.max_bytes:
            return
        if known := self._contexts.pop((prompt, wearing), None):
            self.nbytes -= known.nbytes
        self._contexts[prompt, wearing] = Contexts(contexts.video.cpu(), contexts.audio.cpu())
        self.nbytes += contexts.nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._contexts.popitem(last=False)[1].nbytes
