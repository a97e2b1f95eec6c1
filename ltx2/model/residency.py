"""Parts of a model that come to the device when they are used, and go again.

Each part that does not stay has its home in host memory, in pinned pages where the device is a GPU. Coming copies
it to the device; leaving drops the copy and puts the weights at home back in its place. Nothing is ever copied
back, since weights are only read.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Final, Literal

import torch
from torch import Tensor, nn

from ltx2.model.parts import Module, Part
from ltx2.model.placement import Placement

STREAMED_BLOCKS: Final[Mapping[Part, str]] = {
    "transformer": "transformer_blocks",
    "text_encoder": "model.language_model.layers",
}
"""The rows of equal blocks that weigh nearly all of what a part weighs."""
ALIGNMENT: Final = 256
"""Bytes: what torch's allocator starts every tensor of its own at a multiple of."""


class Residency:
    """Where each part of a model is, and when.

    Args:
        modules: parts that are loaded already, see :meth:`add`.
        placement: which parts stay on the device.
        device: where they compute. A CPU may be one: it then holds copies, as a GPU would.
    """

    def __init__(self, modules: Mapping[Part, Module], placement: Placement, device: torch.device) -> None:
        self.placement = placement
        self.visits: Counter[Part] = Counter()
        """How often each part came to the device."""
        self._device = device
        self._users: Counter[Part] = Counter()
        self._guests: dict[Part, _Guest] = {}
        for part, module in modules.items():
            self.add(part, module)

    def add(self, part: Part, module: Module) -> None:
        """Move a part to where it belongs: to the device if it stays there, else to host memory."""
        if self.placement.stays(part):
            # diffusers' own to() warns of parts to be kept in float32
            nn.Module.to(module, self._device)
        else:
            blocks = STREAMED_BLOCKS[part] if self.placement.streams(part) else None
            self._guests[part] = _Guest(module, blocks, self._device)

    @contextmanager
    def using(self, *parts: Part) -> Iterator[None]:
        """Have parts on the device for a while. May be nested: a part leaves when its last user does.

        Parts that the model does not have are ignored.
        """
        with ExitStack() as stack:
            for part in parts:
                stack.callback(self._release, part)
                self._users[part] += 1
                guest = self._guests.get(part)
                if guest is not None and self._users[part] == 1:
                    self.visits[part] += 1
                    guest.come()
            yield

    def where(self, part: Part) -> Literal["device", "host"]:
        """Where a part is now. One that streams is on the device while its blocks pass through."""
        return "host" if part in self._guests and not self._users[part] else "device"

    def _release(self, part: Part) -> None:
        self._users[part] -= 1
        guest = self._guests.get(part)
        if guest is not None and not self._users[part]:
            guest.leave()
            if self._device.type == "cuda":
                # what comes next is cut differently, and would not fit between the pieces
                torch.cuda.empty_cache()


class _Weights:
    """The weights and buffers of some modules, at home in host memory."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._device = device
        self._homes = []
        for tensor in tensors:
            # one after the other: a part must not be in host memory twice
            tensor.data = _home(tensor, device)
            self._homes.append((tensor, tensor.data))

    @property
    def nbytes(self) -> int:
        """Bytes they take in one row."""
        return sum(-(-home.nbytes // ALIGNMENT) * ALIGNMENT for _, home in self._homes)

    def come(self) -> None:
        for tensor, home in self._homes:
            tensor.data = torch.empty_like(home, device=self._device).copy_(home, non_blocking=True)

    def copy_to(self, slot: Tensor) -> None:
        """Lay them into a row of bytes on the device, without being there yet."""
        for (_, home), place in zip(self._homes, self._places(slot), strict=True):
            place.copy_(home, non_blocking=True)

    def come_to(self, slot: Tensor) -> None:
        """Be where :meth:`copy_to` laid them."""
        for (tensor, _), place in zip(self._homes, self._places(slot), strict=True):
            tensor.data = place

    def leave(self) -> None:
        for tensor, home in self._homes:
            tensor.data = home

    def _places(self, slot: Tensor) -> Iterator[Tensor]:
        first = 0
        for _, home in self._homes:
            yield slot[first : first + home.nbytes].view(home.dtype).view(home.shape)
            first += -(-home.nbytes // ALIGNMENT) * ALIGNMENT


def _home(tensor: Tensor, device: torch.device) -> Tensor:
    home = tensor.data.cpu()
    # only from pinned pages does a copy go on beside the computation, and at full speed
    return home.pin_memory() if device.type == "cuda" else home


class _Guest:
    """A part that comes and goes."""

    def __init__(self, module: Module, blocks: str | None, device: torch.device) -> None:
        rows = [] if blocks is None else list(module.get_submodule(blocks))
        self._stream = _Stream(rows, device) if rows else None
        streamed = {id(tensor) for block in rows for tensor in _tensors(block)}
        self._rest = _Weights([tensor for tensor in _tensors(module) if id(tensor) not in streamed], device)

    def come(self) -> None:
        # outside inference mode, whoever asks: what is copied inside of it could never be used without
        with torch.inference_mode(False):
            self._rest.come()
            if self._stream is not None:
                self._stream.open()

    def leave(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._rest.leave()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class _Stream:
    """Blocks that pass through two slots on the device: while one computes, the next is copied into the other slot.

    The copies have a stream of their own. Before a slot is filled, the copies wait for what was computed with it;
    before a block computes, the computation waits for its copy. The host waits for neither.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._blocks = blocks
        self._weights = [_Weights(_tensors(block), device) for block in blocks]
        self._device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots: list[Tensor] = []
        self._hooks = ExitStack()
        self._next = 0
        """The block in the first slot, or on its way there."""
        self._at_work = 0
        """The block in the second slot."""

    def open(self) -> None:
        """Have each block come when it is called, and set the first one going."""
        size = max(weights.nbytes for weights in self._weights)
        self._slots = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]
        for index, block in enumerate(self._blocks):
            handle = block.register_forward_pre_hook(lambda *_, index=index: self._enter(index), prepend=True)
            self._hooks.callback(handle.remove)
        self._fetch(0)

    def close(self) -> None:
        """Send all blocks home."""
        self._hooks.close()
        for weights in self._weights:
            weights.leave()
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
        self._slots = []

    def _enter(self, index: int) -> None:
        """A block is called: it comes, the one before it goes, the one after it sets out."""
        if self._next != index:  # the pass before this one was broken off
            self._fetch(index)
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
        self._weights[self._at_work].leave()
        self._weights[index].come_to(self._slots[0])
        self._at_work = index
        self._slots.reverse()
        self._fetch((index + 1) % len(self._blocks))

    def _fetch(self, index: int) -> None:
        """Start copying a block into the first slot."""
        self._next = index
        if self._copies is not None:
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode(False), nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            self._weights[index].copy_to(self._slots[0])
