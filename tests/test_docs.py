"""The documents against the code: every route, setting, field, code and command."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from small_videos import video

from ltx2.catalogue import CATALOGUE
from ltx2.dialects import kiapi_bodies, tasks
from ltx2.dialects.app import create_app
from ltx2.dialects.base import STATUS
from ltx2.errors import NotReady
from ltx2.geometry import make_grid
from ltx2.media.probe import probe_video
from ltx2.model.local import LocalEngine
from ltx2.model.memory import ACTIVATIONS, PARAMETERS, typical_grid, weight_bytes
from ltx2.model.placement import Card, plan_placement
from ltx2.model.tiny import TINY_MODELS
from ltx2.payload import Facts, GenerateBody, GenerateResponse, parse
from ltx2.quality import QualityReport
from ltx2.request import Guidance
from ltx2.settings import Settings
from ltx2.studio.studio import Studio
from processes import ROOT, Server

README, LLMS, ARCHITECTURE, MODELS = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "llms.txt", "ARCHITECTURE.md", "docs/models.md")
)


def block(text: str, beginning: str) -> str:
    """The fenced block that begins with these words."""
    (found,) = re.findall(rf"```\w+\n({re.escape(beginning)}.*?)```", text, re.DOTALL)
    return str(found)


def test_every_route_is_documented(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    paths = create_app(Studio(settings, LocalEngine(settings))).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    for document in (README, LLMS):
        assert routes <= set(re.findall(r"`((?:GET|POST|PUT|DELETE) [^`]+)`", document))


def variables_of(name: str, field: FieldInfo) -> list[str]:
    """The environment variables that a setting is read from."""
    match field.validation_alias:
        case None:
            return [f"LTX2_{name.upper()}"]
        case AliasChoices(choices=choices):
            return [str(choice) for choice in choices]
        case alias:
            return [str(alias)]


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"\| `(LTX2_\w+)` \| `([^`]+)` \|", README))
    variables = {
        variable: field.default
        for name, field in Settings.model_fields.items()
        for variable in variables_of(name, field)
    }
    ours = {name: str(default) for name, default in variables.items() if name.startswith("LTX2_")}
    assert rows == ours
    for variable in variables.keys() - ours.keys():
        assert f"`{variable}`" in README


def test_every_request_field_is_documented() -> None:
    documented = json.loads(block(LLMS, '{\n  "prompt"'))
    assert documented.keys() == GenerateBody.model_fields.keys()
    parse(documented)
    section = LLMS.split("## Request")[1].split("## Response")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", section, re.MULTILINE)
    assert {name for name, _, _ in rows} == GenerateBody.model_fields.keys()
    body = GenerateBody(prompt="x")
    for name, _, default in rows:
        value = getattr(body, name)
        if isinstance(value, bool | int | float):
            assert json.loads(default) == value, name
    for name in Guidance.model_fields:
        assert f"`{name}`" in LLMS


@pytest.mark.parametrize(
    ("beginning", "body"), [("**kiapi** (", kiapi_bodies.GenerateRequest), ("**tasks** (", tasks.ImageToVideo)]
)
def test_every_field_of_the_other_dialects_is_documented(beginning: str, body: type[BaseModel]) -> None:
    (paragraph,) = (part for part in LLMS.split("\n\n") if part.startswith(beginning))
    assert body.model_fields.keys() <= set(re.findall(r"`(\w+)`", paragraph))


def test_the_job_walkthrough_of_llms_txt_works(fake_server: Server) -> None:
    lines = block(LLMS, "# kiapi: post").replace("http://<SERVER>:8000", fake_server.url).replace("\\\n", "")
    curls = [line.split(" -o ")[0] for line in lines.splitlines() if line.startswith("curl")]
    known = {"<JOB>": "", "<FILE>": ""}
    answers = []
    for curl in curls:
        command = curl.replace("<JOB>", known["<JOB>"]).replace("<FILE>", known["<FILE>"])
        answer = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True).stdout
        for placeholder, pattern in (("<JOB>", rb"job_[0-9a-f]{32}"), ("<FILE>", rb"file_[0-9a-f]{32}")):
            known[placeholder] = found[0].decode() if (found := re.search(pattern, answer)) else known[placeholder]
        answers.append(answer)
        time.sleep(0.7)  # as callers who poll do
    _created, job, clip, events, _task, polled = answers
    assert json.loads(job)["status"] == "succeeded"
    assert clip[4:8] == b"ftyp"
    assert b"event: succeeded" in events
    assert json.loads(polled)["status"] == "completed"


def test_every_field_of_the_answer_and_every_mode_is_documented() -> None:
    documented = json.loads(block(LLMS, '{\n  "video"'))
    assert set(documented) | {"audio"} == set(GenerateResponse.model_fields)
    assert set(documented["quality"]) == set(QualityReport.model_fields)
    assert all(f"| `{figure}` |" in LLMS for figure in QualityReport.model_fields)
    Facts.model_validate({name: value for name, value in documented.items() if name != "video"})
    for mode in GenerateResponse.model_fields["mode"].annotation.__args__:  # type: ignore[union-attr]
        assert f"`{mode}`" in LLMS


def test_every_error_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", LLMS, re.MULTILINE)
    documented = {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert documented == STATUS


def test_every_miniature_is_documented() -> None:
    for name in TINY_MODELS:
        assert f"`{name}`" in README


def test_limits_said_in_words_are_the_settings() -> None:
    settings = Settings()
    assert f"up to {settings.max_prompt_chars:,} characters" in LLMS
    assert f"1 to {settings.max_num_frames}" in LLMS
    assert settings.max_pixels == 1920 * 1088
    assert f"over {settings.max_body_mb:g} MiB" in LLMS
    assert f"| `crf` | int | {settings.video_crf} |" in LLMS


def test_the_sizes_said_to_be_on_the_grid_are() -> None:
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) \| (\w+)", LLMS, re.MULTILINE)
    assert rows
    for width, height, on_grid in rows:
        grid = make_grid(int(width), int(height), 49, Fraction(25))
        assert ((grid.grid_width, grid.grid_height) == (int(width), int(height))) == (on_grid == "yes")


def test_the_map_of_the_house_names_every_file() -> None:
    drawn = set(re.findall(r"[\w]+\.py", ARCHITECTURE))
    real = {path.name for path in (ROOT / "ltx2").rglob("*.py")} - {"__init__.py"}
    assert real <= drawn
    assert drawn <= real | {"handler.py", "server.py", "test_architecture.py"}


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", README)) <= targets


def test_the_clients_of_llms_txt_work(fake_server: Server, tmp_path: Path) -> None:
    for name in ("start.jpg", "chime.ogg"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    client = block(LLMS, "import base64").replace("http://localhost:8000", fake_server.url)
    (tmp_path / "client.py").write_text(client)
    run([sys.executable, "client.py"], tmp_path)
    assert [probe_video(tmp_path / f"{name}.mp4").num_frames for name in ("rain", "alive", "bells")] == [9, 25, 25]
    (tmp_path / "generate.sh").write_text(block(LLMS, "#!/usr/bin/env bash"))
    run(["bash", "generate.sh", 'a "quoted" cat', "cat.mp4"], tmp_path, LTX_SERVER=fake_server.url)
    assert probe_video(tmp_path / "cat.mp4").num_frames == 49


def test_the_curl_lines_of_llms_txt_and_readme_work(fake_server: Server, tmp_path: Path) -> None:
    script = block(LLMS, "# text to video").replace("http://<SERVER>:8000", fake_server.url)
    for placeholder, name in (("<IMAGE>", "start.jpg"), ("<SOUND>", "chime.ogg")):
        encoded = subprocess.run(["base64", "-w0", str(ROOT / "examples" / name)], capture_output=True, check=True)
        script = script.replace(placeholder, encoded.stdout.decode())
    assert run(["bash", "-c", script], tmp_path).count('"video":"data:video/mp4') == 5
    videos = block(LLMS, "# seconds 1 to 2 again").replace("http://<SERVER>:8000", fake_server.url)
    (tmp_path / "clip.mp4").write_bytes(video(49))
    upload = json.loads(run(["curl", "-s", "-F", "file=@clip.mp4", f"{fake_server.url}/v1/files"], tmp_path))
    answers = run(["bash", "-c", videos.replace("<FILE>", upload["file_id"])], tmp_path)
    assert re.findall(r'"mode": "(\w+)", "num_frames": (\d+)', answers) == [("Retake", "49"), ("Extend", "124")]
    waves = block(README, "make serve").split("\n", 1)[1]
    waves = waves.replace("http://127.0.0.1:8000", fake_server.url).replace(".venv/bin/python", sys.executable)
    assert "288x512 T2V+Audio" in run(["bash", "-c", waves], tmp_path)
    assert probe_video(tmp_path / "waves.mp4").num_frames == 25


def run(command: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_job_is_made_of_the_example_files() -> None:
    job = json.loads((ROOT / "test_input.json").read_text())["input"]
    request, sources = parse(job)
    assert request.mode == "A2V+I2V"
    for field, name in (("image_start", "start.jpg"), ("audio", "chime.ogg")):
        encoded = str(sources[field]).split(",")[1]
        assert base64.b64decode(encoded) == (ROOT / "examples" / name).read_bytes()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_everything_is_pinned(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_every_dependency_is_among_the_pins() -> None:

    pinned = {
        re.split("==", line)[0].lower() for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line
    }
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", line)[0] for line in declared} <= pinned


def test_what_fits_where_is_what_the_program_plans() -> None:
    tables = re.split(r"^\| memory", MODELS, flags=re.MULTILINE)[1:]
    for table, lora, refused in zip(tables, (0, 3_850_000_000), ("does not fit", "no second stage"), strict=True):
        head, _, *lines = table.split("\n\n")[0].splitlines()
        shapes = re.findall(r"(\d+)x(\d+)x(\d+)", head)
        assert (len(shapes), len(lines)) == (4, 8)
        for line in lines:
            size, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            memory = int(size.removesuffix(" GB")) * 10**9
            card = Card("cuda", memory, memory, fp8_matmul=True)
            for shape, said in zip(shapes, cells, strict=True):
                wanted = typical_grid(*map(int, shape)), ACTIVATIONS["2.0"]
                try:
                    plan = plan_placement(card, PARAMETERS["2.0"], "auto", "auto", *wanted, lora_parameters=lora)
                except NotReady:
                    assert said == refused
                    continue
                tiles = ", tiles" if plan.tiled else ""
                assert said == f"{plan.precision}, {plan.offload}, {plan.peak_bytes / 10**9:.0f} GB{tiles}"


def test_the_weights_said_are_those_counted() -> None:
    said = dict(re.findall(r"^\| (transformer|latent upsampler) \| ([\d.]+) \|", MODELS, re.MULTILINE))
    counted = {"transformer": PARAMETERS["2.0"]["transformer"], "latent upsampler": PARAMETERS["2.0"]["upsampler"]}
    assert said == {name: f"{2 * number / 10**9:.1f}" for name, number in counted.items()}
    for generation, parts in PARAMETERS.items():
        total = sum(weight_bytes(part, number, "bf16", 2) for part, number in parts.items())
        assert f"{total / 10**9:.1f}" in MODELS, generation


def test_every_named_model_is_documented() -> None:
    assert set(re.findall(r"^\| `(ltx-[\w.-]+)` \| ([\w.-]+/[\w.-]+)", MODELS, re.MULTILINE)) == {
        (entry.name, entry.repository) for entry in CATALOGUE.values()
    }
    for name in CATALOGUE:
        assert f"`{name}`" in README
