"""A checkpoint in the layout diffusers saves, read strictly: every weight is known, and none is missing."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor

from ltx2.errors import NotReady
from ltx2.model.layout import AGAIN, TOKENIZER, UPSAMPLER, read_json, title, weight_files
from ltx2.model.parts import REQUIRED, Module, Part
from ltx2.model.weights import MISSHAPEN, MISSING, UNKNOWN, WeightsFile, fill, open_weights, refuse
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
GEMMA_3 = "Gemma3ForConditionalGeneration"
GEMMA_4 = "Gemma4UnifiedForConditionalGeneration"
LIBRARIES = ("diffusers", "ltx2", "transformers")


class DiffusersFolder:
    """Implements :class:`ltx2.model.source.Source`.

    Args:
        folder: holds ``model_index.json`` and a folder for each part.
        transformer: the transformer's folder; that of LTX-2.5's dev checkpoint is ``transformer_full``.
        upsampler: the latent upsampler's folder where it is not ``latent_upsampler`` of this one, or a folder
            with such a ``latent_upsampler``.
        text_encoder: a folder with a text encoder to be taken instead of this one's; the tokenizer stays.

    Raises:
        NotReady: a part that every generation needs is incomplete, damaged, or of another generation; the message
            says which. No weights have been read by then.
    """

    stored_fp8 = False
    """Float8 weights are read into the dtype asked for: no published folder has them with their scales."""

    def __init__(
        self,
        folder: Path,
        *,
        transformer: str = "transformer",
        upsampler: Path | None = None,
        text_encoder: Path | None = None,
    ) -> None:
        self.folder = folder
        self._index = read_json(folder / "model_index.json", f"the model {title(folder)!r}")
        self._folders: dict[Part, Path] = {part: folder / part for part in (*REQUIRED, *CLASSES)}
        self._folders["transformer"] = folder / transformer
        if text_encoder is not None:
            self._folders["text_encoder"] = text_encoder
        upsampler = upsampler or folder
        inner = upsampler / UPSAMPLER
        self._folders["upsampler"] = inner if upsampler == folder or inner.is_dir() else upsampler
        for part in REQUIRED:
            _open(self._whole(part), self._whose(part))
            self._class_name(part)
        config = self._config("transformer")
        self.generation: Generation = generation_of(config)
        self.num_layers: int = config.get("num_layers", 48)
        connectors = self._config("connectors")
        width = connectors.get("caption_channels", 3840) * connectors.get("text_proj_in_factor", 49)
        check_text_encoder(self._folders["text_encoder"], self.generation, width, self._whose("text_encoder"))

    def parts(self) -> frozenset[Part]:
        """The parts it has: an optional one counts as soon as its configuration is there."""
        return frozenset(REQUIRED) | {part for part, path in self._folders.items() if (path / "config.json").is_file()}

    def parameters(self, part: Part) -> int:
        """How many weights a part has, from the headers of its files.

        Raises:
            NotReady: the part is missing or incomplete.
        """
        files = _open(self._whole(part), self._whose(part))
        return sum(stored.numel for file in files for stored in file.tensors.values())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:  # noqa: ARG002 (stored_fp8)
        """Read a part into host memory. See :meth:`ltx2.model.source.Source.load`."""
        folder, whose = self._whole(part), self._whose(part)
        if part == "text_encoder":
            return load_transformers(folder, dtype, whose)
        config = self._config(part)
        if part == "transformer":
            config["perturbed_attn"] = True
        elif part == "vocoder" and self.generation != "2.0":
            # the first stage of 2.3 and 2.5 clamps, whatever published configurations say
            config["final_act_fn"] = "clamp"
        elif part == "upsampler":
            _check_upsampler(config, whose)
        kind = _class(self._class_name(part))
        return _explained(whose, folder, lambda: _assemble(kind, config, _open(folder, whose), dtype, whose))

    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, padding on the left.

        Raises:
            NotReady: it is missing or damaged.
        """
        return load_tokenizer(self.folder / TOKENIZER, f"the tokenizer of the model {title(self.folder)!r}")

    def _whose(self, part: Part) -> str:
        return f"the {part} of the model {title(self.folder)!r}"

    def _whole(self, part: Part) -> Path:
        folder = self._folders[part]
        if not folder.is_dir():
            raise NotReady(f"{self._whose(part)} is missing: there is no folder {folder.name}", hint=AGAIN)
        return folder

    def _config(self, part: Part) -> dict[str, Any]:
        return read_json(self._whole(part) / "config.json", self._whose(part))

    def _class_name(self, part: Part) -> str:
        """The class of a part: what model_index.json says, or else its own configuration."""
        key = UPSAMPLER if part == "upsampler" else part
        library, name = self._index.get(key) or (None, None)
        if part == "text_encoder":
            allowed: tuple[str, ...] = (GEMMA_3, GEMMA_4)
        else:
            allowed = CLASSES[part]
            name = name or self._config(part).get("_class_name")
        if (name is not None and name not in allowed) or (library is not None and library not in LIBRARIES):
            raise NotReady(
                f"{library}.{name} is not part of an LTX-2" if library else f"{name} is not an LTX-2's {part}"
            )
        return str(name or allowed[0])


