import re

import pytest

from ltx2.catalogue import CATALOGUE, CatalogueEntry, Companion, find_entry, kind_of_name
from ltx2.recipes import Kind, recipe_for


def test_each_generation_is_there_as_dev_and_distilled() -> None:
    assert list(CATALOGUE) == [
        "ltx-2",
        "ltx-2-distilled",
        "ltx-2.3",
        "ltx-2.3-distilled",
        "ltx-2.5",
        "ltx-2.5-distilled",
    ]
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.kind == ("distilled" if name.endswith("-distilled") else "dev")
        assert recipe_for(entry.generation, entry.kind).generation == entry.generation


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_an_entry_names_what_is_needed_and_no_more(entry: CatalogueEntry) -> None:
    needed = {entry.transformer, "text_encoder", "tokenizer", "connectors", "vae", "audio_vae", "vocoder"}
    extras = {"diffusion_decoder", "duration_head"} if entry.generation == "2.5" else set()
    assert set(entry.folders) == needed | extras
    assert entry.upsampler is not None
    assert (entry.lora is not None) is (entry.kind == "dev")
    for companion in filter(None, (entry.upsampler, entry.lora)):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", companion.repository)


def test_a_companion_is_a_file_or_a_folder() -> None:
    assert Companion("org/name", "latent_upsampler").patterns == ("latent_upsampler/*",)
    assert Companion("org/name", "loras/a.safetensors").patterns == ("loras/a.safetensors",)


@pytest.mark.parametrize(
    ("asked", "kind", "name"),
    [
        ("LTX-2.5", "distilled", "ltx-2.5"),
        ("Lightricks/LTX-2.5-Diffusers", "dev", "ltx-2.5"),
        ("Lightricks/LTX-2.5-Diffusers", "distilled", "ltx-2.5-distilled"),
        ("lightricks/ltx-2", None, "ltx-2"),
        ("Lightricks/LTX-2", "distilled", "ltx-2"),
        ("org/name", "dev", None),
        ("", None, None),
    ],
)
def test_a_repository_is_known_as_well_as_a_name(asked: str, kind: Kind | None, name: str | None) -> None:
    found = find_entry(asked, kind)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ltx-2-19b-dev.safetensors", "dev"),
        ("ltx-2-19b-dev-fp8.safetensors", "dev"),
        ("ltx-2-19b-distilled-fp8.safetensors", "distilled"),
        ("ltx-2.3-22b-distilled-1.1.safetensors", "distilled"),
        ("ltx-2.5-22b-dev-transformer-bf16.safetensors", "dev"),
        ("/volume/distilled/ltx-2-19b-dev.safetensors", "dev"),
        ("Lightricks/LTX-2", "dev"),
        ("diffusers/LTX-2.3-Diffusers", "dev"),
        ("diffusers/LTX-2.3-Distilled-Diffusers", "distilled"),
        ("/models/LTX-2.5-Diffusers/", "distilled"),
        ("ltx-2", "dev"),
        ("LTX-2.5", "dev"),
        ("my_dev_model", "dev"),
        ("Lightricks/LTX-2.3-fp8", None),
        ("device", None),
        ("my-model", None),
        ("", None),
    ],
)
def test_dev_or_distilled_is_guessed_from_a_name(name: str, kind: Kind | None) -> None:
    assert kind_of_name(name) == kind
