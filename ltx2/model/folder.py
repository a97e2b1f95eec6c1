"""A checkpoint in the layout diffusers saves, read strictly: every weight is known, and none is missing."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor

from ltx2.errors import NotReady
from ltx2.model.enhancers import enhancer_beside, writing_text_encoder
from ltx2.model.gemma import check_text_encoder, check_transformers, load_tokenizer, load_transformers
from ltx2.model.layout import (
    AGAIN,
    EXTRAS,
    GEMMA_3_CLASS,
    GEMMA_4_CLASS,
    PROCESSOR,
    TOKENIZER,
    UPSAMPLER,
    generation_of_config,
    is_whole,
    read_json,
    title,
)
from ltx2.model.parts import REQUIRED, Module, Part
from ltx2.model.source import Enhancer
from ltx2.model.weights import WeightsFile, check, fill, log_read, open_part, source_of, understood
from ltx2.recipes import Generation

log = logging.getLogger(__name__)

T = TypeVar("T")

CLASSES: dict[Part, tuple[str, ...]] = {
    "connectors": ("LTX2TextConnectors",),
    "transformer": ("LTX2VideoTransformer3DModel",),
    "vae": ("AutoencoderKLLTX2Video",),
    "audio_vae": ("AutoencoderKLLTX2Audio",),
    "vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
    "upsampler": ("LTX2LatentUpsamplerModel",),
    "diffusion_decoder": ("LTX2VideoDiffusionDecoderModel",),
    "duration_head": ("LTX2DurationHead",),
}
"""What each part may be. All of diffusers; the text encoder is transformers'."""
LIBRARIES = ("diffusers", "ltx2", "transformers")


class DiffusersFolder:
    """Implements :class:`ltx2.model.source.Source`.

    Args:
        folder: holds ``model_index.json`` and a folder for each part.
        transformer: the transformer's folder; that of LTX-2.5's dev checkpoint is ``transformer_full``.
        text_encoder: a folder with a text encoder to be taken instead of this one's; the tokenizer stays.

    Raises:
        NotReady: a part is incomplete, damaged, of another generation, or has not exactly the weights its
            configuration says; the message says which. No weights have been read by then.
    """

    stored_fp8 = False
    """Float8 weights are read into the dtype asked for: no published folder has them with their scales."""

    def __init__(
        self,
        folder: Path,
        *,
        transformer: str = "transformer",
        text_encoder: Path | None = None,
    ) -> None:
        self.folder = folder
        with understood(f"the model {title(folder)!r}"):
            self._examine(transformer, text_encoder)

    def _examine(self, transformer: str, text_encoder: Path | None) -> None:
        folder = self.folder
        self._index = read_json(folder / "model_index.json", f"the model {title(folder)!r}")
        self._folders: dict[Part, Path] = {part: folder / part for part in REQUIRED}
        self._folders["transformer"] = folder / transformer
        if text_encoder is not None:
            if text_encoder.is_file():
                raise NotReady(
                    f"{text_encoder.name} is a file, and the model {title(folder)!r} is in the layout of diffusers",
                    hint="set LTX2_TEXT_ENCODER to the folder of a text encoder as transformers saves it",
                )
            self._folders["text_encoder"] = text_encoder
        for part in EXTRAS:
            if is_whole(folder / part):
                self._folders[part] = folder / part
            elif (folder / part).is_dir():
                log.warning("%s is incomplete: going without", self._whose(part))
        for part in self._folders:
            open_part(self._whole(part), self._whose(part))
            self._class_name(part)
        config = self._config("transformer")
        self.generation: Generation = generation_of_config(config)
        self.num_layers: int = config.get("num_layers", 48)
        connectors = self._config("connectors")
        width = connectors.get("caption_channels", 3840) * connectors.get("text_proj_in_factor", 49)
        check_text_encoder(self._folders["text_encoder"], self.generation, width, self._whose("text_encoder"))
        check_transformers(self._folders["text_encoder"], self._whose("text_encoder"))
        self._built = {part: self._build(part) for part in self._folders if part != "text_encoder"}

    def parts(self) -> frozenset[Part]:
        """The parts it has. A latent upsampler is one of its own: :class:`DiffusersUpsampler`."""
        return frozenset(self._folders)

    def parameters(self, part: Part) -> int:
        """How many weights a part has, from the headers of its files.

        Raises:
            NotReady: the part is missing or incomplete.
        """
        files = open_part(self._whole(part), self._whose(part))
        return sum(stored.numel for file in files for stored in file.tensors.values())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:  # noqa: ARG002 (stored_fp8)
        """Read a part into host memory. See :meth:`ltx2.model.source.Source.load`."""
        folder, whose = self._whole(part), self._whose(part)
        if part == "text_encoder":
            return load_transformers(folder, dtype, whose)
        module = self._built.pop(part) if part in self._built else self._build(part)
        with understood(whose):
            return _filled(module, open_part(folder, whose), dtype, whose)

    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, padding on the left.

        Raises:
            NotReady: it is missing or damaged.
        """
        return load_tokenizer(self.folder / TOKENIZER, f"the tokenizer of the model {title(self.folder)!r}")

    def enhancer(self) -> Enhancer:
        """What writes prompts out: LTX-2.5's own, or else the text encoder. See :class:`ltx2.model.source.Source`."""
        if self.generation == "2.5":
            return enhancer_beside(self.folder)
        places = [self.folder / PROCESSOR, self.folder / TOKENIZER, self._folders["text_encoder"]]
        return writing_text_encoder(places, f"the model {title(self.folder)!r}")

    def _build(self, part: Part) -> Module:
        folder, whose, config = self._whole(part), self._whose(part), self._config(part)
        if part == "transformer":
            config["perturbed_attn"] = True
        elif part == "vocoder" and self.generation != "2.0":
            # the first stage of 2.3 and 2.5 clamps, whatever published configurations say
            config["final_act_fn"] = "clamp"
        kind = _class(self._class_name(part))
        with understood(whose):
            return _built(kind, config, open_part(folder, whose), whose)

    def _whose(self, part: Part) -> str:
        return f"the {part} of the model {title(self.folder)!r}"

    def _whole(self, part: Part) -> Path:
        folder = self._folders.get(part)
        if folder is None or not folder.is_dir():
            name = folder.name if folder else part
            raise NotReady(f"{self._whose(part)} is missing: there is no folder {name}", hint=AGAIN)
        return folder

    def _config(self, part: Part) -> dict[str, Any]:
        return read_json(self._whole(part) / "config.json", self._whose(part))

    def _class_name(self, part: Part) -> str:
        """The class of a part: what model_index.json says, or else its own configuration."""
        library, name = self._index.get(part) or (None, None)
        if part == "text_encoder":
            allowed: tuple[str, ...] = (GEMMA_3_CLASS, GEMMA_4_CLASS)
        else:
            allowed = CLASSES[part]
            name = name or self._config(part).get("_class_name")
        if (name is not None and name not in allowed) or (library is not None and library not in LIBRARIES):
            raise NotReady(
                f"{library}.{name} is not part of an LTX-2" if library else f"{name} is not an LTX-2's {part}"
            )
        return str(name or allowed[0])


