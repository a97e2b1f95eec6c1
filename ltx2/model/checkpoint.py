"""From ``LTX2_MODEL`` to its components: found, placed, and read part by part."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ltx2.errors import NotReady
from ltx2.model.components import Components
from ltx2.model.folder import DiffusersFolder, DiffusersUpsampler
from ltx2.model.fp8 import quantise_blocks, set_compute, store_linears
from ltx2.model.groups import generation_of
from ltx2.model.locate import Location, locate
from ltx2.model.lora import Lora, load_lora
from ltx2.model.memory import ACTIVATIONS, MINIATURE
from ltx2.model.neighborhood import NeighborhoodProcessor
from ltx2.model.original import OriginalFiles
from ltx2.model.parts import PARTS, REQUIRED, Module, Part
from ltx2.model.placement import Placement, choose_device, choose_dtype, plan_placement, planned_shape, read_card
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.residency import Residency
from ltx2.model.source import Joined, Source
from ltx2.model.tiny import TINY_MODELS, TinySource, tiny_lora
from ltx2.model.weights import open_weights
from ltx2.recipes import Kind, Recipe, fit_recipe, recipe_for
from ltx2.settings import Settings

log = logging.getLogger(__name__)

SMALL = 1_000_000_000
"""A transformer with fewer weights is a miniature."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, with what goes with it; nothing has been read but headers."""

    name: str
    """What the user called it."""
    source: Source
    kind: Kind
    make_lora: Callable[[Module, Module], Lora] | None = None
    """Reads the LoRA a dev checkpoint refines with, given the transformer and the connectors."""
    lora_bytes: int = 0
    is_random: bool = False

    @property
    def recipe(self) -> Recipe:
        return fit_recipe(recipe_for(self.source.generation, self.kind), self.source.num_layers)


def load_components(settings: Settings) -> Components:
    """Load ``LTX2_MODEL``.

    Raises:
        NotReady: there is no such model, a part of it is missing or damaged, or it does not fit into memory; the
            message says which.
    """
    device = choose_device(settings)
    checkpoint = find_checkpoint(settings)
    parts = wanted_parts(checkpoint.source, settings)
    placement = place(checkpoint, parts, device, settings)
    log.info("LTX-%s %s, %s", checkpoint.source.generation, checkpoint.kind, placement.describe())
    return assemble(checkpoint, parts, placement, device, settings)


def find_checkpoint(settings: Settings) -> Checkpoint:
    """Find ``LTX2_MODEL``, on this machine or on the hub, and read its headers.

    Raises:
        NotReady: it is nowhere, not complete, or does not say whether it is dev or distilled.
    """
    if settings.model in TINY_MODELS:
        log.warning(
            "LTX2_MODEL=%s is a random miniature: its pictures and sounds mean nothing. "
            "Set LTX2_MODEL to a real LTX-2.",
            settings.model,
        )
        tiny = TinySource(settings.model)
        lora = (lambda transformer, _connectors: tiny_lora(transformer)) if tiny.kind == "dev" else None
        return Checkpoint(settings.model_name, tiny, tiny.kind, lora, is_random=True)
    location = locate(settings)
    kind = _kind(settings, location)
    source = open_source(location)
    if location.lora is None or kind == "distilled":
        return Checkpoint(settings.model_name, source, kind)
    size = location.lora.stat().st_size
    return Checkpoint(settings.model_name, source, kind, partial(load_lora, location.lora), size)


def open_source(location: Location) -> Source:
    """Read the headers of a checkpoint and of the upsampler that goes with it.

    Raises:
        NotReady: something is missing, damaged, not understood, or of different generations.
    """
    upsampler = location.upsampler
    if location.kind == "original":
        files = [*location.files, *([upsampler] if upsampler and upsampler.is_file() else [])]
        source: Source = OriginalFiles(files, location.text_encoder)
        return Joined(source, DiffusersUpsampler(upsampler)) if upsampler and upsampler.is_dir() else source
    is_folder = upsampler is not None and upsampler.is_dir()
    source = DiffusersFolder(
        location.folder,
        transformer=location.transformer,
        upsampler=upsampler if is_folder else None,
        text_encoder=location.text_encoder,
    )
    if upsampler is None or is_folder:
        return source
    # a file that does not say what it belongs to is taken at the user's word
    if (belongs := generation_of(open_weights(upsampler)) or source.generation) != source.generation:
        raise NotReady(
            f"{upsampler.name} belongs to LTX-{belongs}, and the model is an LTX-{source.generation}",
            hint="set LTX2_UPSAMPLER to the upscaler of the model's generation",
        )
    return Joined(source, OriginalFiles([upsampler]))


