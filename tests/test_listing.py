"""What RunPod's Hub reads of this project, and docs/runpod.md: against the Hub's guide, and against the program."""

import asyncio
import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from variables import OTHERS, all_of, set_environment, settings_variables

from ltx2.media.probe import probe_video
from ltx2.model.local import LocalEngine
from ltx2.model.memory import ACTIVATIONS, PARAMETERS, typical_grid
from ltx2.model.placement import Card, plan_placement
from ltx2.payload import parse
from ltx2.studio.direct import Direct
from processes import ROOT

HUB, TESTS = (json.loads((ROOT / ".runpod" / name).read_text()) for name in ("hub.json", "tests.json"))
SCHEMAS = {
    name: json.loads((ROOT / "tests" / "data" / "runpod" / f"{name}.schema.json").read_text())
    for name in ("hub", "tests")
}
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCUMENT = (ROOT / "docs" / "runpod.md").read_text()
LORA = 3_850_000_000
"""Numbers of the LoRA that LTX-2.0's dev model wears, as docs/models.md has it."""


@pytest.mark.parametrize(("name", "document"), [("hub", HUB), ("tests", TESTS)])
def test_the_hubs_files_follow_its_guide(name: str, document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(document)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("hub", ["category"], "films"),
        ("hub", ["type"], "pod"),
        ("hub", ["config", "runsOn"], "CPU"),
        ("hub", ["config", "gpuIds"], "ADA_48_PRO, HOPPER_142"),
        ("hub", ["config", "gpuCount"], None),
        ("hub", ["config", "containerDiskInGb"], "120"),
        ("hub", ["config", "env", 0, "value"], "both a value and an input"),
        ("hub", ["config", "env", 0, "input", "type"], "select"),
        ("hub", ["config", "env", 0, "input", "options", 0], "ltx-2"),
        ("hub", ["config", "env", 0, "input", "min"], 1),
        ("hub", ["config", "presets", 0, "defaults", "LTX2_MODEL"], None),
        ("hub", ["config", "preset"], []),
        ("tests", ["tests"], []),
        ("tests", ["tests", 0, "input"], "a prompt"),
        ("tests", ["tests", 0, "timeout"], 0.5),
        ("tests", ["tests", 0, "expected"], {}),
        ("tests", ["config", "gpuTypeId"], "4090"),
        ("tests", ["config", "env", 0, "value"], 1),
        ("tests", ["config", "cpuFlavor"], "cpu3c"),
    ],
)
def test_the_schemas_refuse_what_the_guide_does_not_have(name: str, path: list[str | int], value: object) -> None:
    document = copy.deepcopy({"hub": HUB, "tests": TESTS}[name])
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not jsonschema.Draft202012Validator(SCHEMAS[name]).is_valid(document)


def test_every_variable_is_one_that_somebody_reads() -> None:
    known = settings_variables() | set(OTHERS)
    form = {entry["key"] for entry in HUB["config"]["env"]}
    assert form <= known
    assert {entry["key"] for entry in TESTS["config"]["env"]} <= known
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= form
    for service in COMPOSE["services"].values():
        assert set(service["environment"]) <= known
    assert {name for rest in all_of("ENV") for name in re.findall(r"(\w+)=", rest)} <= known
    named = set(re.findall(r"\b((?:LTX2|BUCKET|RUNPOD|HF|PORT)(?:_[A-Z0-9]+)+|PORT)\b", DOCUMENT))
    assert named - known - {"RUNPOD_SECRET"} == set()


def test_a_form_that_is_left_as_it_is_makes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {entry["key"]: entry["input"] for entry in HUB["config"]["env"] if "input" in entry}
    defaults = {name: field["default"] for name, field in inputs.items() if "default" in field}
    # what nobody filled in may come as an empty text
    settings = set_environment(monkeypatch, dict.fromkeys(inputs, "") | defaults)
    assert (settings.model, settings.bucket_endpoint_url) == ("ltx-2-distilled", None)
    for name, value in defaults.items():
        if not name.startswith(("HF_", "BUCKET_")):
            assert str(getattr(settings, name.removeprefix("LTX2_").lower())) == str(value)
    for field in inputs.values():
        values = [option["value"] for option in field.get("options", [])]
        assert not values or field["default"] in values
        if field["type"] == "number":
            assert field["min"] <= field["default"] <= field["max"]


@pytest.mark.parametrize("name", ["LTX2_MODEL", "LTX2_PRECISION", "LTX2_OFFLOAD"])
def test_whatever_the_form_offers_is_a_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (options,) = (entry["input"]["options"] for entry in HUB["config"]["env"] if entry["key"] == name)
    for option in options:
        set_environment(monkeypatch, {name: option["value"]})


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda preset: preset["name"])
def test_a_preset_fits_the_memory_it_is_named_after(monkeypatch: pytest.MonkeyPatch, preset: dict[str, Any]) -> None:
    settings = set_environment(monkeypatch, preset["defaults"])
    memory = int(preset["name"].split(" GB")[0]) * 10**9
    card = Card("cuda", memory, memory, fp8_matmul=True, host_free_bytes=76 * 10**9)
    shape = typical_grid(*map(int, settings.plan_for.split("x")))
    lora = 0 if settings.model.endswith("distilled") else LORA
    plan = plan_placement(
        card, PARAMETERS["2.0"], settings.precision, settings.offload, shape, ACTIVATIONS["2.0"], lora_parameters=lora
    )
    assert (plan.precision, plan.offload) == (settings.precision, settings.offload)
    assert f"up to {shape.width}x{shape.height}" in preset["name"] or settings.model == "ltx-2"
    if not lora:
        (row,) = re.findall(
            rf"^\| {memory // 10**9} GB \| {plan.precision},[^|]*\| ?(?:(\d+) GB)? ?\|", DOCUMENT, re.MULTILINE
        )
        assert math.ceil(plan.host_bytes / 1e9) == int(row or 0)


def test_the_hubs_tests_are_jobs_that_make_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables = {entry["key"]: entry["value"] for entry in TESTS["config"]["env"]}
    settings = set_environment(monkeypatch, variables | {"LTX2_DATA_DIR": tmp_path, "LTX2_DEVICE": "cpu"})

    async def make(studio: Direct, job: dict[str, Any]) -> int:
        async with studio.run(*parse(job)) as (_, clip):
            return probe_video(clip.path).num_frames

    studio = Direct(settings, LocalEngine(settings))
    try:
        for test in TESTS["tests"]:
            assert asyncio.run(make(studio, test["input"])) == test["input"]["num_frames"], test["name"]
    finally:
        studio.close()


def test_the_costs_are_what_the_formula_gives() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| (\d+) s \| (\d+) s \| (\d+) s \| \$([\d.]+) \| \$([\d.]+) \|", DOCUMENT, re.MULTILINE
    )
    assert len(rows) >= 4
    for start, making, idle, price, said in rows:
        assert f"{(int(start) + int(making) + int(idle)) * float(price):.4f}" == said


def test_what_the_document_points_at_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target
    for preset in HUB["config"]["presets"]:
        assert preset["name"].split(":")[0] in DOCUMENT
    for name in re.findall(r"python -m ([\w.]+)", DOCUMENT):
        assert (ROOT / (name.replace(".", "/") + ".py")).is_file() or name in ("pip", "ltx2.cli"), name
