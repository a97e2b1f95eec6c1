"""From ``LTX2_MODEL`` to its components: found, placed, and read part by part."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ltx2.errors import NotReady
from ltx2.model.components import Components
from ltx2.model.folder import DiffusersFolder, DiffusersUpsampler
from ltx2.model.fp8 import quantise_blocks, set_compute, store_linears
from ltx2.model.groups import generation_of_file
from ltx2.model.locate import locate
from ltx2.model.location import Location
from ltx2.model.lora import Lora, load_lora
from ltx2.model.memory import ACTIVATIONS, MINIATURE
from ltx2.model.neighborhood import NeighborhoodProcessor
from ltx2.model.original import OriginalFiles
from ltx2.model.parts import PARTS, REQUIRED, Module, Part
from ltx2.model.placement import Placement, choose_device, plan_placement, planned_shape, read_card
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.residency import Residency
from ltx2.model.source import Joined, Parts, Source
from ltx2.model.tiny import TINY_MODELS, TinySource, tiny_lora
from ltx2.model.weights import WeightsFile, open_weights
from ltx2.recipes import Generation, Kind, Recipe, fit_recipe, recipe_for
from ltx2.settings import Settings

log = logging.getLogger(__name__)

SMALL = 1_000_000_000
"""A transformer with fewer weights is a miniature."""
HINTS: dict[Part, str] = {
    "text_encoder": "set LTX2_TEXT_ENCODER to its folder or file",
    "connectors": "LTX-2.5's text projection is in its text-encoder file: set LTX2_TEXT_ENCODER to that",
}
"""What to do about a part that is not there."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, with what goes with it; nothing has been read but headers."""

    name: str
    """What the user called it."""
    source: Source
    kind: Kind
    make_lora: Callable[[Module, Module], Lora] | None = None
    """Reads the LoRA a dev checkpoint refines with, given the transformer and the connectors."""
    lora_parameters: int = 0
    is_random: bool = False

    def without_lora(self) -> "Checkpoint":
        """The same, without what its second stage needs."""
        return replace(self, make_lora=None, lora_parameters=0)

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
    checkpoint, placement = place(checkpoint, parts, device, settings)
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
    kind = _kind(location)
    source = open_source(location, settings)
    file = _lora(location, settings) if kind == "dev" else None
    if file is None:
        return Checkpoint(settings.model_name, source, kind)
    size = sum(stored.numel for stored in file.tensors.values())
    return Checkpoint(settings.model_name, source, kind, partial(load_lora, file.path), size)


def open_source(location: Location, settings: Settings) -> Source:
    """Read the headers of a checkpoint and of the upsampler that goes with it.

    Raises:
        NotReady: something is missing, damaged, not understood, or of different generations. An upsampler no setting
            asked for is left out instead.
    """
    if location.layout == "original":
        files = OriginalFiles(location.files, location.text_encoder)
        if settings.video_decoder == "conv" and "vae" in files.parts() and not files.has_conv_decoder:
            raise NotReady(
                "the model's VAE has no convolutional decoder", hint="set LTX2_VIDEO_DECODER=auto, or add its file"
            )
        source: Source = files
    else:
        source = DiffusersFolder(location.folder, transformer=location.transformer, text_encoder=location.text_encoder)
    if location.entry and location.entry.generation != source.generation:
        raise NotReady(
            f"{location.title} is an LTX-{source.generation}, and {location.entry.repository} an "
            f"LTX-{location.entry.generation}",
            hint="set LTX2_MODEL to the path of what is meant",
        )
    if location.upsampler is None:
        return source
    try:
        return Joined(source, _upsampler(location.upsampler, source.generation))
    except NotReady as error:
        if settings.upsampler is not None:
            raise
        log.warning("there will be no second stage: %s", error)
        return source


def _upsampler(path: Path, generation: Generation) -> Parts:
    """An upsampler in either layout. A file that does not say what it belongs to is taken at the user's word."""
    if path.is_dir():
        return DiffusersUpsampler(path)
    source = OriginalFiles([path])
    if "upsampler" not in source.parts():
        raise NotReady(f"{path.name} is no latent upsampler", hint="take the spatial upscaler x2")
    if (belongs := generation_of_file(open_weights(path)) or generation) != generation:
        raise NotReady(
            f"{path.name} belongs to LTX-{belongs}, and the model is an LTX-{generation}",
            hint="set LTX2_UPSAMPLER to the upscaler of the model's generation",
        )
    return source


