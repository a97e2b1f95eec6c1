"""From ``LTX2_MODEL`` to where it lies: on this machine, or on the hub."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ltx2.catalogue import CATALOGUE, DEV_TRANSFORMER, find_entry, kind_of_name
from ltx2.errors import NotReady
from ltx2.model import hub
from ltx2.model.companions import HUB, HUB_CACHE, RUNPOD_CACHE, with_companions
from ltx2.model.keymaps import CORE
from ltx2.model.layout import begun_files, generation_of_config, missing_files, read_json, refuse_pickles, title
from ltx2.model.location import Location, generation_of, is_companion, is_main, parts_below
from ltx2.model.weights import WeightsFile, open_weights
from ltx2.recipes import Kind
from ltx2.settings import Settings

log = logging.getLogger(__name__)

GIVEN = "the path as given"
REPOSITORY = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(/(?P<file>.+\.safetensors))?")
TRANSFORMER_FOLDER = "diffusion_models"
"""What LTX-2.5's original transformers are published in, beside one folder for each other part."""


def locate(settings: Settings) -> Location:
    """Find ``LTX2_MODEL``; the last resort is to fetch it from the hub.

    Raises:
        NotReady: it is nowhere, nowhere complete, ambiguous, or cannot be fetched. The message says what helps; the
            log says where it was looked for.
    """
    search = _Search(settings)
    for place, look in search.places():
        found = look()
        if found is not None:
            log.info("found %s in %s: %s", settings.model, place, found.folder)
            return with_companions(settings, replace(found, found_in=place))
        log.info("%s is not in %s", settings.model, place)
        if place == GIVEN and search.given.exists() and not search.is_named:
            break  # it was meant: what else has this name is another model
    raise search.refusal()


