"""Schemathesis asks the running server whatever the published documents allow, and our own, and checks the answers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from processes import ROOT, Server, running_server, wait_until_warm

SEED = ROOT / "tests" / "data" / "seed"
LTX2, COMMON = "kiapi-ltx2.openapi.json", "kiapi-common.openapi.json"
CONTENT_TYPE = "content_type_conformance"
CHECKS = ("not_a_server_error", "response_headers_conformance", "response_schema_conformance", CONTENT_TYPE)
RUNWARE = "runware-ltx2-fast.openapi.json"
DOWNLOAD = "/v1/files/{file_id}/download"


def some(few: int, many: int) -> pytest.MarkDecorator:
    """How many examples an operation gets: few each time, many where there is time."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.soak)])


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of test cards that refuses what would take it seconds."""
    settings = {"LTX2_MAX_PIXELS": str(768 * 512), "LTX2_MAX_NUM_FRAMES": "121", "LTX2_QUEUE_LIMIT": "1000"}
    with running_server(tmp_path_factory.mktemp("quick"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running


def schemathesis(document: Path, url: str, phases: str, checks: tuple[str, ...] = CHECKS, *options: str) -> None:
    """Run it on a document; what it found is the failure's message."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", document.name, "--url", url, "--phases", phases]
    command += ["--checks", ",".join(checks), "--seed", "1", "--workers", "2", "--no-color", *options]
    command += ["--generation-database", "none", "--request-timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=document.parent, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@some(10, 40)
@pytest.mark.parametrize("name", [LTX2, COMMON])
def test_the_server_answers_as_the_published_document_says(
    quick_server: Server, name: str, tmp_path: Path, examples: int
) -> None:
    document = tmp_path / name
    document.write_bytes((SEED / name).read_bytes())
    phases = "examples,coverage,fuzzing"
    schemathesis(
        document, quick_server.url, phases, CHECKS, "--max-examples", f"{examples}", "--exclude-path", DOWNLOAD
    )


def test_a_download_has_the_type_of_its_file(quick_server: Server, tmp_path: Path) -> None:
    document = tmp_path / COMMON
    document.write_bytes((SEED / COMMON).read_bytes())
    # the document's words say so; its schema knows only application/octet-stream
    others = tuple(check for check in CHECKS if check != CONTENT_TYPE)
    phases = "examples,coverage,fuzzing"
    schemathesis(document, quick_server.url, phases, others, "--max-examples", "25", "--include-path", DOWNLOAD)


def test_the_server_with_a_model_answers_as_the_published_document_says(server: Server, tmp_path: Path) -> None:
    document = tmp_path / LTX2
    document.write_bytes((SEED / LTX2).read_bytes())
    schemathesis(document, server.url, "examples")


@some(10, 40)
def test_the_server_answers_as_the_runware_document_says(fake_server: Server, tmp_path: Path, examples: int) -> None:
    document, published = tmp_path / RUNWARE, json.loads((SEED / RUNWARE).read_text())
    task = published["components"]["schemas"]["RequestBody"]["items"]["properties"]
    del task["webhookURL"], task["uploadEndpoint"]  # the hosts that are made up would be looked up for seconds
    document.write_text(json.dumps(published))
    try:
        schemathesis(document, fake_server.url + "/v1", "coverage,fuzzing", CHECKS, "--max-examples", f"{examples}")
    finally:  # what was accepted is large, and others want the server
        for job in httpx.get(fake_server.url + "/v1/jobs").json()["data"]:
            if job["params"].get("width") == 1920:
                httpx.delete(fake_server.url + "/v1/jobs/" + job["id"])


@some(1, 20)
def test_the_server_answers_as_our_own_document_says(quick_server: Server, tmp_path: Path, examples: int) -> None:
    document = tmp_path / "ours.json"
    document.write_text(json.dumps(httpx.get(quick_server.url + "/openapi.json").json()))
    checks = (*CHECKS, "status_code_conformance")
    schemathesis(document, quick_server.url, "examples,fuzzing", checks, "--max-examples", f"{examples}")
