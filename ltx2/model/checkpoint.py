"""From the name of a model to its components."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ltx2.errors import NotReady
from ltx2.model.components import Components, Module
from ltx2.model.placement import choose_device, choose_dtype
from ltx2.model.tiny import TINY_MODELS, build_tiny
from ltx2.recipes import Generation, Kind, Recipe, fit_recipe, recipe_for
from ltx2.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTS = ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder")


def load_components(settings: Settings) -> Components:
    """Load ``LTX2_MODEL``: an embedded model, or a folder in the layout diffusers saves.

    Raises:
        NotReady: there is no such model, or a part of it is missing or damaged; the message says which.
    """
    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    if settings.model in TINY_MODELS:
        log.warning(
            "LTX2_MODEL=%s is a random miniature: its pictures and sounds mean nothing. "
            "Set LTX2_MODEL to the folder of a real LTX-2.",
            settings.model,
        )
        return build_tiny(settings.model, device, dtype)
    return load_folder(find_folder(settings), settings, device, dtype)


def find_folder(settings: Settings) -> Path:
    """The folder a model's name stands for: a path, or a name below ``LTX2_MODELS_DIR``."""
    looked = [Path(settings.model), settings.models_dir / settings.model]
    for folder in looked:
        if (folder / "model_index.json").is_file():
            return folder
    log.error("there is no model_index.json in %s", " or ".join(str(folder) for folder in looked))
    raise NotReady(
        f"no model is called {settings.model!r}",
        hint=f"set LTX2_MODEL to one of {', '.join(TINY_MODELS)}, or to a folder in the layout diffusers saves",
    )


def load_folder(folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype) -> Components:
    """Load every part of a diffusers folder, one after the other, through host memory to the device."""
    index = json.loads((folder / "model_index.json").read_text())
    transformer = _load(folder, "transformer", index, dtype, device, perturbed_attn=True)
    generation = generation_of(transformer.config)
    recipe = _recipe(settings, folder, generation, transformer.config.num_layers)
    modules: dict[str, Module] = {"transformer": transformer}
    for part in PARTS:
        if part == "transformer":
            continue
        overrides = {"final_act_fn": "clamp"} if part == "vocoder" and generation != "2.0" else {}
        modules[part] = _load(folder, part, index, torch.float32 if part == "vocoder" else dtype, device, **overrides)
    return Components(name=settings.model, recipe=recipe, tokenizer=_tokenizer(folder, index), device=device, **modules)


def generation_of(config: Any) -> Generation:
    """Which LTX-2 a transformer's configuration belongs to."""
    if config.use_keyframes_abs_pos_embedding:
        return "2.5"
    return "2.0" if config.use_prompt_embeddings else "2.3"


def _recipe(settings: Settings, folder: Path, generation: Generation, num_layers: int) -> Recipe:
    """Dev or distilled is written in no checkpoint: the setting says it, or the folder's name does."""
    name = folder.resolve().name.lower()
    kinds: list[Kind] = [kind for kind in ("distilled", "dev") if kind in name]
    kind = kinds[0] if settings.recipe == "auto" and kinds else settings.recipe
    if kind == "auto":
        raise NotReady(
            f"is {settings.model} a dev or a distilled checkpoint? Neither its files nor its name say so",
            hint="set LTX2_RECIPE=dev or LTX2_RECIPE=distilled",
        )
    log.info("LTX-%s, %s recipe", generation, kind)
    return fit_recipe(recipe_for(generation, kind), num_layers)


def _load(
    folder: Path, part: str, index: dict[str, Any], dtype: torch.dtype, device: torch.device, **overrides: Any
) -> Module:
    def load() -> Module:
        library, name = index[part]
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        options["dtype" if library == "transformers" else "torch_dtype"] = dtype
        module = _class(library, name).from_pretrained(folder / part, **options, **overrides)
        return module.eval().requires_grad_(requires_grad=False).to(device)

    return _explained(part, folder, load)


def _tokenizer(folder: Path, index: dict[str, Any]) -> Any:
    def load() -> Any:
        tokenizer = _class(*index["tokenizer"]).from_pretrained(folder / "tokenizer", local_files_only=True)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    return _explained("tokenizer", folder, load)


def _explained(part: str, folder: Path, load: Callable[[], T]) -> T:
    try:
        return load()
    except NotReady:
        raise
    except Exception as error:
        log.exception("%s could not be loaded from %s", part, folder)
        raise NotReady(
            f"the {part} of the model {folder.name!r} could not be loaded: {type(error).__name__}",
            hint="the server's log says more",
        ) from error


def _class(library: str, name: str) -> Any:
    """A class named in model_index.json, from the three places LTX-2's parts come from and no other."""
    import diffusers
    import transformers
    from diffusers.pipelines import ltx2

    places = {"diffusers": (diffusers, ltx2), "transformers": (transformers,), "ltx2": (ltx2,)}
    for place in places.get(library, ()):
        if hasattr(place, name):
            return getattr(place, name)
    raise NotReady(f"{library}.{name} is not part of an LTX-2")
