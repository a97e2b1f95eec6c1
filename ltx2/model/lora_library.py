"""The operator's LoRAs, as the loaded model wears them."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx2.errors import InvalidRequest, NotReady
from ltx2.loras import find_loras
from ltx2.model.components import Components, dtype_of
from ltx2.model.groups import generation_of_file
from ltx2.model.lora import Lora, load_lora
from ltx2.model.weights import open_weights
from ltx2.request import LoraChoice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kept:
    lora: Lora
    changed: tuple[int, int]
    """When its file was last changed, and how many bytes that had."""


class LoraLibrary:
    """Reads LoRAs when they are first asked for, and keeps those used last in host memory; the oldest goes first.

    Args:
        components: the model they are for.
        folder: the operator's; none offers nothing.
        max_bytes: of all that are kept; one that is larger is read each time.
    """

    def __init__(self, components: Components, folder: Path | None = None, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._components = components
        self._folder = folder
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()

    def worn(self, choices: Sequence[LoraChoice]) -> tuple[tuple[Lora, float], ...]:
        """The LoRAs of a request, each with its scale, in host memory. Those of scale 0 are left out.

        Raises:
            InvalidRequest: there is none of that name, or it cannot be worn by this model; it says why.
        """
        loras = []
        for number, (choice, path) in enumerate(zip(choices, find_loras(choices, self._folder), strict=True)):
            if not choice.scale:
                continue
            try:
                lora = self._get(path)
            except NotReady as error:
                raise InvalidRequest(error.message, field=f"loras[{number}].name", hint=error.hint) from None
            log.info("%s is worn at %g: %.3f GB on the device", lora.name, choice.scale, lora.nbytes / 1e9)
            loras.append((lora, choice.scale))
        return tuple(loras)

    def _get(self, path: Path) -> Lora:
        stat = path.stat()
        changed = stat.st_mtime_ns, stat.st_size
        if (kept := self._kept.get(path)) is not None:
            if kept.changed == changed:
                self._kept.move_to_end(path)
                return kept.lora
            # it goes before the other is read: both need not be held
            self.nbytes -= self._kept.pop(path).lora.nbytes
        lora = self._read(path)
        if lora.nbytes <= self.max_bytes:
            self._kept[path] = _Kept(lora, changed)
            self.nbytes += lora.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._kept.popitem(last=False)[1].lora.nbytes
        return lora

    def _read(self, path: Path) -> Lora:
        """Read a LoRA.

        Raises:
            NotReady: it is damaged, or belongs to another model.
        """
        components = self._components
        ours = components.recipe.generation
        # many linears are alike in all of them: where a file says what it is for, that counts
        if (belongs := generation_of_file(open_weights(path)) or ours) != ours:
            raise NotReady(f"{path.name} belongs to another LTX-2: it is for LTX-{belongs}, and this is LTX-{ours}")
        lora = load_lora(path, components.transformer, components.connectors)
        lora = lora.kept(dtype_of(components.transformer), pinned=components.device.type == "cuda")
        # one of them is enough to make a clip of nothing
        if not all(bool(tensor.isfinite().all()) for tensor in lora.tensors):
            raise NotReady(f"{path.name} is damaged: it has numbers that are not finite")
        return lora
