"""Files of weights: what is refused, and that a module gets exactly what is in them."""

import json
import logging
import zipfile
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from ltx2.errors import NotReady
from ltx2.model.weights import Stored, check, fill, open_weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, path, {"config": '{"x": 1}'}
    )
    return path


def test_a_header_is_read(file: Path) -> None:
    weights = open_weights(file)
    assert weights.tensors == {"a": Stored("F32", (2, 3)), "b": Stored("BF16", (2,))}
    assert weights.tensors["a"].numel == 6
    assert (weights.json("config"), weights.json("absent")) == ({"x": 1}, {})
    with weights.opened() as read:
        assert torch.equal(read("a"), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("content", ["{", "[]", '{"a":' * 100_000, '{"a": 1' + 5000 * "0" + "}"])
def test_metadata_that_is_no_object(tmp_path: Path, content: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"config": content})
    with pytest.raises(NotReady, match=r"a\.safetensors is damaged: its 'config' metadata is not"):
        open_weights(tmp_path / "a.safetensors").json("config")


def test_folders_are_for_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(NotReady, match=r"there is no file absent\.safetensors") as caught,
    ):
        open_weights(tmp_path / "absent.safetensors")
    assert str(tmp_path) in caplog.text
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("bytes_", [1, 100, -4])
def test_a_file_that_is_cut_short(file: Path, bytes_: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: bytes_ if bytes_ < 0 else 8 + bytes_])
    with pytest.raises(
        NotReady, match=r"model\.safetensors is damaged: it has \d+ bytes where its header promises \d+"
    ):
        open_weights(file)


def test_a_file_that_is_too_long(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(NotReady, match="is damaged"):
        open_weights(file)


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.PT", "model.safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle(tmp_path: Path, name: str, legacy: bool) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(NotReady, match=f"{name} is a pickle, which could run code; convert it to safetensors"):
        open_weights(tmp_path / name)


def test_a_git_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(NotReady, match=r"model\.safetensors is a git-lfs pointer") as caught:
        open_weights(file)
    assert caught.value.hint == "fetch it with git lfs pull"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"GGUF",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b"{nonsense}",
        b'{"__metadata__": null}',
        b'{"__metadata__": {"config": {}}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a":' * 100_000,
    ],
)
def test_something_else(file: Path, header: bytes) -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header if len(header) > 4 else header)
    with pytest.raises(NotReady, match=r"model\.safetensors is not a safetensors file"):
        open_weights(file)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="or it may not be read"):
        open_weights(tmp_path)


def test_a_file_that_is_gone_when_it_is_read(file: Path) -> None:
    weights = open_weights(file)
    file.unlink()
    with pytest.raises(NotReady, match=r"model\.safetensors could not be read"), weights.opened():
        pass


def test_a_tensor_of_no_known_kind(file: Path) -> None:
    header = json.dumps({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(NotReady, match="could not be read"), open_weights(file).opened() as read:
        read("a")


class Small(nn.Module):
    """With what modules have: parameters, a buffer that is stored, one that is not, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rope", torch.ones(2), persistent=False)


def small() -> Small:
    with init_empty_weights(include_buffers=False):
        return Small()


WEIGHTS: dict[str, Tensor] = {
    "linear.weight": torch.arange(6.0).view(2, 3),
    "linear.bias": torch.ones(2),
    "mean": torch.full((2,), 0.5),
    "count": torch.tensor(7),
}


def test_a_module_is_filled() -> None:
    module = small()
    fill(module, WEIGHTS.items(), torch.bfloat16, source="file")
    assert module.linear.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert module.linear.weight.dtype == module.mean.dtype == torch.bfloat16
    assert (module.count.item(), module.rope.tolist(), module.rope.dtype) == (7, [1, 1], torch.float32)
    assert isinstance(module.linear.weight, nn.Parameter)
    assert module.state_dict().keys() == WEIGHTS.keys()


def test_what_needs_no_cast_is_not_copied() -> None:
    module = small()
    fill(module, WEIGHTS.items(), torch.float32, source="file")
    assert module.linear.weight.data_ptr() == WEIGHTS["linear.weight"].data_ptr()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"more": torch.ones(1)}, "file has weights this server does not understand: more$"),
        ({"rope": torch.ones(2)}, "file has weights this server does not understand: rope$"),
        ({f"more.{i}": torch.ones(1) for i in range(5)}, r"more\.0, more\.1, more\.2 and 2 more$"),
        ({"mean": torch.ones(3)}, r"file has weights of other shapes .*: mean \[3\] instead of \[2\]$"),
        ({"mean": torch.ones(2, dtype=torch.uint8)}, "mean stored as uint8$"),
        ({"mean": None, "linear.bias": None}, r"file lacks weights: linear\.bias, mean$"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor | None], complaint: str) -> None:
    weights = {name: tensor for name, tensor in (WEIGHTS | change).items() if tensor is not None}
    with pytest.raises(NotReady, match=complaint):
        fill(small(), weights.items(), torch.float32, source="file")
    module = small()
    with pytest.raises(NotReady, match=complaint):
        check(module, [(name, tensor.to("meta")) for name, tensor in weights.items()], source="file")
    assert module.linear.weight.is_meta


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(NotReady, match="does not understand: mean"):
        fill(small(), [*WEIGHTS.items(), ("mean", torch.zeros(2))], torch.float32, source="file")


def test_what_is_tied_may_be_missing_and_what_is_done_is_left_alone() -> None:
    module = small()
    fill(module, [("count", torch.tensor(7))], torch.float32, source="file", tied={"mean"}, done={"linear"})
    assert module.linear.weight.is_meta


def test_a_zip_that_is_no_pickle_is_refused_all_the_same(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(NotReady, match="is a pickle"):
        open_weights(file)
