"""From ``LTX2_MODEL`` to where it lies: on this machine, or on the hub."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ltx2.catalogue import CATALOGUE, GEMMA_3, CatalogueEntry, Layout, kind_of_name
from ltx2.errors import NotReady
from ltx2.model import hub
from ltx2.model.layout import PICKLES, UPSAMPLER, missing_files, weight_names
from ltx2.model.weights import WeightsFile, open_weights
from ltx2.recipes import Kind
from ltx2.settings import Settings

log = logging.getLogger(__name__)

RUNPOD_CACHE = Path("huggingface-cache/hub")
"""RunPod's cached models, below the models folder."""
REPOSITORY = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(/(?P<file>.+\.safetensors))?")
HUB, HUB_CACHE = "the hub", "the local hub cache"
"""Places where what goes with a model may be fetched from the hub as well."""
UPSCALERS = "*spatial-upscaler*x2*.safetensors"
LORAS = "*distilled-lora*.safetensors"
BESIDE = ("lora", "upscaler")
"""In the name of a file that goes with a checkpoint and is none."""
MAIN = "model.diffusion_model."
"""How the keys of a transformer begin in the original layout."""
TRANSFORMERS = "diffusion_models"
"""The folder LTX-2.5's original transformers are published in, beside one for each other part."""
GEMMA_FILES = ("*.json", "*.model", "*.safetensors")


@dataclass(frozen=True)
class Location:
    """Where a model lies, complete."""

    kind: Layout
    folder: Path
    """With layout ``diffusers`` the one with model_index.json, else the one the files are in."""
    files: tuple[Path, ...] = ()
    """With layout ``original``: the checkpoint's files, without companions."""
    upsampler: Path | None = None
    """A folder in the diffusers layout, or an original file."""
    lora: Path | None = None
    text_encoder: Path | None = None
    """A folder or file to be taken instead of the checkpoint's own, or where it has none."""
    entry: CatalogueEntry | None = None
    found_in: str = ""
    transformer: str = "transformer"
    """With layout ``diffusers``: the transformer's folder."""
    trained: Kind | None = None
    """Dev or distilled, as the catalogue or a name says it."""


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
            return _with_companions(settings, replace(found, found_in=place))
        log.info("%s is not in %s", settings.model, place)
    raise search.refusal()