class DiffusersUpsampler:
    """A latent upsampler in a folder of its own, for a checkpoint in another layout.

    Implements :class:`ltx2.model.source.Parts`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whose = f"the upsampler {folder.name!r}"

    def parts(self) -> frozenset[Part]:
        return frozenset({"upsampler"})

    def parameters(self, part: Part) -> int:  # noqa: ARG002 (the only one)
        """How many weights it has."""
        return sum(stored.numel for file in _open(self._folder, self._whose) for stored in file.tensors.values())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:  # noqa: ARG002 (the only one)
        """Read it into host memory."""
        config = read_json(self._folder / "config.json", self._whose)
        _check_upsampler(config, self._whose)
        files = _open(self._folder, self._whose)
        return _explained(
            self._whose,
            self._folder,
            lambda: _assemble(_class("LTX2LatentUpsamplerModel"), config, files, dtype, self._whose),
        )


def generation_of(config: Mapping[str, Any]) -> Generation:
    """Which LTX-2 a transformer's configuration belongs to. What it does not say has diffusers' defaults."""
    if config.get("use_keyframes_abs_pos_embedding", False):
        return "2.5"
    return "2.0" if config.get("use_prompt_embeddings", True) else "2.3"


def check_text_encoder(folder: Path, generation: Generation, width: int, whose: str = "the text encoder") -> None:
    """Tell whether a text encoder is the one a checkpoint was trained with, from its configuration alone.

    Args:
        folder: where its ``config.json`` is.
        generation: of the checkpoint.
        width: what the checkpoint's text projection takes: hidden size times the number of hidden states.
        whose: what to call it in a message.

    Raises:
        NotReady: it is another one.
    """
    config = read_json(folder / "config.json", whose)
    name = _architecture(config, whose)
    wanted = GEMMA_4 if generation == "2.5" else GEMMA_3
    if name != wanted:
        raise NotReady(
            f"{whose} is a {name.removesuffix('ForConditionalGeneration')}, but LTX-{generation} reads prompts with "
            f"{wanted.removesuffix('ForConditionalGeneration')}",
            hint="take the text encoder that belongs to the checkpoint",
        )
    text = config.get("text_config", {})
    hidden, layers = text.get("hidden_size", 0), text.get("num_hidden_layers", 0)
    if hidden * (layers + 1) != width:
        raise NotReady(
            f"{whose} has another size than the checkpoint wants: {hidden} wide with {layers} layers makes "
            f"{hidden * (layers + 1)} features, not {width}",
            hint="take the text encoder that belongs to the checkpoint: the one with 12 billion weights",
        )


def load_transformers(folder: Path, dtype: torch.dtype, whose: str = "the text encoder") -> Module:
    """Read a Gemma 3 or Gemma 4 folder as transformers saves it into host memory, strictly.

    Raises:
        NotReady: a file is missing, damaged or not what it should be; it is not one of the two; it is quantised;
            or its weights are not exactly those of its configuration. The message says which file.
    """
    import transformers

    config = read_json(folder / "config.json", whose)
    kind = getattr(transformers, _architecture(config, whose))
    if "quantization_config" in config:
        raise NotReady(f"{whose} is quantised, which is not supported", hint="take the unquantised weights")
    files = _open(folder, whose)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    # a mismatch is then told like what is missing, by name, instead of as one long RuntimeError
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    started = time.perf_counter()
    module, info = _explained(whose, folder, lambda: kind.from_pretrained(folder, **options))
    source = _source(whose, files)
    refuse(source, UNKNOWN, sorted(info["unexpected_keys"]))
    # the head is tied to the embedding, or else never run: prompts are read by the layers below it
    refuse(source, MISSING, sorted(set(info["missing_keys"]) - {"lm_head.weight"}))
    shapes = [f"{key} {list(stored)} instead of {list(wanted)}" for key, stored, wanted in info["mismatched_keys"]]
    refuse(source, MISSHAPEN, sorted(shapes))
    _log_read(whose, files, started)
    return module.eval().requires_grad_(requires_grad=False)


def load_tokenizer(folder: Path, whose: str = "the tokenizer") -> Any:
    """Read a tokenizer as transformers saves it; it pads on the left, as the connectors want it.

    Raises:
        NotReady: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    read_json(folder / "tokenizer_config.json", whose)
    tokenizer = _explained(whose, folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _architecture(config: Mapping[str, Any], whose: str) -> str:
    names = config.get("architectures") or ["something unnamed"]
    if names[0] not in (GEMMA_3, GEMMA_4):
        raise NotReady(
            f"{whose} is {names[0]}, which cannot read prompts for an LTX-2",
            hint=f"it must be a {GEMMA_3} (LTX-2 and 2.3) or a {GEMMA_4} (LTX-2.5)",
        )
    return str(names[0])


def _check_upsampler(config: Mapping[str, Any], whose: str) -> None:
    if config.get("temporal_upsample", False) or not config.get("spatial_upsample", True):
        raise NotReady(f"{whose} makes more frames, not larger ones", hint="take the spatial upscaler x2")
    if config.get("rational_spatial_scale", 2.0) != 2.0:
        raise NotReady(f"{whose} does not double the size", hint="take the spatial upscaler x2")


def _class(name: str) -> Any:
    import diffusers
    from diffusers.pipelines import ltx2

    return getattr(diffusers, name, None) or getattr(ltx2, name)


def _assemble(
    kind: Any, config: dict[str, Any], files: Sequence[WeightsFile], dtype: torch.dtype, whose: str
) -> Module:
    """Build a module of diffusers without memory for its weights, and give it those of the files."""
    started = time.perf_counter()
    # buffers are real: what is not in the files is computed by the constructor
    with init_empty_weights(include_buffers=False):
        module = kind.from_config(config)
    fill(module, _tensors(files), dtype, source=_source(whose, files))
    _log_read(whose, files, started)
    return module.eval().requires_grad_(requires_grad=False)


def _open(folder: Path, whose: str) -> list[WeightsFile]:
    """The files of one part, each of them there and whole."""
    try:
        return [open_weights(file) for file in weight_files(folder, whose)]
    except NotReady as error:
        if error.message.startswith(whose):
            raise
        raise NotReady(f"{whose} cannot be read: {error.message}", hint=error.hint) from error


def _tensors(files: Sequence[WeightsFile]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with file.opened() as read:
            for name in file.tensors:
                yield name, read(name)


def _source(whose: str, files: Sequence[WeightsFile]) -> str:
    """A part by the name of its file, or of the first of several."""
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{whose} ({files[0].name}{others})"


def _log_read(whose: str, files: Sequence[WeightsFile], started: float) -> None:
    size = sum(file.path.stat().st_size for file in files)
    log.info("read %s: %.1f GB in %.1f s", whose, size / 1e9, time.perf_counter() - started)


def _explained(whose: str, folder: Path, load: Callable[[], T]) -> T:
    try:
        return load()
    except NotReady:
        raise
    except Exception as error:
        log.exception("%s could not be loaded from %s", whose, folder)
        raise NotReady(
            f"{whose} could not be loaded: {type(error).__name__}", hint="the server's log says more"
        ) from error