class _Search:
    """One model, looked for in one place after the other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.given = _expanded(settings.model)
        self.is_named = settings.model.casefold() in CATALOGUE
        """Whether it is asked for by a name of the catalogue, which means a folder in the layout of diffusers."""
        match = REPOSITORY.fullmatch(settings.model)
        self.file: str = (match and match["file"]) or ""
        kind = settings.recipe if settings.recipe != "auto" else kind_of_name(self.file or settings.model)
        self.entry = find_entry(match["repository"] if match else settings.model, kind)
        self.repository: str | None = self.entry.repository if self.entry else match and match["repository"]
        self.missing: list[str] = []
        self.skip = ("text_encoder",) if settings.text_encoder else ()

    def places(self) -> Iterator[tuple[str, Callable[[], Location | None]]]:
        """Where to look, in this order: a name for the log, and how."""
        yield GIVEN, partial(self.look, self.given)
        if self.repository:
            yield "RunPod's cached models", partial(self.look_in_cache, self.settings.models_dir / RUNPOD_CACHE)
        names = [self.settings.model]
        if self.repository:
            names += [self.repository + "/" + self.file, self.repository.rpartition("/")[2] + "/" + self.file]
        for name in dict.fromkeys(name.rstrip("/") for name in names):
            yield f"the models folder, as {name}", partial(self.look, self.settings.models_dir / name)
        if self.repository:
            yield HUB_CACHE, partial(self.look_in_cache, hub.local_cache())
            if not hub.is_offline():
                yield HUB, self.fetch

    def look_in_cache(self, cache: Path) -> Location | None:
        """A model in a cache with the hub's layout, where a download may have been broken off."""
        snapshot = hub.snapshot_in(cache, self.repository or "")
        return self.look(snapshot / self.file, is_cache=True) if snapshot else None

    def look(self, path: Path, *, is_cache: bool = False) -> Location | None:
        """A model at a path; None if there is none, or if files are missing.

        Raises:
            NotReady: there is something that was certainly meant, and cannot be used.
        """
        if (path / "model_index.json").is_file():
            return self.diffusers(path, is_cache=is_cache)
        if self.is_named:
            if path.exists():
                log.warning("%s is passed over: it is not in the layout of diffusers, as %s is", path, self.repository)
            return None
        if path.is_file():
            return self.original(_main_file(path))
        return self.folder_of_files(path) if path.is_dir() else None

    def diffusers(self, folder: Path, *, is_cache: bool) -> Location | None:
        entry = self.entry
        transformer = entry.transformer if entry else self.choose_transformer(folder)
        missing = missing_files(folder, transformer, skip=self.skip) + (begun_files(folder) if is_cache else [])
        if missing:
            log.warning("%s is incomplete, it lacks %s", folder, ", ".join(missing))
            self.missing += missing
            return None
        if transformer == DEV_TRANSFORMER:
            trained = self.trained("dev")
        else:
            trained = self.trained(entry.kind if entry else None, folder)
        config = read_json(folder / transformer / "config.json", f"the transformer of the model {title(folder)!r}")
        generation = entry.generation if entry else generation_of_config(config)
        return Location(
            "diffusers", folder, entry=entry, transformer=transformer, trained=trained, generation=generation
        )

    def choose_transformer(self, folder: Path) -> str:
        """LTX-2.5's dev transformer lies beside the distilled one, and may be the only one there."""
        recipe = self.settings.recipe
        is_wanted = recipe == "dev" or (recipe == "auto" and not (folder / "transformer").is_dir())
        return DEV_TRANSFORMER if is_wanted and (folder / DEV_TRANSFORMER).is_dir() else "transformer"

    def folder_of_files(self, folder: Path) -> Location | None:
        mains = [file for file in parts_below(folder) if is_main(file)]
        if len(mains) > 1:
            raise NotReady(
                f"{title(folder)} holds {len(mains)} checkpoints: {', '.join(file.name for file in mains)}",
                hint="set LTX2_MODEL to one of these files, with its folder",
            )
        if mains:
            return self.original(mains[0])
        if not any(folder.glob("*.safetensors")):
            refuse_pickles(folder, f"the model {title(folder)!r}")
        return None

    def original(self, main: WeightsFile) -> Location:
        """A checkpoint in the original layout: one file, or a transformer with files for the other parts around it."""
        path, generation = main.path, generation_of(main)
        folder = path.parent.parent if path.parent.name == TRANSFORMER_FOLDER else path.parent
        files = [path]
        if not any(key.startswith("vae.") for key in main.tensors):
            files += [file.path for file in parts_below(folder, generation) if not is_main(file)]
        trained = self.trained(None, path, folder)
        return Location("original", folder, tuple(files), entry=self.entry, trained=trained, generation=generation)

    def trained(self, known: Kind | None, *paths: Path) -> Kind | None:
        """Dev or distilled: what LTX2_RECIPE says, or the catalogue, or the names, the most exact first."""
        names = [name for path in paths for name in (path.name, title(path))]
        names.append(self.repository or self.settings.model)
        said = known or next((kind for name in names if (kind := kind_of_name(name))), None)
        recipe = self.settings.recipe
        if recipe == "auto":
            return said
        if said not in (recipe, None):
            log.warning("LTX2_RECIPE=%s is followed, although this is a %s checkpoint by its name", recipe, said)
        return recipe

    def fetch(self) -> Location | None:
        """Have it in the local hub cache, and look there again."""
        repository, entry = self.repository or "", self.entry
        log.info("fetching %s from the hub; HF_HOME says where to", repository)
        if self.file:
            return self.look(hub.fetch(repository, [self.file]) / self.file)
        if entry:
            # its own upsampler at once, so that a broken download of that is taken up as well
            own = [entry.upsampler.path] if entry.upsampler and entry.upsampler.repository == repository else []
            return self.fetch_folders([*entry.folders, *own])
        files = hub.list_files(repository)
        if "model_index.json" in files:
            return self.fetch_folders(hub.diffusers_folders(files, is_dev=self.settings.recipe == "dev"))
        mains = [name for name in files if name.endswith(".safetensors") and not is_companion(name)]
        if len(mains) == 1:
            return self.look(hub.fetch(repository, mains) / mains[0])
        raise NotReady(
            f"{repository} has no model_index.json, and {len(mains)} files of weights"
            + (f": {', '.join(mains)}" if mains else ""),
            hint=f"set LTX2_MODEL to {repository}/ and one of the files, or to one of {', '.join(CATALOGUE)}",
        )

    def fetch_folders(self, folders: Iterable[str]) -> Location | None:
        wanted = [folder for folder in folders if folder not in self.skip]
        return self.look(hub.fetch_diffusers(self.repository or "", wanted))

    def refusal(self) -> NotReady:
        """What to say when it is nowhere. Folders are for the log."""
        is_given = self.given.exists() and not self.is_named
        name = title(self.given) if is_given or not self.repository else self.settings.model
        is_kept = self.repository and not is_given and hub.is_offline()
        offline = "; HF_HUB_OFFLINE keeps this server from doing so" if is_kept else ""
        if self.missing:
            missing = list(dict.fromkeys(self.missing))
            others = f" and {len(missing) - 1} more files are missing" if len(missing) > 1 else " is missing"
            return NotReady(
                f"the model {name!r} is incomplete: {missing[0]}{others}", hint=f"download or copy it again{offline}"
            )
        if is_given:
            return NotReady(
                f"{name} is no LTX-2: it has no model_index.json, and no .safetensors file of a whole checkpoint",
                hint="set LTX2_MODEL to the folder that has them",
            )
        if self.repository:
            return NotReady(
                f"the model {name!r} is not on this machine",
                hint=f"download {self.repository} with hf download{offline}",
            )
        return NotReady(
            f"no model is called {name!r}: there is neither such a path nor anything of this name in the models folder",
            hint=f"set LTX2_MODEL to tiny, to one of {', '.join(CATALOGUE)}, to a hub repository as org/name, "
            "or to a folder or file of a real LTX-2",
        )


def _expanded(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # the home of a user who is not there
        return Path(model)


def _main_file(path: Path) -> WeightsFile:
    file = open_weights(path)
    if not is_main(file):
        raise NotReady(f"{path.name} is no LTX-2 checkpoint: it has no {CORE}… weights")
    return file