class _Search:
    """One model, looked for in one place after the other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entry = CATALOGUE.get(settings.model.casefold())
        named = None if self.entry else REPOSITORY.fullmatch(settings.model)
        self.repository: str | None = self.entry.repository if self.entry else named and named["repository"]
        self.file: str = (named and named["file"]) or ""
        self.missing: list[str] = []

    def places(self) -> Iterator[tuple[str, Callable[[], Location | None]]]:
        """Where to look, in this order: a name for the log, and how."""
        yield "the path as given", partial(self.look, Path(self.settings.model).expanduser())
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
        """A model in a cache with the hub's layout. What a catalogue's name means must be there as it says."""
        snapshot = hub.snapshot_in(cache, self.repository or "")
        if snapshot is None or (self.entry and not (snapshot / "model_index.json").is_file()):
            return None
        return self.look(snapshot / self.file)

    def look(self, path: Path) -> Location | None:
        """A model at a path; None if there is none, or if files are missing.

        Raises:
            NotReady: there is something that was certainly meant, and cannot be used.
        """
        if path.is_file():
            return self.original(_main_file(path))
        if (path / "model_index.json").is_file():
            return self.diffusers(path)
        return self.folder_of_files(path) if path.is_dir() else None

    def diffusers(self, folder: Path) -> Location | None:
        transformer = self.entry.transformer if self.entry else self.choose_transformer(folder)
        missing = missing_files(folder, transformer)
        if missing:
            log.warning("%s is incomplete, it lacks %s", folder, ", ".join(missing))
            self.missing += missing
            return None
        trained = "dev" if transformer == "transformer_full" else self.trained(folder)
        return Location("diffusers", folder, entry=self.entry, transformer=transformer, trained=trained)

    def choose_transformer(self, folder: Path) -> str:
        """LTX-2.5's dev transformer lies beside the distilled one, and may be the only one there."""
        is_wanted = self.settings.recipe == "dev" or not (folder / "transformer").is_dir()
        return "transformer_full" if is_wanted and (folder / "transformer_full").is_dir() else "transformer"

    def folder_of_files(self, folder: Path) -> Location | None:
        candidates = [file for file in _weights_below(folder) if not _is_companion(file.name)]
        mains = [file for file in map(open_weights, candidates) if _is_main(file)]
        if len(mains) > 1:
            raise NotReady(
                f"{folder.name} holds {len(mains)} checkpoints: {', '.join(file.name for file in mains)}",
                hint="set LTX2_MODEL to one of these files, with its folder",
            )
        if mains:
            return self.original(mains[0])
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles and not candidates:
            raise NotReady(
                f"{folder.name} holds {pickles[0]}; pickles are not loaded, since they can run any code",
                hint="take a version of the model whose weights are in .safetensors files",
            )
        return None

    def original(self, main: WeightsFile) -> Location:
        """A checkpoint in the original layout: one file, or a transformer with files for the other parts around it."""
        folder = main.path.parent.parent if main.path.parent.name == TRANSFORMERS else main.path.parent
        files = [main.path]
        if not any(key.startswith("vae.") for key in main.tensors):
            others = [file for file in _weights_below(folder) if file != main.path and not _is_companion(file.name)]
            files += [file for file in others if not _is_main(open_weights(file))]
        return Location("original", folder, tuple(files), entry=self.entry, trained=self.trained(main.path, folder))

    def trained(self, *paths: Path) -> Kind | None:
        """Dev or distilled: what the catalogue says, or the names, the most exact first."""
        if self.entry:
            return self.entry.kind
        names = [name for path in paths for name in (path.name, path.resolve().name)]
        names.append(self.repository or self.settings.model)
        return next((kind for name in names if (kind := kind_of_name(name))), None)

    def fetch(self) -> Location | None:
        """Have it in the local hub cache, and look there again."""
        repository, entry = self.repository or "", self.entry
        size = f", about {entry.size_gb:.0f} GB" if entry and entry.size_gb else ""
        log.info("fetching %s from the hub%s; HF_HOME says where to", repository, size)
        if entry:
            return self.look(hub.fetch_diffusers(repository, entry.folders))
        if self.file:
            return self.look(hub.fetch(repository, [self.file]) / self.file)
        files = hub.list_files(repository)
        if "model_index.json" in files:
            return self.look(hub.fetch_diffusers(repository, hub.diffusers_folders(files)))
        mains = [name for name in files if name.endswith(".safetensors") and not _is_companion(name)]
        if len(mains) == 1:
            return self.look(hub.fetch(repository, mains) / mains[0])
        raise NotReady(
            f"{repository} has no model_index.json, and {len(mains)} files of weights"
            + (f": {', '.join(mains)}" if mains else ""),
            hint=f"set LTX2_MODEL to {repository}/ and one of the files, or to one of {', '.join(CATALOGUE)}",
        )

    def refusal(self) -> NotReady:
        """What to say when it is nowhere. Folders are for the log."""
        given = Path(self.settings.model).expanduser()
        name = self.settings.model if self.repository else given.name
        offline = "; HF_HUB_OFFLINE keeps this server from doing so" if self.repository and hub.is_offline() else ""
        if self.missing:
            missing = list(dict.fromkeys(self.missing))
            others = f" and {len(missing) - 1} more files are missing" if len(missing) > 1 else " is missing"
            return NotReady(
                f"the model {name!r} is incomplete: {missing[0]}{others}", hint=f"download or copy it again{offline}"
            )
        if self.repository:
            return NotReady(
                f"the model {name!r} is not on this machine",
                hint=f"download {self.repository} with hf download{offline}",
            )
        if given.exists():
            return NotReady(
                f"{name} is no LTX-2: it has no model_index.json, and no .safetensors file of a whole checkpoint",
                hint="set LTX2_MODEL to the folder that has them",
            )
        return NotReady(
            f"no model is called {name!r}: there is neither such a path nor anything of this name in the models folder",
            hint=f"set LTX2_MODEL to tiny, to one of {', '.join(CATALOGUE)}, to a hub repository as org/name, "
            "or to a folder or file of a real LTX-2",
        )


