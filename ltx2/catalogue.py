"""The published checkpoints by name: where they are, and which of their files are needed. Pure data.

The figures are what the pages named beside them said in autumn 2026. Nothing here is fetched unless a model of
this name is asked for and found nowhere on the machine.
"""

import re
from dataclasses import dataclass

from ltx2.recipes import Generation, Kind

SHARED = ("text_encoder", "tokenizer", "connectors", "vae", "audio_vae", "vocoder")
"""The folders of a repository in the diffusers layout that every generation reads, the transformer's apart."""
EXTRAS_2_5 = ("diffusion_decoder", "duration_head")
"""What only LTX-2.5 has."""
GEMMA_REPOSITORY = "google/gemma-3-12b-it-qat-q4_0-unquantized"
"""The text encoder of original LTX-2 and 2.3 files, which do not contain it. Gated.
From raw.githubusercontent.com/Lightricks/LTX-2/main/README.md and MODELS-LTX-2.3.md."""
DEV_TRANSFORMER = "transformer_full"
"""The folder of LTX-2.5's dev transformer, beside the distilled one."""


@dataclass(frozen=True)
class Companion:
    """Something beside a checkpoint that opens up a second stage."""

    repository: str
    path: str
    """A file, or a folder, within the repository."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """What to fetch of the repository."""
        return (self.path,) if self.path.endswith(".safetensors") else (f"{self.path}/*",)


@dataclass(frozen=True)
class CatalogueEntry:
    """One published checkpoint."""

    name: str
    """What LTX2_MODEL may say."""
    repository: str
    """``org/name`` on huggingface.co."""
    generation: Generation
    kind: Kind
    folders: tuple[str, ...]
    """What to fetch, the companions apart; of the weights in each folder, those its index names."""
    transformer: str = "transformer"
    """The transformer's folder."""
    upsampler: Companion | None = None
    lora: Companion | None = None
    """The distilled LoRA a dev checkpoint refines with."""


CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        # Beside the diffusers folders, Lightricks/LTX-2 holds single files in the original layout, ungated.
        # Repository, upsampler folder and LoRA: docs of diffusers, api/pipelines/ltx2.
        CatalogueEntry(
            name="ltx-2",
            repository="Lightricks/LTX-2",
            generation="2.0",
            kind="dev",
            folders=("transformer", *SHARED),
            upsampler=Companion("Lightricks/LTX-2", "latent_upsampler"),
            lora=Companion("Lightricks/LTX-2", "ltx-2-19b-distilled-lora-384.safetensors"),
        ),
        # Lightricks has the distilled 2.0 only as a single file; diffusers' documentation uses this conversion.
        CatalogueEntry(
            name="ltx-2-distilled",
            repository="rootonchair/LTX-2-19b-distilled",
            generation="2.0",
            kind="distilled",
            folders=("transformer", *SHARED),
            upsampler=Companion("rootonchair/LTX-2-19b-distilled", "latent_upsampler"),
        ),
        # The two 2.3 repositories are those of diffusers' examples (pipelines/ltx2, 0.42.1); they have no upsampler:
        # huggingface.co/rootonchair/LTX-2.3-spatial-upscaler-x2-v1.1-Diffusers converts ltx-2.3-spatial-upscaler-
        # x2-1.1.safetensors. LoRA: MODELS-LTX-2.3.md.
        CatalogueEntry(
            name="ltx-2.3",
            repository="diffusers/LTX-2.3-Diffusers",
            generation="2.3",
            kind="dev",
            folders=("transformer", *SHARED),
            upsampler=Companion("rootonchair/LTX-2.3-spatial-upscaler-x2-v1.1-Diffusers", "latent_upsampler"),
            lora=Companion("Lightricks/LTX-2.3", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors"),
        ),
        CatalogueEntry(
            name="ltx-2.3-distilled",
            repository="diffusers/LTX-2.3-Distilled-Diffusers",
            generation="2.3",
            kind="distilled",
            folders=("transformer", *SHARED),
            upsampler=Companion("rootonchair/LTX-2.3-spatial-upscaler-x2-v1.1-Diffusers", "latent_upsampler"),
        ),
        # One repository holds both: transformer/ is distilled, transformer_full/ dev and not in model_index.json.
        # Gated: huggingface.co/Lightricks/LTX-2.5-Diffusers. The LoRA (8.9 GB) is in the gated Lightricks/LTX-2.5.
        CatalogueEntry(
            name="ltx-2.5",
            repository="Lightricks/LTX-2.5-Diffusers",
            generation="2.5",
            kind="dev",
            folders=(DEV_TRANSFORMER, *SHARED, *EXTRAS_2_5),
            transformer=DEV_TRANSFORMER,
            upsampler=Companion("Lightricks/LTX-2.5-Diffusers", "latent_upsampler"),
            lora=Companion("Lightricks/LTX-2.5", "loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors"),
        ),
        CatalogueEntry(
            name="ltx-2.5-distilled",
            repository="Lightricks/LTX-2.5-Diffusers",
            generation="2.5",
            kind="distilled",
            folders=("transformer", *SHARED, *EXTRAS_2_5),
            upsampler=Companion("Lightricks/LTX-2.5-Diffusers", "latent_upsampler"),
        ),
    )
}


def find_entry(name: str, kind: Kind | None = None) -> CatalogueEntry | None:
    """What is published under a name or in a repository: where that holds several kinds, of the one asked for."""
    if entry := CATALOGUE.get(name.casefold()):
        return entry
    entries = [entry for entry in CATALOGUE.values() if entry.repository.casefold() == name.casefold()]
    return next((entry for entry in entries if entry.kind == kind), entries[0] if entries else None)


def generation_of_name(name: str) -> Generation | None:
    """Which LTX-2 a file is of by its name; None if that does not say."""
    found = re.search(r"ltx-?(2(\.\d)?)(?![\d.]*\d)", name.casefold())
    generations: dict[str, Generation] = {"2": "2.0", "2.0": "2.0", "2.3": "2.3", "2.5": "2.5"}
    return generations.get(found[1]) if found else None


def kind_of_name(name: str) -> Kind | None:
    """Dev or distilled, guessed from the name of a file, a folder or a repository; None if it does not say.

    LTX2_RECIPE overrides the guess elsewhere.
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold().removesuffix(".safetensors")
    if "distilled" in last:
        return "distilled"
    if "dev" in re.split(r"[^a-z0-9]+", last):
        return "dev"
    # Lightricks/LTX-2 says neither, and is dev: what the catalogue knows need not say it
    for entry in CATALOGUE.values():
        repository = entry.repository.casefold().rpartition("/")[2]
        if last == entry.name or (last == repository and entry.transformer == "transformer"):
            return entry.kind
    return None
