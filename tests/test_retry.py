"""A flawed clip is made once more, with another seed: exactly once, and its result says so."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ltx2.checker import CheckedEngine
from ltx2.engine import CancelFlag, Clip, Progress
from ltx2.errors import Canceled
from ltx2.fake import WARNING, FakeEngine
from ltx2.payload import view
from ltx2.request import AudioTrack, GenerationRequest, Retake
from ltx2.settings import Settings

LAST_SEED = 2**63 - 1
SILENT, FROZEN = "The sound is silent.", "The picture does not move."


def make(prompt: str, *retry_if: str, **fields: Any) -> GenerationRequest:
    small = {"width": 64, "height": 64, "num_frames": 9, "seed": 1, "num_inference_steps": 2}
    return GenerationRequest(**small | {"prompt": prompt, "retry_if": retry_if} | fields)


COUNTING = """
seen = []

def check(pictures):
    seen.append(len(list(pictures)))
    return True
"""


class Run:
    """A clip of the fake engine, and how often it was made."""

    def __init__(self, folder: Path, request: GenerationRequest, media: dict[str, bytes] | None = None) -> None:
        self.progress: list[Progress] = []
        engine = FakeEngine(Settings(data_dir=folder))
        self.clip: Clip = engine.generate(request, media or {}, self.progress.append, CancelFlag())
        self.answer = view(request, self.clip)
        # whatever was made before has left no file
        assert list(engine.settings.work_dir.iterdir()) == [self.clip.path]
        self.bytes = self.clip.path.read_bytes()
        self.clip.path.unlink()

    @property
    def times(self) -> int:
        return self.progress.count(Progress("denoising", 2, 2))


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("silent", "With seed 1 the clip is silent, so it was made again with seed 2."),
        ("frozen", "With seed 1 the clip does not move, so it was made again with seed 2."),
    ],
)
def test_a_flawed_clip_is_made_once_more_with_another_seed(tmp_path: Path, flaw: str, said: str) -> None:
    run = Run(tmp_path, make(f"flaw={flaw}@1", flaw))
    assert run.times == 2
    assert (run.clip.seed, run.clip.retried_for, run.clip.warnings) == (2, (flaw,), (WARNING, said))
    assert (run.answer["seed"], run.answer["retried_for"]) == (2, [flaw])
    phases = [progress.phase for progress in run.progress if not progress.steps]
    assert phases == ["loading", "encoding", "decoding", "muxing"] * 2
    again = Run(tmp_path, make(f"flaw={flaw}@1", flaw, seed=run.clip.seed))
    assert (again.times, again.bytes) == (1, run.bytes)
    assert again.clip.retried_for == ()


def test_there_is_no_third(tmp_path: Path) -> None:
    run = Run(tmp_path, make("flaw=silent flaw=frozen@1", "frozen", "silent"))
    said = "With seed 1 the clip does not move and is silent, so it was made again with seed 2."
    assert run.times == 2
    assert (run.clip.retried_for, run.clip.warnings) == (("frozen", "silent"), (WARNING, SILENT, said))
    assert run.clip.quality is not None
    assert run.clip.quality.flaws == ("silent",)


@pytest.mark.parametrize(
    ("flaw", "asked", "said"),
    [("silent", (), SILENT), ("silent", ("frozen",), SILENT), ("frozen", ("silent",), FROZEN)],
)
def test_what_nobody_asked_for_is_told_and_not_made_again(
    tmp_path: Path, flaw: str, asked: tuple[str, ...], said: str
) -> None:
    run = Run(tmp_path, make(f"flaw={flaw}", *asked))
    assert (run.times, run.clip.seed, run.clip.retried_for) == (1, 1, ())
    assert run.clip.warnings == (WARNING, said)
    assert run.answer["quality"]["silence" if flaw == "silent" else "frozen_frames"] == 1


@pytest.mark.parametrize("fields", [{}, {"width": 1024}, {"num_frames": 1}, {"output": {"format": "gif"}}])
def test_a_normal_clip_has_nothing_to_be_told(tmp_path: Path, fields: dict[str, Any]) -> None:
    run = Run(tmp_path, make("a cat", "silent", "frozen", **fields))
    assert (run.times, run.clip.warnings, run.answer["retried_for"]) == (1, (WARNING,), [])


def test_without_sound_and_without_pictures_there_is_nothing_to_try_again_for(tmp_path: Path) -> None:
    assert Run(tmp_path, make("flaw=silent", "silent", include_audio=False)).times == 1
    assert Run(tmp_path, make("flaw=frozen", "frozen", output={"format": "wav"})).times == 1
    assert Run(tmp_path, make("flaw=silent", "silent", output={"format": "wav"})).times == 2


def test_what_the_caller_sent_is_no_better_with_another_seed(tmp_path: Path, silence: bytes) -> None:
    followed = Run(tmp_path, make("x", "silent", audio=AudioTrack(source="sound")), {"sound": silence})
    assert (followed.times, followed.clip.warnings) == (1, (WARNING, SILENT))
    both = "flaw=silent flaw=frozen"
    source = {"video": Run(tmp_path, make(both)).bytes}
    for streams, asked in (("picture", "silent"), ("sound", "frozen")):
        retake = {"video": "video", "retake": Retake(start=0, end=1, streams=streams)}
        run = Run(tmp_path, make("x", asked, **retake), source)
        assert (run.times, run.clip.warnings[1:]) == (1, (SILENT if asked == "silent" else FROZEN,))


@pytest.fixture
def silence() -> bytes:
    file = BytesIO()
    soundfile.write(file, np.zeros(16_000), 16_000, format="WAV")
    return file.getvalue()


def test_after_the_last_seed_comes_the_first(tmp_path: Path) -> None:
    assert Run(tmp_path, make(f"flaw=silent@{LAST_SEED}", "silent", seed=LAST_SEED)).clip.seed == 0


def test_a_cancel_between_the_two_leaves_no_file(tmp_path: Path) -> None:
    engine, flag = FakeEngine(Settings(data_dir=tmp_path)), CancelFlag()
    phases: list[str] = []

    def cancel_the_second(progress: Progress) -> None:
        phases.append(progress.phase)
        if phases.count("loading") == 2:
            flag.set()

    with pytest.raises(Canceled):
        engine.generate(make("flaw=silent", "silent"), {}, cancel_the_second, flag)
    assert phases[-2:] == ["muxing", "loading"]
    assert list(engine.settings.work_dir.iterdir()) == []


def test_the_operator_s_checker_sees_only_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Settings(data_dir=tmp_path / "data", content_checker="counting:check")
    engine = CheckedEngine(FakeEngine(settings), settings)
    clip = engine.generate(make("flaw=frozen@1", "frozen", content_check="full"), {}, lambda _: None, CancelFlag())
    import counting

    assert (clip.seed, clip.retried_for, counting.seen) == (2, ("frozen",), [9])
