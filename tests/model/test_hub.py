"""What is fetched from the hub: by real clients in processes of their own, from a server that speaks like it."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ltx2.errors import NotReady
from ltx2.model import hub

ROOT = Path(__file__).parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "Lightricks/LTX-2.5-Diffusers"
SECRET = "hf_secretsecretsecret"
BIG = 24_000_000
"""Bytes of a file that is cut in its middle. Clients write what they have in blocks of ten million."""


@dataclass
class Hub:
    """Repositories as ``{name: {path: content}}``, what goes wrong with them, and what was asked for."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    broken: bool = False
    cuts: int = 0
    """How often a large file is still to be cut."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Name and Range of each file that was sent."""
    address: str = ""

    def fetched(self) -> set[str]:
        return {name for name, _ in self.asked}

    def ranges(self) -> list[str | None]:
        """The part that was asked for of each file of weights, one after the other."""
        return [wanted for name, wanted in self.asked if name.endswith(".safetensors")]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.hub.broken:
            self.fail(500)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main|/tree/\w+)?", path):
            self.describe(found[1], is_tree=(found[2] or "").startswith("/tree"))
        elif found := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self.give(found[1], found[2])
        else:
            self.fail(404)

    def describe(self, repository: str, *, is_tree: bool) -> None:
        files = self.server.hub.repositories.get(repository)
        if files is None:
            self.fail(401, "RepoNotFound")
        elif is_tree:
            self.send([{"type": "file", "path": name, "size": len(files[name]), "oid": digest(name)} for name in files])
        else:
            self.send({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})

    def give(self, repository: str, name: str) -> None:
        hub = self.server.hub
        if repository in hub.gated:
            self.fail(403, "GatedRepo")
            return
        content = hub.repositories[repository][name]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{digest(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub.asked.append((name, wanted))
        is_cut = len(content) == BIG and hub.cuts > 0
        self.wfile.write(content[start : BIG // 2] if is_cut else content[start:])
        if is_cut:
            hub.cuts -= 1
            self.close_connection = True

    def send(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, code: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"see {self.server.hub.address}/?signature=SIGNED")
        self.send_header("Content-Length", "0")
        self.end_headers()


def digest(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def part(folder: str, *shards: str, is_transformers: bool = False) -> dict[str, bytes]:
    stem = "model" if is_transformers else "diffusion_pytorch_model"
    files = {f"{folder}/config.json": b'{"architectures": ["G"]}' if is_transformers else b"{}"}
    if shards:
        index = {"weight_map": dict.fromkeys(shards) | {name: name for name in shards}}
        files[f"{folder}/{stem}.safetensors.index.json"] = json.dumps(index).encode()
    return files | {f"{folder}/{name}": b"weights" for name in shards or (f"{stem}.safetensors",)}


def published() -> dict[str, bytes]:
    """What the repository of LTX-2.5 holds, left-overs included; each file next to nothing."""
    files = {"model_index.json": b"{}", "README.md": b"read me", "tokenizer/tokenizer_config.json": b"{}"}
    files["processor/chat_template.jinja"] = b"{{ messages }}"
    for name in ("connectors", "vae", "audio_vae", "vocoder", "duration_head", "diffusion_decoder", "latent_upsampler"):
        files |= part(name)
    files |= part("text_encoder", is_transformers=True) | part("prompt_enhancer", is_transformers=True)
    files |= part("transformer", "diffusion_pytorch_model-00001-of-00002.safetensors", "b.safetensors")
    files |= part("transformer_full")
    files["text_encoder/diffusion_pytorch_model.safetensors"] = b"left over"
    files["transformer/diffusion_pytorch_model-00001-of-00001.safetensors"] = b"left over"
    files["vae/diffusion_pytorch_model.safetensors"] = b"x" * BIG
    return files


@pytest.fixture
def fake() -> Iterator[Hub]:
    hub = Hub({REPOSITORY: published()})
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


@dataclass
class Client:
    """Runs code with a hub cache of its own: huggingface_hub reads its environment when it is imported."""

    home: Path
    hub: Hub

    def start(self, code: str, **environment: str) -> subprocess.Popen[str]:
        program = (
            "import logging; logging.basicConfig(level='INFO')\n"
            "from ltx2.errors import NotReady\n"
            f"try:\n    {code}\nexcept NotReady as error:\n    print('refused:', error)"
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LTX2_"))}
        settings = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.address, "HF_HUB_DISABLE_XET": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=kept | settings | {"LTX2_MODELS_DIR": str(self.home / "volume")} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, **environment: str) -> str:
        """What the code printed, or the refusal it raised. Neither that nor the log gives anything away."""
        process = self.start(code, **environment)
        output, log = process.communicate(timeout=120)
        assert process.returncode == 0, log
        assert SECRET not in output + log
        assert "SIGNED" not in output + log
        return output.strip()

    def fetch(self, *patterns: str, repository: str = REPOSITORY, **environment: str) -> str:
        code = f"from ltx2.model.hub import fetch; print(fetch({repository!r}, {list(patterns)!r}))"
        return self.run(code, **environment)

    def locate(self, model: str, **environment: str) -> str:
        code = "from ltx2.settings import load_settings; from ltx2.model.locate import locate; "
        return self.run(code + "print(locate(load_settings()))", LTX2_MODEL=model, **environment)


@pytest.fixture
def client(tmp_path: Path, fake: Hub) -> Client:
    return Client(tmp_path / "home", fake)


def test_a_model_is_fetched_without_what_it_does_not_need(client: Client, fake: Hub) -> None:
    fake.repositories["Lightricks/LTX-2.5"] = {"loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors": b"lora"}
    found = client.locate("ltx-2.5-distilled")
    assert "found_in='the hub'" in found
    assert "transformer='transformer'" in found
    assert "latent_upsampler" in found
    unneeded = ("README", "prompt_enhancer", "transformer_full", "00001-of-00001", "text_encoder/diffusion", "loras")
    assert not {name for name in fake.fetched() for word in unneeded if word in name}
    assert "processor/chat_template.jinja" in fake.fetched()
    fake.asked.clear()
    assert "found_in='the local hub cache'" in client.locate("ltx-2.5-distilled", HF_HUB_OFFLINE="1")
    assert "found_in='the hub'" in client.locate("ltx-2.5")
    fetched = {name for name in fake.fetched() if name.endswith(".safetensors")}
    assert fetched == {
        "transformer_full/diffusion_pytorch_model.safetensors",
        "loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors",
    }


def test_a_cut_connection_is_taken_up_again(client: Client, fake: Hub) -> None:
    fake.cuts = 1
    snapshot = Path(client.fetch("vae/*"))
    assert (snapshot / "vae/diffusion_pytorch_model.safetensors").stat().st_size == BIG
    first, second = fake.ranges()
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= BIG // 2


def test_what_a_killed_process_has_whole_is_kept(client: Client, fake: Hub) -> None:
    client.fetch("connectors/*")
    fake.cuts = 1000
    with client.start(f"from ltx2.model.hub import fetch; fetch({REPOSITORY!r}, ['vae/*'])") as process:
        deadline = time.monotonic() + 60
        # files come in any order: the small one is whole when the large one is begun, or what is asked below differs
        while not (
            any(client.home.rglob("snapshots/*/vae/config.json"))
            and (begun := [file for file in client.home.rglob("*.incomplete") if file.stat().st_size])
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    assert not list(client.home.rglob("snapshots/*/vae/*.safetensors"))
    fake.cuts = 0
    fake.asked.clear()
    client.fetch("vae/*", "connectors/*")
    assert fake.fetched() == {"vae/diffusion_pytorch_model.safetensors"}
    # what it had begun goes when no one can be writing to it any more
    assert begun[0].exists()
    os.utime(begun[0], (0, 0))
    client.fetch("vae/*")
    assert not begun[0].exists()


def test_a_gated_repository_says_what_to_do(client: Client, fake: Hub) -> None:
    fake.gated.add(REPOSITORY)
    said = client.fetch("vae/*")
    assert said.startswith(f"refused: {REPOSITORY} is gated: it is not given without a token")
    assert f"accept its licence on https://huggingface.co/{REPOSITORY}" in said
    assert "the account of HF_TOKEN has not been granted access" in client.fetch("vae/*", HF_TOKEN=SECRET)


def test_each_failure_has_a_message_of_its_own(client: Client, fake: Hub) -> None:
    said = client.fetch("*", repository="org/none")
    assert said.startswith("refused: there is no hub repository org/none, or it is private")
    assert "HF_TOKEN" in said
    fake.broken = True
    assert client.fetch("*").startswith(f"refused: the hub answered 500 for {REPOSITORY}")
    fake.broken = False
    nowhere = client.fetch("*", HF_ENDPOINT=f"http://user:{SECRET}@127.0.0.1:9")
    assert nowhere.startswith(f"refused: {REPOSITORY} could not be fetched: the connection to the hub failed (Connect")


def test_a_full_disk_is_told_from_a_cut_connection() -> None:
    with pytest.raises(NotReady, match="the disk is full") as caught, hub._explained("org/name"):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/secret")
    assert "HF_HOME" in str(caught.value)
    assert "/cache" not in str(caught.value)
    with pytest.raises(NotReady, match="could not be written"), hub._explained("org/name"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_repository_of_original_files_asks_for_one_of_them(client: Client, fake: Hub) -> None:
    files = {"ltx-2.3-22b-dev.safetensors": b"a", "ltx-2.3-22b-distilled-1.1.safetensors": b"b"}
    fake.repositories["Lightricks/LTX-2.3"] = files | {"ltx-2.3-spatial-upscaler-x2-1.1.safetensors": b"c"}
    said = client.locate("Lightricks/LTX-2.3")
    assert said.startswith("refused: Lightricks/LTX-2.3 has no model_index.json, and 2 files of weights")
    assert all(name in said for name in files)
    assert not fake.asked
    # nothing but the one named is fetched; that it is no checkpoint shows when it is there
    said = client.locate("Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors")
    assert "ltx-2.3-22b-dev.safetensors is not a safetensors file" in said
    assert fake.fetched() == {"ltx-2.3-22b-dev.safetensors"}


@pytest.mark.parametrize("repository", [REPOSITORY, "org/name"])
def test_the_dev_transformer_is_fetched_when_it_is_asked_for(client: Client, fake: Hub, repository: str) -> None:
    fake.repositories[repository] = published()
    said = client.locate(repository, LTX2_RECIPE="dev")
    assert "transformer='transformer_full'" in said
    assert "trained='dev'" in said
    assert not [name for name in fake.fetched() if name.startswith("transformer/")]
    assert "transformer='transformer'" in client.locate(repository, LTX2_RECIPE="distilled")
    assert [name for name in fake.fetched() if name.startswith("transformer/")]


@pytest.mark.parametrize("model", ["ltx-2.5-distilled", "org/distilled"])
@pytest.mark.parametrize("part", ["diffusion_decoder", "latent_upsampler"])
def test_an_optional_part_that_was_begun_is_fetched(client: Client, fake: Hub, model: str, part: str) -> None:
    fake.repositories["org/distilled"] = published()
    client.locate(model)
    (weights,) = client.home.rglob(f"snapshots/*/{part}/*.safetensors")
    weights.unlink()
    fake.asked.clear()
    assert "found_in='the hub'" in client.locate(model)
    assert weights.exists()


def test_a_text_encoder_of_ones_own_is_not_fetched(client: Client, fake: Hub, tmp_path: Path) -> None:
    mine = tmp_path / "gemma"
    mine.mkdir()
    assert "found_in='the hub'" in client.locate("ltx-2.5-distilled", LTX2_TEXT_ENCODER=str(mine))
    assert not [name for name in fake.fetched() if name.startswith("text_encoder/")]
    assert "tokenizer/tokenizer_config.json" in fake.fetched()
