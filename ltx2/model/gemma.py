"""A text encoder and its tokenizer as transformers saves them, read strictly."""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ltx2.errors import NotReady
from ltx2.model.layout import GEMMA_3_CLASS, GEMMA_4_CLASS, read_json
from ltx2.model.parts import Module
from ltx2.model.weights import (
    MISSHAPEN,
    MISSING,
    UNKNOWN,
    WeightsFile,
    log_read,
    open_part,
    refuse,
    source_of,
    understood,
)
from ltx2.recipes import Generation

READERS = (GEMMA_3_CLASS, GEMMA_4_CLASS)
"""What reads prompts."""
STRICTLY: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""A mismatch is then told like what is missing, by name, instead of as one long RuntimeError."""


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
    wanted = GEMMA_4_CLASS if generation == "2.5" else GEMMA_3_CLASS
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


def check_transformers(folder: Path, whose: str = "the text encoder") -> None:
    """Refuse beforehand what :func:`load_transformers` would: transformers reads the headers' tensors alike.

    Raises:
        NotReady: see there.
    """
    kind, files = gemma_files(folder, whose)
    stored = {name: tensor.on_meta() for file in files for name, tensor in file.tensors.items()}

    with understood(whose):
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        _, info = kind.from_pretrained(None, config=config, state_dict=stored, device_map={"": "meta"}, **STRICTLY)
    _refuse_others(source_of(whose, files), info)


def load_transformers(
    folder: Path, dtype: torch.dtype, whose: str = "the text encoder", classes: Collection[str] = READERS
) -> Module:
    """Read a Gemma 3 or Gemma 4 folder as transformers saves it into host memory, strictly.

    Raises:
        NotReady: a file is missing, damaged or not what it should be; it is of none of these classes; it is quantised;
            or its weights are not exactly those of its configuration. The message says which file.
    """
    kind, files = gemma_files(folder, whose, classes)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    started = time.perf_counter()
    with understood(whose):
        module, info = kind.from_pretrained(folder, **options, **STRICTLY)
    _refuse_others(source_of(whose, files), info)
    log_read(whose, files, started)
    return module.eval().requires_grad_(requires_grad=False)


def gemma_files(folder: Path, whose: str, classes: Collection[str] = READERS) -> tuple[Any, list[WeightsFile]]:
    """The class and the files of a language model, which must be of one of these classes.

    Raises:
        NotReady: it is not, it is quantised, or a file is missing or damaged.
    """
    import transformers

    config = read_json(folder / "config.json", whose)
    kind = getattr(transformers, _architecture(config, whose, classes))
    if "quantization_config" in config:
        raise NotReady(f"{whose} is quantised, which is not supported", hint="take the unquantised weights")
    return kind, open_part(folder, whose)


def _refuse_others(source: str, info: Mapping[str, Any]) -> None:
    """Refuse a text encoder whose weights are not exactly those of its configuration, as transformers tells it."""
    refuse(source, UNKNOWN, sorted(info["unexpected_keys"]))
    # the head is tied to the embedding, and what reads prompts are the layers below it
    refuse(source, MISSING, sorted(set(info["missing_keys"]) - {"lm_head.weight"}))
    shapes = [f"{key} {list(stored)} instead of {list(wanted)}" for key, stored, wanted in info["mismatched_keys"]]
    refuse(source, MISSHAPEN, sorted(shapes))


def load_tokenizer(folder: Path, whose: str = "the tokenizer") -> Any:
    """Read a tokenizer as transformers saves it; it pads on the left, as the connectors want it.

    Raises:
        NotReady: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    read_json(folder / "tokenizer_config.json", whose)
    with understood(whose):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _architecture(config: Mapping[str, Any], whose: str, classes: Collection[str] = READERS) -> str:
    names = config.get("architectures") or ["something unnamed"]
    if names[0] not in classes:
        if classes is not READERS:
            raise NotReady(f"{whose} is {names[0]}, not {' or '.join(classes)}")
        raise NotReady(
            f"{whose} is {names[0]}, which cannot read prompts for an LTX-2",
            hint=f"it must be a {GEMMA_3_CLASS} (LTX-2 and 2.3) or a {GEMMA_4_CLASS} (LTX-2.5)",
        )
    return str(names[0])