def _kind(settings: Settings, location: Location) -> Kind:
    """Dev or distilled is written in no checkpoint: the setting says it, or the catalogue or a name does."""
    if settings.recipe != "auto":
        return settings.recipe
    if location.trained is None:
        raise NotReady(
            f"is {settings.model_name} a dev or a distilled checkpoint? Neither its files nor its name say so",
            hint="set LTX2_RECIPE=dev or LTX2_RECIPE=distilled",
        )
    log.info("taken for a %s checkpoint by its name; LTX2_RECIPE would overrule it", location.trained)
    return location.trained


def wanted_parts(source: Source, settings: Settings) -> tuple[Part, ...]:
    """The parts to load.

    Raises:
        NotReady: one that every generation needs is missing, or the decoder asked for is.
    """
    there = source.parts()
    for part in REQUIRED:
        if part not in there:
            raise NotReady(f"the model has no {part}", hint=HINTS.get(part, "name a complete model"))
    if settings.video_decoder == "diffusion" and "diffusion_decoder" not in there:
        raise NotReady("the model has no diffusion decoder", hint="set LTX2_VIDEO_DECODER=auto")
    return tuple(
        part for part in PARTS if part in there and (part, settings.video_decoder) != ("diffusion_decoder", "conv")
    )


HINTS: dict[Part, str] = {
    "text_encoder": "set LTX2_TEXT_ENCODER to its folder or file",
    "connectors": "LTX-2.5's text projection is in its text-encoder file: set LTX2_TEXT_ENCODER to that",
}


def place(checkpoint: Checkpoint, parts: tuple[Part, ...], device: torch.device, settings: Settings) -> Placement:
    """Decide where each part will be, and in which precision.

    Raises:
        NotReady: nothing fits.
    """
    source = checkpoint.source
    sizes = {part: source.parameters(part) for part in parts}
    return plan_placement(
        read_card(device),
        sizes,
        settings.precision,
        settings.offload,
        planned_shape(settings),
        MINIATURE if sizes["transformer"] < SMALL else ACTIVATIONS[source.generation],
        stored_fp8=source.stored_fp8,
        lora_bytes=checkpoint.lora_bytes,
    )


def assemble(
    checkpoint: Checkpoint, parts: tuple[Part, ...], placement: Placement, device: torch.device, settings: Settings
) -> Components:
    """Read all parts, one after the other, and put each where it belongs before the next one is read."""
    dtype = choose_dtype(settings, device)
    modules: dict[Part, Module] = {}
    for part in parts:
        module = _load(checkpoint.source, part, placement, dtype)
        modules[part] = module.to(device) if placement.stays(part) else module
    if modules["vae"].decoder is None and "diffusion_decoder" not in modules:
        raise NotReady(
            "the model's VAE has no convolutional decoder", hint="set LTX2_VIDEO_DECODER=auto, or add its file"
        )
    lora = None
    if checkpoint.make_lora is not None:
        home = device if placement.stays("transformer") else torch.device("cpu")
        lora = checkpoint.make_lora(modules["transformer"], modules["connectors"]).to(home, dtype)
    return Components(
        name=checkpoint.name,
        recipe=checkpoint.recipe,
        tokenizer=checkpoint.source.tokenizer(),
        device=device,
        refine_lora=lora,
        residency=Residency(modules, placement, device),
        prompt_cache=PromptCache(int(settings.prompt_cache_mb * 2**20)),
        is_random=checkpoint.is_random,
        **modules,
    )


def _load(source: Source, part: Part, placement: Placement, dtype: torch.dtype) -> Module:
    """Read one part in the precision it is to have."""
    if part == "vocoder":
        # bfloat16 is audible in it
        return source.load(part, torch.float32)
    in_fp8 = placement.precision in ("fp8", "fp8-storage")
    module = source.load(part, dtype, keep_fp8=in_fp8)
    if part == "transformer" and in_fp8:
        if not source.stored_fp8:  # else whoever stored it so has chosen which layers bear it
            quantise_blocks(module)
        set_compute(module, placement.precision == "fp8")
    elif part == "text_encoder" and in_fp8:
        store_linears(module)
    elif part == "diffusion_decoder":
        module.set_attn_processor(NeighborhoodProcessor())
    return module