def _lora(location: Location, settings: Settings) -> WeightsFile | None:
    """The header of the LoRA a dev checkpoint refines with. One no setting asked for is left out if it is damaged."""
    try:
        return open_weights(location.lora) if location.lora else None
    except NotReady as error:
        if settings.distilled_lora is not None:
            raise
        log.warning("there will be no second stage: %s", error)
        return None


def _kind(location: Location) -> Kind:
    """Dev or distilled is written in no checkpoint: the setting says it, or the catalogue or a name does."""
    if location.trained is None:
        raise NotReady(
            f"is {location.title} a dev or a distilled checkpoint? Neither its files nor its name say so",
            hint="set LTX2_RECIPE=dev or LTX2_RECIPE=distilled",
        )
    log.info("run as a %s checkpoint, as its name or LTX2_RECIPE says", location.trained)
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


def place(
    checkpoint: Checkpoint, parts: tuple[Part, ...], device: torch.device, settings: Settings
) -> tuple[Checkpoint, Placement]:
    """Decide where each part will be, and in which precision.

    Returns:
        The checkpoint, without its LoRA where that is of no use or has no room, and the plan.

    Raises:
        NotReady: nothing fits.
    """
    source, card = checkpoint.source, read_card(device)
    sizes = {part: source.parameters(part) for part in parts}

    def plan(wearing: Checkpoint) -> tuple[Checkpoint, Placement]:
        return wearing, plan_placement(
            card,
            sizes,
            settings.precision,
            settings.offload,
            planned_shape(settings),
            MINIATURE if sizes["transformer"] < SMALL else ACTIVATIONS[source.generation],
            stored_fp8=source.stored_fp8,
            lora_parameters=wearing.lora_parameters,
        )

    if checkpoint.make_lora is None or "upsampler" not in parts:
        return plan(checkpoint.without_lora())
    try:
        return plan(checkpoint)
    except NotReady as error:
        if settings.distilled_lora is not None:
            raise
        fitting = plan(checkpoint.without_lora())
        log.warning("there is no room for the distilled LoRA, and so no second stage: %s", error)
        return fitting


def assemble(
    checkpoint: Checkpoint, parts: tuple[Part, ...], placement: Placement, device: torch.device, settings: Settings
) -> Components:
    """Read all parts, one after the other, and put each where it belongs before the next one is read."""
    tokenizer = checkpoint.source.tokenizer()
    residency = Residency({}, placement, device)
    modules: dict[Part, Module] = {}
    for part in parts:
        modules[part] = _load(checkpoint.source, part, placement)
        residency.add(part, modules[part])
    lora = None
    if checkpoint.make_lora is not None:
        try:
            lora = _settled(checkpoint.make_lora(modules["transformer"], modules["connectors"]), placement, device)
        except NotReady as error:
            if settings.distilled_lora is not None:
                raise
            log.warning("there will be no second stage: %s", error)
    return Components(
        name=checkpoint.name,
        recipe=checkpoint.recipe,
        tokenizer=tokenizer,
        open_enhancer=checkpoint.source.enhancer,
        device=device,
        refine_lora=lora,
        residency=residency,
        prompt_cache=PromptCache(int(settings.prompt_cache_mb * 2**20)),
        is_random=checkpoint.is_random,
        **modules,
    )


def _settled(lora: Lora, placement: Placement, device: torch.device) -> Lora:
    """A LoRA for the second stage where it belongs: that stage encodes no prompt, so that the connectors' is left."""
    if lora.connectors is not None:
        log.info("what %s does to the connectors is left out: the first stage's prompts serve both", lora.name)
        lora = replace(lora, connectors=None)
    if placement.stays("transformer"):
        return lora.to(device, placement.dtype)
    return lora.kept(placement.dtype, pinned=device.type == "cuda")


def _load(source: Source, part: Part, placement: Placement) -> Module:
    """Read one part in the precision it is to have."""
    if part == "vocoder":
        # bfloat16 is audible in it
        return source.load(part, torch.float32)
    in_fp8 = placement.precision in ("fp8", "fp8-storage")
    module = source.load(part, placement.dtype, keep_fp8=in_fp8)
    if part == "transformer" and in_fp8:
        if not source.stored_fp8:  # else whoever stored it so has chosen which layers bear it
            quantise_blocks(module)
        set_compute(module, placement.precision == "fp8")
    elif part == "text_encoder" and in_fp8:
        store_linears(module)
    elif part == "diffusion_decoder":
        module.set_attn_processor(NeighborhoodProcessor())
    return module
