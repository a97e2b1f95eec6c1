"""What writes prompts out, found in folders as transformers saves them."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ltx2.errors import NotReady
from ltx2.model.gemma import gemma_files, load_tokenizer, load_transformers
from ltx2.model.layout import ENHANCER_CLASS, PROCESSOR, PROMPT_ENHANCER, title
from ltx2.model.source import Enhancer
from ltx2.model.weights import understood

IMAGE_CONFIGS = ("preprocessor_config.json", "processor_config.json")
"""Where an image processor is described: by itself, or within a processor."""
ENHANCER_FOLDERS = "download its folders prompt_enhancer and processor, and put them beside the others"


def writing_text_encoder(places: Sequence[Path], whose: str) -> Enhancer:
    """A text encoder that writes prompts out itself, as those of LTX-2.0 and 2.3 do.

    Args:
        places: folders that may have a tokenizer or an image processor, the best first.
        whose: what to call the owner in a message.

    Raises:
        NotReady: no tokenizer there has a chat template, or something is damaged.
    """
    return Enhancer(_asking_tokenizer(places, whose), _image_processor(places, whose))


def enhancer_beside(folder: Path) -> Enhancer:
    """The writer of prompts that LTX-2.5 has: in a folder of its own, beside the other parts.

    Raises:
        NotReady: it is not there, not complete, or not what it should be.
    """
    part, places = folder / PROMPT_ENHANCER, [folder / PROCESSOR, folder / PROMPT_ENHANCER]
    if not part.is_dir():
        raise NotReady(f"the model {title(folder)!r} has no prompt enhancer", hint=ENHANCER_FOLDERS)
    whose = f"the prompt enhancer of the model {title(folder)!r}"
    _, files = gemma_files(part, whose, (ENHANCER_CLASS,))
    return Enhancer(
        _asking_tokenizer(places, whose),
        _image_processor(places, whose),
        partial(load_transformers, part, whose=whose, classes=(ENHANCER_CLASS,)),
        sum(stored.numel for file in files for stored in file.tensors.values()),
    )


def _asking_tokenizer(places: Sequence[Path], whose: str) -> Any:
    for place in places:
        if (place / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(place, f"the tokenizer of {whose}")
            if tokenizer.chat_template:
                return tokenizer
    raise NotReady(
        f"{whose} has no tokenizer with a chat template, without which it cannot be asked to write",
        hint="download the folder processor of its repository, or the tokenizer_config.json of its text encoder anew",
    )


def _image_processor(places: Sequence[Path], whose: str) -> Any | None:
    from transformers import AutoImageProcessor

    for place in places:
        if any(_describes_images(place / name) for name in IMAGE_CONFIGS):
            with understood(f"the image processor of {whose}"):
                # of two kinds the one that needs no torchvision
                return AutoImageProcessor.from_pretrained(place, local_files_only=True, backend="pil")
    return None


def _describes_images(file: Path) -> bool:
    """Whether it says how images are prepared: an older processor_config.json has nothing but the number of tokens."""
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return "image_processor_type" in config or "image_processor" in config
