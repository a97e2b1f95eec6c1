"""What a worker looks at before it takes jobs."""

from pathlib import Path

import pytest

from ltx2.errors import NotReady
from ltx2.serverless.fitness import Unfit, checks
from ltx2.settings import Settings


def test_a_worker_that_can_work_passes_and_leaves_nothing(tmp_path: Path) -> None:
    for check in checks(Settings(data_dir=tmp_path), None):
        check()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_names_say_what_is_looked_at(tmp_path: Path) -> None:
    names = [check.__name__ for check in checks(Settings(data_dir=tmp_path), None)]
    assert names == ["clips_can_be_written", "h264_can_be_encoded", "model_was_loaded"]


def test_a_folder_that_takes_no_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("this is no folder")
    look, *_ = checks(Settings(data_dir=tmp_path / "data"), None)
    with pytest.raises(Unfit, match=r"cannot be written: Not a directory\. Set LTX2_DATA_DIR"):
        look()


def test_a_full_disk_is_told_with_the_remedy(tmp_path: Path) -> None:
    look, *_ = checks(Settings(data_dir=tmp_path), None, room=10**18)
    with pytest.raises(Unfit, match="GB are free where clips are written, and 1000000000"):
        look()


def test_only_what_another_machine_may_mend_ends_the_worker(tmp_path: Path) -> None:
    *_, look = checks(Settings(data_dir=tmp_path), NotReady("no model is called so", hint="name another"))
    look()
    for failure in (RuntimeError("CUDA error: no kernel image\nand more"), OSError(5, "Input/output error")):
        *_, look = checks(Settings(data_dir=tmp_path), failure)
        with pytest.raises(Unfit, match=f"the model was not loaded: {type(failure).__name__}: ") as caught:
            look()
        assert "and more" not in str(caught.value)
    *_, look = checks(Settings(data_dir=tmp_path), ValueError("x" * 5000))
    with pytest.raises(Unfit) as caught:
        look()
    assert len(f"Unfit: {caught.value}") <= 256  # what RunPod is told of it
