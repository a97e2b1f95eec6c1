"""The operator's content checker: what it is shown, and that nothing but its True lets a clip out."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ltx2.checker import CheckedEngine
from ltx2.engine import CancelFlag, Clip
from ltx2.errors import Canceled, ContentRefused, Internal, InvalidRequest, LTX2Error, NotReady
from ltx2.fake import FakeEngine
from ltx2.media.stills import frames
from ltx2.request import GenerationRequest, Output
from ltx2.settings import Settings
from ltx2.studio.process import ENGINES, ProcessEngine

CHECKER = """
import time

import numpy as np

seen = []

def remember(pictures):
    seen.extend(np.asarray(picture) for picture in pictures)
    return True

def first_only(pictures):
    seen.append(np.asarray(next(pictures)))
    return True

def no(pictures):
    return False

def silent(pictures):
    pass

def number(pictures):
    return 1

def broken(pictures):
    raise KeyError("a secret")

def slow(pictures):
    time.sleep(0.05)
    return True

def exits(pictures):
    raise SystemExit("a secret")

def greedy(pictures):
    seen.append(pictures)
    next(pictures)
    return True

number_of_pictures = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An operator's module, fresh for each test."""
    (tmp_path / "operators.py").write_text(CHECKER)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("operators")
    del sys.modules["operators"]


def make(check: str = "full", **fields: Any) -> GenerationRequest:
    given = {"prompt": "x", "width": 64, "height": 64, "num_frames": 30, "fps": 10.0, "seed": 1}
    return GenerationRequest(**given | {"content_check": check} | fields)


def generate(folder: Path, function: str, request: GenerationRequest) -> Clip:
    settings = Settings(data_dir=folder / "data", content_checker=f"operators:{function}")
    engine = CheckedEngine(FakeEngine(settings), settings)
    return engine.generate(request, {}, lambda _progress: None, CancelFlag())


@pytest.mark.parametrize(("check", "shown"), [("full", [*range(30)]), ("fast", [0, 5, 10, 15, 20, 25, 29])])
def test_it_is_shown_all_pictures_or_two_a_second_and_the_last(
    module: Any, tmp_path: Path, check: str, shown: list[int]
) -> None:
    clip = generate(tmp_path, "remember", make(check))
    everything = [np.asarray(picture) for picture in frames(clip.path)]
    # the card's square moves, so that each is known by its place
    assert not any(np.array_equal(one, other) for one, other in itertools.pairwise(everything))
    for index, picture in zip(shown, module.seen, strict=True):
        assert picture.shape == (64, 64, 3)
        assert np.array_equal(picture, everything[index])


def test_two_a_second_are_so_in_a_gif_that_leaves_frames_out(module: Any, tmp_path: Path) -> None:
    generate(tmp_path, "remember", make("fast", fps=120.0, num_frames=180, output=Output(format="gif")))
    assert len(module.seen) == 4  # of 1.5 seconds: at 0, 0.5 and 1, and the last


def test_who_wants_no_check_is_not_checked(module: Any, tmp_path: Path) -> None:
    clip = generate(tmp_path, "no", make("none"))
    assert clip.path.is_file()
    assert module.seen == []
    assert "checking" not in clip.seconds


def test_the_check_is_a_part_of_what_a_clip_takes(module: Any, tmp_path: Path) -> None:
    assert module
    clip = generate(tmp_path, "slow", make())
    assert clip.seconds["checking"] >= 0.05
    assert clip.total_seconds >= 0.05 + clip.seconds["denoising"]


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("no", ContentRefused, "does not let"),
        ("silent", Internal, "gave no answer"),
        ("number", Internal, "gave no answer"),
        ("broken", Internal, "failed"),
        ("exits", Internal, "failed"),  # and the process with the model goes on
    ],
)
def test_nothing_but_true_lets_a_clip_out(
    module: Any, tmp_path: Path, function: str, error: type[LTX2Error], words: str
) -> None:
    assert module
    with pytest.raises(error, match=words) as caught:
        generate(tmp_path, function, make())
    assert "secret" not in str(caught.value)
    assert not [*(tmp_path / "data").rglob("*.mp4")]


def test_a_checker_that_keeps_the_pictures_keeps_no_file_open(module: Any, tmp_path: Path) -> None:
    clip = generate(tmp_path, "greedy", make())
    assert clip.path.is_file()
    assert [*module.seen[0]] == []
    assert clip.path not in [Path(file.path) for file in psutil.Process().open_files()]


def test_a_cancel_ends_the_check_too(module: Any, tmp_path: Path) -> None:
    assert module
    settings = Settings(data_dir=tmp_path / "data", content_checker="operators:remember")
    engine = CheckedEngine(FakeEngine(settings), settings)
    flag = CancelFlag()

    def on_progress(progress: Any) -> None:
        if progress.phase == "muxing":
            # the last question of the engine is before it: what is left is the check
            module.remember.__globals__["np"] = _Cancelling(flag)

    with pytest.raises(Canceled):
        engine.generate(make(), {}, on_progress, flag)
    assert not [*(tmp_path / "data").rglob("*.mp4")]


class _Cancelling:
    """Stands where the checker has numpy: the first picture it looks at, the caller cancels."""

    def __init__(self, flag: CancelFlag) -> None:
        self._flag = flag

    def asarray(self, picture: Any) -> Any:
        self._flag.set()
        return np.asarray(picture)


@pytest.mark.parametrize("name", ["nowhere:f", "operators:nothing", "operators:number_of_pictures"])
def test_a_checker_that_is_not_there_keeps_the_model_from_being_used(module: Any, tmp_path: Path, name: str) -> None:
    assert module
    settings = Settings(data_dir=tmp_path, content_checker=name)
    with pytest.raises(NotReady, match="content checker"):
        CheckedEngine(FakeEngine(settings), settings).load()


def test_it_is_asked_in_the_process_of_the_model(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = Settings(data_dir=tmp_path / "data", content_checker="operators:no")
    engine = ProcessEngine(settings, ENGINES["fake"])
    try:
        engine.load()
        assert engine.generate(make("none"), {}, lambda _progress: None, CancelFlag()).path.is_file()
        with pytest.raises(ContentRefused):
            engine.generate(make("fast"), {}, lambda _progress: None, CancelFlag())
    finally:
        engine.close()
    assert module.seen == []


def test_a_check_nobody_can_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no content checker"):
        make().check_limits(Settings(data_dir=tmp_path))
    configured = Settings(data_dir=tmp_path, content_checker="a:b")
    make().check_limits(configured)
    with pytest.raises(InvalidRequest, match="sounds cannot be checked"):
        make(output=Output(format="wav")).check_limits(configured)
