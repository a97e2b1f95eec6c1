"""The text encoder of LTX-2.5 out of its one file: a Gemma 4, its configuration, and its tokenizer as bytes."""

import json
import logging
from typing import Any

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration, PreTrainedTokenizerFast

from ltx2.errors import NotReady
from ltx2.model.groups import Held
from ltx2.model.keymaps import TEXT_ENCODER
from ltx2.model.layout import GEMMA_4_CLASS
from ltx2.model.parts import Module
from ltx2.model.weights import WeightsFile, check, fill

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer_json"
TOKENIZER_CONFIG = "hf_asset__tokenizer_config.json"
SPECIAL_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token")


def check_gemma4(file: WeightsFile, width: int, source: WeightsFile | None = None) -> None:
    """Tell whether a file's Gemma is the one a checkpoint was trained with.

    Args:
        file: with the Gemma.
        width: what the text projection takes: hidden size times the number of hidden states.
        source: the file of the transformer, which may say which Gemma it was trained with.

    Raises:
        NotReady: it is another one.
    """
    config = file.json("gemma_config")
    if config.get("architectures") != [GEMMA_4_CLASS]:
        raise NotReady(f"{file.name} does not hold a Gemma4Unified, which LTX-2.5 reads prompts with")
    text = config.get("text_config", {})
    hidden, layers = text.get("hidden_size", 0), text.get("num_hidden_layers", 0)
    if hidden * (layers + 1) != width:
        raise NotReady(
            f"the Gemma in {file.name} is not of the size the text projection wants: "
            f"{layers} layers of {hidden} make {hidden * (layers + 1)} features, not {width}"
        )
    wanted = source.json("gemma_source_checkpoint").get("gemma_version") if source else None
    found = config.get("gemma_version")
    if source and wanted and found and wanted != found:
        raise NotReady(f"{source.name} was trained with {wanted}, but {file.name} holds {found}")


def build_gemma4(held: Held) -> Module:
    """The Gemma of a text-encoder file, without memory for its weights, once these are known to be all there.

    Raises:
        NotReady: its configuration or its weights are not what they should be.
    """
    values = held.file.json("gemma_config")
    try:
        config = Gemma4UnifiedConfig.from_dict(values)
        with init_empty_weights(include_buffers=False):
            module = Gemma4UnifiedForConditionalGeneration(config)
    except Exception as error:
        log.exception("no Gemma can be built from the configuration in %s", held.file.path)
        raise NotReady(f"{held.file.name} has a gemma_config no Gemma can be built from") from error
    weights = TEXT_ENCODER.convert(held.keys, held.shapes)
    check(module, weights, source=held.file.name, tied=set(module.all_tied_weights_keys))
    return module


def load_gemma4(held: Held, dtype: torch.dtype) -> Module:
    """Read the Gemma of a text-encoder file into host memory.

    Raises:
        NotReady: its configuration or its weights are not what they should be.
    """
    module = build_gemma4(held)
    tied = set(module.all_tied_weights_keys)
    with held.file.opened() as read:
        weights = TEXT_ENCODER.convert(held.keys, held.dequantised(read))
        fill(module, weights, dtype, source=held.file.name, tied=tied)
    module.tie_weights()
    return module


def load_tokenizer_bytes(held: Held) -> Any:
    """The tokenizer in a text-encoder file, padding on the left.

    Raises:
        NotReady: it is missing or damaged.
    """
    try:
        with held.file.opened() as read:
            backend = Tokenizer.from_str(_text(read(TOKENIZER)))
            config = json.loads(_text(read(TOKENIZER_CONFIG)))
    except NotReady:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special
        log.exception("the tokenizer in %s cannot be read", held.file.path)
        raise NotReady(f"the tokenizer in {held.file.name} is damaged") from error
    # a token is written as itself, or as an object with what it is
    tokens = {key: config[key] for key in SPECIAL_TOKENS if config.get(key)}
    tokens = {key: token["content"] if isinstance(token, dict) else token for key, token in tokens.items()}
    tokens.setdefault("pad_token", tokens.get("eos_token"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **tokens)


def _text(bytes_: torch.Tensor) -> str:
    return bytes_.numpy().tobytes().decode()