def _with_companions(settings: Settings, found: Location) -> Location:
    """Add what opens up a second stage, and the text encoder where the files have none."""
    entry = found.entry
    beside = found.folder / UPSAMPLER
    upsampler = _set(settings.upsampler, "LTX2_UPSAMPLER") or (beside if _is_whole(beside) else None)
    upsampler = upsampler or _newest(found.folder, UPSCALERS)
    if upsampler is None and entry and entry.upsampler:
        wanted = entry.upsampler
        upsampler = _optional(settings, found, wanted.repository, wanted.path, wanted.patterns)
    lora = _set(settings.distilled_lora, "LTX2_DISTILLED_LORA")
    if lora is None and found.trained != "distilled":
        lora = _newest(found.folder, LORAS)
        if lora is None and entry and entry.lora:
            lora = _optional(settings, found, entry.lora.repository, entry.lora.path, entry.lora.patterns)
    text_encoder = _set(settings.text_encoder, "LTX2_TEXT_ENCODER")
    if text_encoder is None and found.kind == "original":
        text_encoder = _text_encoder(settings, found)
    for name, path in (("upsampler", upsampler), ("distilled LoRA", lora), ("separate text encoder", text_encoder)):
        log.info("%s: %s", name, path or "none")
    return replace(found, upsampler=upsampler, lora=lora, text_encoder=text_encoder)


def _set(path: Path | None, variable: str) -> Path | None:
    if path is not None and not path.exists():
        log.error("%s is %s, which is not there", variable, path)
        raise NotReady(f"{variable} names {path.name}, which is not there", hint="correct it or unset it")
    return path


def _optional(settings: Settings, found: Location, repository: str, path: str, patterns: Sequence[str]) -> Path | None:
    """Something of another repository that a second stage needs; without it there is none."""
    try:
        return _elsewhere(settings, found, repository, path, patterns)
    except NotReady as error:
        log.warning("there will be no second stage: %s", error)
        return None


def _elsewhere(settings: Settings, found: Location, repository: str, path: str, patterns: Sequence[str]) -> Path | None:
    """Something of another repository: where models are kept, or else fetched if the model itself was."""
    last = repository.rpartition("/")[2]
    places = [settings.models_dir / repository, settings.models_dir / last]
    places += filter(None, (hub.snapshot_in(settings.models_dir / RUNPOD_CACHE, repository),))
    places += filter(None, (hub.snapshot_in(hub.local_cache(), repository),))
    for place in places:
        if _is_whole(place / path):
            return place / path
    if hub.is_offline() or found.found_in not in (HUB, HUB_CACHE):
        return None
    log.info("fetching %s of %s", path or "all", repository)
    fetched = hub.fetch(repository, patterns) / path
    return fetched if _is_whole(fetched) else None


def _text_encoder(settings: Settings, found: Location) -> Path | None:
    """The folder with a Gemma 3 that original files of LTX-2 and 2.3 need; those of 2.5 have theirs in a file."""
    if any(key.startswith("model.layers.") for file in found.files for key in open_weights(file).tensors):
        return None
    for tokenizer in sorted(found.folder.glob("*/tokenizer_config.json")):
        if _is_whole(tokenizer.parent):
            return tokenizer.parent
    folder = _elsewhere(settings, found, GEMMA_3, "", GEMMA_FILES)
    if folder is None:
        raise NotReady(
            f"{found.files[0].name} has no text encoder, and there is no Gemma 3 on this machine",
            hint=f"set LTX2_TEXT_ENCODER to its folder, or download {GEMMA_3} with hf download",
        )
    return folder


def _main_file(path: Path) -> WeightsFile:
    file = open_weights(path)
    if not _is_main(file):
        raise NotReady(f"{path.name} is no LTX-2 checkpoint: it has no {MAIN}… weights")
    return file


def _is_main(file: WeightsFile) -> bool:
    return any(key.startswith(MAIN) for key in file.tensors)


def _is_companion(name: str) -> bool:
    return any(word in name.casefold() for word in BESIDE)


def _is_whole(path: Path) -> bool:
    """Whether a companion is there with all its files: a file, or one part in diffusers' or transformers' layout."""
    if path.is_file() or not (path / "config.json").is_file():
        return path.is_file()
    return all((path / name).is_file() for name in weight_names(path, path.name))


def _weights_below(folder: Path) -> list[Path]:
    """The safetensors files in a folder and its subfolders, but for parts of a model in another layout."""
    parts = [part for part in folder.glob("*/") if part.is_dir() and not (part / "config.json").is_file()]
    return sorted(file for place in (folder, *sorted(parts)) for file in place.glob("*.safetensors"))


def _newest(folder: Path, pattern: str) -> Path | None:
    """The last of the files that match, in a folder or one of its subfolders: names end in a version."""
    matching = [file for file in _weights_below(folder) if file.match(pattern)]
    return max(matching, key=lambda file: file.name, default=None)
