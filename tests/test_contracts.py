"""Schemathesis asks the running server whatever the published documents allow, and our own, and checks the answers."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from processes import ROOT, Server

SEED = ROOT / "tests" / "data" / "seed"
CHECKS = "not_a_server_error,content_type_conformance,response_headers_conformance,response_schema_conformance"


def schemathesis(document: Path, url: str, *options: str) -> None:
    """Run it on a document; what it found is the failure's message."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", url, "--checks", CHECKS]
    steady = ["--seed", "1", "--workers", "2", "--no-color", "--generation-database", "none"]
    done = subprocess.run(
        [*command, *steady, *options], capture_output=True, text=True, cwd=document.parent, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", ["kiapi-ltx2.openapi.json", "kiapi-common.openapi.json"])
def test_the_server_answers_as_the_published_document_says(fake_server: Server, name: str, tmp_path: Path) -> None:
    document = tmp_path / name
    document.write_bytes((SEED / name).read_bytes())
    schemathesis(document, fake_server.url, "--phases", "examples,coverage,fuzzing", "--max-examples", "25")


def test_the_server_answers_as_our_own_document_says(fake_server: Server, tmp_path: Path) -> None:
    document = tmp_path / "ours.json"
    document.write_text(json.dumps(httpx.get(fake_server.url + "/openapi.json").json()))
    checks = f"{CHECKS},status_code_conformance"
    schemathesis(
        document, fake_server.url, "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "-c", checks
    )
