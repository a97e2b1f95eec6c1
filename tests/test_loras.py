"""The names of LoRAs: what they may mean, and a server that is asked for them."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from small_loras import write_lora

from ltx2.errors import InvalidRequest
from ltx2.loras import check_loras, find_loras, lora_files
from ltx2.request import GenerationRequest, LoraChoice
from ltx2.settings import Settings
from processes import Server

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1, "seed": 5}


def ask(*names: str) -> tuple[LoraChoice, ...]:
    return tuple(LoraChoice(name=name) for name in names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder, elsewhere = tmp_path / "loras", tmp_path / "elsewhere"
    (folder / "folder.safetensors").mkdir(parents=True)
    elsewhere.mkdir()
    for path in (
        *(folder / name for name in ("b look.safetensors", "a.safetensors", "notes.txt", "old.ckpt")),
        *(folder / name for name in (".hidden.safetensors", ".safetensors", "naïve.safetensors", "a+b.safetensors")),
        folder / "folder.safetensors" / "inner.safetensors",
        elsewhere / "c.safetensors",
    ):
        path.write_bytes(b"")
    (folder / "linked.safetensors").symlink_to(elsewhere / "c.safetensors")
    (folder / "gone.safetensors").symlink_to(elsewhere / "gone.safetensors")
    return folder


def test_there_are_the_files_that_a_request_can_name(folder: Path) -> None:
    assert [*lora_files(folder)] == ["a", "b look", "linked"]
    found = find_loras(ask("linked", "a.safetensors", "b look"), folder)
    assert [path.name for path in found] == ["linked.safetensors", "a.safetensors", "b look.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["d", "A", "old", "old.ckpt", "notes.txt", "gone", "folder", "inner", "naive", "a.", "a.safetensors.safetensors"],
)
def test_an_unknown_name_is_refused_with_those_there_are(folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        find_loras(ask("a", name), folder)
    assert refused.value.field == "loras[1].name"
    assert refused.value.hint == "there are a, b look, linked"


@pytest.mark.parametrize("name", ["../elsewhere/c", "..", "folder.safetensors/inner", ".hidden", "", "a\x00", "/a"])
def test_no_name_leaves_the_folder(folder: Path, name: str) -> None:
    # no request has such a name; were there one, it would be none
    with pytest.raises(InvalidRequest, match="no LoRA of this name"):
        find_loras((LoraChoice.model_construct(name=name, scale=1.0),), folder)


def test_a_hint_lists_the_first_twenty(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"lora-{number:02}.safetensors").touch()
    with pytest.raises(InvalidRequest) as refused:
        find_loras(ask("x"), tmp_path)
    assert refused.value.hint == f"there are {', '.join(f'lora-{number:02}' for number in range(20))} and 5 more"


def test_two_names_of_one_file_are_one_too_many(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="named twice") as refused:
        find_loras(ask("a", "b look", "a.safetensors"), folder)
    assert refused.value.field == "loras[2].name"


def test_names_are_looked_up_where_the_clip_is_made(folder: Path) -> None:
    request = GenerationRequest(prompt="x", loras=ask("d"))
    with pytest.raises(InvalidRequest, match="no LoRA of this name"):
        check_loras(request, Settings(loras_dir=folder))
    check_loras(request, Settings(loras_dir=folder, engine="runpod"))
    check_loras(GenerationRequest(prompt="x"), Settings())
    # the actors of a cluster have this server's settings, the workers of an endpoint their own
    for engine in ("local", "ray"):
        with pytest.raises(InvalidRequest, match="this server has no LoRAs"):
            request.check_limits(Settings(engine=engine))
    request.check_limits(Settings(engine="runpod"))


def pictures(server: Server, **fields: Any) -> np.ndarray:
    """The frames of a clip, ``[n, h, w, 3]``."""
    answer = httpx.post(server.url + "/generate", json=SMALL | fields, timeout=120)
    assert answer.status_code == 200, answer.text
    with av.open(BytesIO(base64.b64decode(answer.json()["video"].split(",")[1]))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def refusal(server: Server, *loras: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(server.url + "/generate", json=SMALL | {"loras": loras}, timeout=120)
    assert answer.status_code == 422
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_a_server_puts_them_on_and_takes_them_off(server: Server, tiny: Callable[[str], Any]) -> None:
    folder = server.data_dir.parent / "loras"
    for layout, seed in (("original", 1), ("diffusers", 2)):
        write_lora(folder / f"{layout}.safetensors", tiny("tiny").transformer, layout=layout, seed=seed)
    write_lora(folder / "other.safetensors", tiny("tiny-2.3").transformer, metadata={"model_version": "2.3"})
    before = pictures(server)
    one = pictures(server, loras=[{"name": "original"}])
    both = pictures(server, loras=[{"name": "original"}, {"name": "diffusers.safetensors", "scale": -0.7}])
    assert np.array_equal(pictures(server), before)
    assert not np.array_equal(one, before)
    assert not np.array_equal(both, before)
    assert not np.array_equal(one, both)

    unknown = refusal(server, {"name": "original"}, {"name": "nowhere"})
    assert (unknown["code"], unknown["field"]) == ("invalid_request", "loras[1].name")
    assert unknown["hint"] == "there are diffusers, original, other"
    # which only the model can tell
    misfit = refusal(server, {"name": "other"})
    assert (misfit["code"], misfit["field"]) == ("invalid_request", "loras[0].name")
    assert "belongs to another LTX-2" in misfit["message"]
    assert str(folder) not in str(misfit)
    outside = refusal(server, {"name": "../original"})
    assert outside["field"] == "loras[0].name"
    assert "not a path" in outside["message"]
