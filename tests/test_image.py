"""The image and the compose file: against published linters and schemas, and run as far as there is no container."""

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths
from packaging.specifiers import SpecifierSet
from variables import all_of, instructions, set_environment

from ltx2.settings import Settings, load_settings
from processes import ROOT, environment

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
HADOLINT = Path(sys.executable).parent / "hadolint"


def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    done = run([str(HADOLINT), "--no-color", str(ROOT / "Dockerfile")])
    assert done.returncode == 0, done.stdout + done.stderr
    worse = tmp_path / "Dockerfile"
    worse.write_text("FROM ubuntu:latest\nRUN cd /tmp && apt-get install curl\nCMD python handler.py\n")
    found = run([str(HADOLINT), "--no-color", str(worse)])
    assert found.returncode == 1
    assert {"DL3007", "DL3014", "DL3025"} <= set(re.findall(r"DL\d+", found.stdout))


def test_the_base_is_pinned_and_has_a_python_that_will_do() -> None:
    (base,) = all_of("FROM")
    found = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-base-ubuntu(\d\d)\.04", base)
    assert found
    python = {"22": "3.10", "24": "3.12", "26": "3.14"}[found[2]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python in SpecifierSet(project["requires-python"])


def context() -> set[str]:
    """What a builder is sent, as Docker's own library reads .dockerignore."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    paths = exclude_paths(str(ROOT), patterns, dockerfile="Dockerfile")
    return {path for path in paths if (ROOT / path).is_file()}


def copied() -> dict[str, Path]:
    """What the image has of the repository: where it lies in the working folder, and the file."""
    found = {}
    for rest in all_of("COPY"):
        *sources, target = shlex.split(rest)
        for source in sources:
            files = [path for path in context() if path == source or path.startswith(source + "/")]
            assert files, f"{source} is not in the context"
            for path in files:
                inside = Path(path).relative_to(source) if (ROOT / source).is_dir() else Path(source).name
                place = Path(target) / inside if target.endswith("/") or (ROOT / source).is_dir() else Path(target)
                found[str(place)] = ROOT / path
    return found


def test_what_is_copied_runs_by_itself(tmp_path: Path) -> None:
    files = {place: file for place, file in copied().items() if not place.startswith("/")}
    for place, file in files.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / place)
    # whatever the program consists of, also what is imported late
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "ltx2").rglob("*") if path.is_file()}
    assert {path for path in ours if "__pycache__" not in path} == {
        place for place in files if place.startswith("ltx2/")
    }
    program = "import sys, handler, server; print([m.__file__ for n, m in sys.modules.items() if n.startswith('ltx2')])"
    done = run([sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "ltx2" / "payload.py") in done.stdout
    assert str(ROOT) not in done.stdout
    done = run(
        [sys.executable, "handler.py", "--test_input", json.dumps({"input": {"prompt": "x"}})],
        cwd=tmp_path,
        env=environment(tmp_path / "data", LTX2_MODEL="nowhere"),
    )
    assert "no model is called" in done.stdout + done.stderr


def test_nothing_else_is_sent_to_a_builder() -> None:
    used = {str(file.relative_to(ROOT)) for file in copied().values()}
    assert context() - used == {"Dockerfile", ".dockerignore"}
    assert not any("__pycache__" in path for path in used)


def test_commands_are_the_program_itself() -> None:
    assert [json.loads(rest) for rest in all_of("CMD")] == [["python", "-u", "handler.py"]]
    assert not all_of("ENTRYPOINT")
    (check,) = all_of("HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["python", "-m", "ltx2.healthcheck"]


def test_the_images_environment_makes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair.partition("=") for rest in all_of("ENV") for pair in shlex.split(rest)]
    values = {name: value for name, _, value in pairs if name.startswith(("LTX2_", "RUNPOD_")) and "$" not in value}
    settings = set_environment(monkeypatch, values)
    assert (settings.model, settings.models_dir) == ("ltx-2-distilled", Path("/runpod-volume"))
    assert settings.host == "0.0.0.0"
    # RunPod's load balancer says PORT
    monkeypatch.setenv("PORT", "80")
    assert load_settings().port == 80


# --- weights in the image


@pytest.fixture
def gated_hub() -> Iterator[tuple[str, list[str | None]]]:
    """A hub that lets nobody in, and what callers showed it."""
    shown: list[str | None] = []

    class Gate(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", shown
    server.shutdown()
    server.server_close()


def bake(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the Dockerfile's own command for it, with the secret at another place."""
    (command,) = (rest for rest in all_of("RUN") if "LTX2_BAKE" in rest)
    mount, _, command = command.partition(" ")
    assert mount == "--mount=type=secret,id=hf_token"
    command = command.replace("/run/secrets/hf_token", str(folder / "token")).replace("python ", f"{sys.executable} ")
    kept = {name: value for name, value in environment(folder).items() if not name.startswith("HF_")}
    return run(["/bin/sh", "-c", command], cwd=ROOT, env=kept | {"HF_HOME": str(folder / "hub")} | variables)


def test_nothing_is_fetched_unless_it_is_asked_for(tmp_path: Path) -> None:
    done = bake(tmp_path, PATH="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert bake(tmp_path, LTX2_BAKE="tiny").returncode == 0
    assert not any(tmp_path.rglob("*"))


def test_the_token_of_a_build_is_a_secret(tmp_path: Path, gated_hub: tuple[str, list[str | None]]) -> None:
    address, shown = gated_hub
    (tmp_path / "token").write_text("hf_secretsecretsecret\n")
    done = bake(tmp_path, LTX2_BAKE="ltx-2.5", HF_ENDPOINT=address, LTX2_MODELS_DIR=str(tmp_path / "none"))
    assert done.returncode != 0
    assert "is gated" in done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    assert "Bearer hf_secretsecretsecret" in shown
    assert not [rest for name, rest in instructions() if name in ("ARG", "ENV") and "TOKEN" in rest]


# --- compose.yaml


def compose_schema(file: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)])


def test_the_compose_file_follows_the_specification(tmp_path: Path) -> None:
    done = compose_schema(ROOT / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    worse = copy.deepcopy(COMPOSE)
    worse["services"]["server"]["stop_grace_perod"] = "45s"
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(worse))
    assert "stop_grace_perod" in compose_schema(tmp_path / "compose.yaml").stdout


def test_compose_starts_a_server_that_is_not_open_to_all() -> None:
    services = COMPOSE["services"]
    (device,) = services["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services["fake"]["profiles"]
    assert "deploy" not in services["fake"]
    volumes = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert {name for name in volumes if name.isidentifier() or ("-" in name and "$" not in name)} == set(
        COMPOSE["volumes"]
    )
    for service in services.values():
        assert re.fullmatch(r"\$\{LTX2_API_KEYS:\?.+\}", service["environment"]["LTX2_API_KEYS"])
        assert all(re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:8000", port) for port in service["ports"])
        assert int(service["stop_grace_period"].removesuffix("s")) > Settings().shutdown_seconds + 10
        assert service["command"][:2] == ["python", "server.py"]
        assert {service["user"]} == {f"{uid}:{uid}" for run in all_of("RUN") for uid in re.findall(r"--uid (\d+)", run)}
        assert service["restart"] == "unless-stopped"
