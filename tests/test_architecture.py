"""Who may know whom: ARCHITECTURE.md's table, walked over the imports of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    "errors",
    "settings",
    "geometry",
    "recipes",
    "request",
    "plan",
    "payload",
    "engine",
    "footprint",
    "quote",
    "catalogue",
    "formats",
    "loras",
    "pieces",
    "provenance",
    "quality",
    "retry",
    "imprint",
)
"""Modules of the ground floor."""
TORCH = {"torch", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate", "huggingface_hub"}
HTTP = {"fastapi", "starlette", "uvicorn", "websockets"}
MEDIA = {"av", "PIL", "soundfile", "numpy", "pybase64", "httpcore", "botocore", "c2pa"}
STUDIO = {"sqlalchemy", "filelock", "fsspec", "itsdangerous", "standardwebhooks", "prometheus_client"}
STDLIB = set(sys.stdlib_module_names)

ALLOWED = {
    "ground": STDLIB | {"ltx2", "pydantic", "pydantic_core", "pydantic_settings"} | {f"ltx2.{name}" for name in FLOORS},
}
ALLOWED["media"] = ALLOWED["ground"] | MEDIA | {"ltx2.media"}
ALLOWED["model"] = ALLOWED["media"] | TORCH | {"ltx2.model", "psutil"}
ALLOWED["checker"] = ALLOWED["media"]
ALLOWED["studio"] = ALLOWED["ground"] | STUDIO | {"ltx2.media", "ltx2.checker", "ltx2.studio"}
ALLOWED["dialects"] = ALLOWED["ground"] | HTTP | {"pybase64", "ltx2", "ltx2.studio", "ltx2.dialects"}
ALLOWED["serverless"] = ALLOWED["media"] | {"runpod", "ltx2.serverless"}
ALLOWED["fleet"] = ALLOWED["media"] | {"ltx2.checker", "ltx2.fleet", "ray", "runpod", "requests", "urllib3"}
ALLOWED["fake"] = ALLOWED["media"] | {"psutil"}
# small tools beside the rooms; the command line is a composition root like handler.py and server.py
ALLOWED["terminal"] = ALLOWED["ground"] | {"tqdm"}
ALLOWED["healthcheck"] = ALLOWED["ground"]
ALLOWED["cli"] = ALLOWED["studio"] | {"ltx2.model", "ltx2.terminal"}

MODULES = sorted((ROOT / "ltx2").rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(ROOT / "ltx2").parts[0].removesuffix(".py")
    return "ground" if first in FLOORS or first == "__init__" else first


def imports(path: Path) -> set[str]:
    """Everything a module imports, wherever the statement stands; of ours, the room or the ground module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "ltx2" else [node.module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            found.add(".".join(parts[:2]) if parts[0] == "ltx2" else parts[0])
    return {"ltx2" if name == "ltx2.__version__" else name for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_knows_only_what_its_room_may(path: Path) -> None:
    assert imports(path) - ALLOWED[room(path)] == set()


def test_the_ground_floor_has_no_circle() -> None:
    graph = {
        f"ltx2.{name}": {known for known in imports(ROOT / "ltx2" / f"{name}.py") if known.startswith("ltx2.")}
        for name in FLOORS
    }
    while graph:
        leaves = {name for name, known in graph.items() if not known & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: known for name, known in graph.items() if name not in leaves}


def test_the_handler_never_knows_fastapi_and_only_roots_know_the_engine() -> None:
    assert not imports(ROOT / "handler.py") & HTTP
    for root in ("handler.py", "server.py"):
        assert not imports(ROOT / root) & TORCH


def test_importing_the_server_and_the_engines_loads_no_torch() -> None:
    modules = "server, ltx2.model.local, ltx2.fake, ltx2.studio.process, ltx2.studio.child, ltx2.fleet.cluster"
    code = f"import sys, {modules}; print(*({TORCH} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", [*MODULES, ROOT / "handler.py", ROOT / "server.py"], ids=lambda path: path.name)
def test_no_file_grows_past_350_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_only_the_settings_read_the_environment() -> None:
    for path in [*MODULES, ROOT / "handler.py", ROOT / "server.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, part, "") for part in ("attr", "id", "name")}
            assert not names & {"environ", "environb", "getenv"}, path