class DiffusersUpsampler:
    """A latent upsampler, in a folder of its own or inside one: ``latent_upsampler``.

    Implements :class:`ltx2.model.source.Parts`.

    Raises:
        NotReady: it is incomplete, damaged, or another kind of upsampler.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / UPSAMPLER if (folder / UPSAMPLER).is_dir() else folder
        self._whose = f"the upsampler {title(folder)!r}"
        config = read_json(self._folder / "config.json", self._whose)
        with understood(self._whose):
            if (name := config.get("_class_name", *CLASSES["upsampler"])) not in CLASSES["upsampler"]:
                raise NotReady(f"{self._whose} is a {name}, which is no LTX-2's upsampler")
            _check_upsampler(config, self._whose)
            kind, files = _class(*CLASSES["upsampler"]), open_part(self._folder, self._whose)
            self._build = partial(_built, kind, config, files, self._whose)
            self._build()

    def parts(self) -> frozenset[Part]:
        return frozenset({"upsampler"})

    def parameters(self, part: Part) -> int:  # noqa: ARG002 (the only one)
        """How many weights it has."""
        return sum(stored.numel for file in open_part(self._folder, self._whose) for stored in file.tensors.values())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:  # noqa: ARG002 (the only one)
        """Read it into host memory."""
        files = open_part(self._folder, self._whose)
        with understood(self._whose):
            return _filled(self._build(), files, dtype, self._whose)


def _check_upsampler(config: Mapping[str, Any], whose: str) -> None:
    if config.get("temporal_upsample", False) or not config.get("spatial_upsample", True):
        raise NotReady(f"{whose} makes more frames, not larger ones", hint="take the spatial upscaler x2")
    if config.get("rational_spatial_scale", 2.0) != 2.0:
        raise NotReady(f"{whose} does not double the size", hint="take the spatial upscaler x2")


def _class(name: str) -> Any:
    import diffusers
    from diffusers.pipelines import ltx2

    return getattr(diffusers, name, None) or getattr(ltx2, name)


def _built(kind: Any, config: dict[str, Any], files: Sequence[WeightsFile], whose: str) -> Module:
    """A module of diffusers without memory for its weights, once these are known to be all in the files."""
    # buffers are real: what is not in the files is computed by the constructor
    with init_empty_weights(include_buffers=False):
        module = kind.from_config(config)
    stored = [(name, tensor.on_meta()) for file in files for name, tensor in file.tensors.items()]
    check(module, stored, source=source_of(whose, files))
    return module


def _filled(module: Module, files: Sequence[WeightsFile], dtype: torch.dtype, whose: str) -> Module:
    """Give a module the weights of the files."""
    started = time.perf_counter()
    fill(module, _tensors(files), dtype, source=source_of(whose, files))
    log_read(whose, files, started)
    return module.eval().requires_grad_(requires_grad=False)


def _tensors(files: Sequence[WeightsFile]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with file.opened() as read:
            for name in file.tensors:
                yield name, read(name)
