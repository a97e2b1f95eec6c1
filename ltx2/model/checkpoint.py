"""From the name of a model to its components."""

import logging
from pathlib import Path

import torch

from ltx2.errors import NotReady
from ltx2.model.components import Components
from ltx2.model.folder import DiffusersFolder
from ltx2.model.parts import Module, Part
from ltx2.model.placement import choose_device, choose_dtype
from ltx2.model.tiny import TINY_MODELS, build_tiny
from ltx2.recipes import Generation, Kind, Recipe, fit_recipe, recipe_for
from ltx2.settings import Settings

log = logging.getLogger(__name__)


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
    source = DiffusersFolder(folder)
    recipe = _recipe(settings, folder, source.generation, source.num_layers)
    modules: dict[Part, Module] = {
        part: source.load(part, torch.float32 if part == "vocoder" else dtype).to(device) for part in source.parts()
    }
    return Components(name=settings.model, recipe=recipe, tokenizer=source.tokenizer(), device=device, **modules)


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
