"""The engine in this process: files, progress, cancelling, running out of memory."""

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from saved_models import save

from ltx2.engine import Engine, Progress
from ltx2.errors import Canceled, NotReady, OutOfMemory, UnsupportedMedia
from ltx2.media.encoders import HARDWARE, works
from ltx2.media.probe import probe_video
from ltx2.model.local import LocalEngine
from ltx2.model.tiny import build_tiny
from ltx2.request import AudioTrack, GenerationRequest, Keyframe
from ltx2.settings import Settings


def never() -> bool:
    return False


def ignore(_progress: Progress) -> None:
    pass


def make(**fields: Any) -> GenerationRequest:
    small = {"prompt": "x", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2, "seed": 1}
    return GenerationRequest(**small | fields)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    return LocalEngine(Settings(data_dir=tmp_path_factory.mktemp("engine"), device="cpu"))


def files(engine: LocalEngine) -> list[Path]:
    return sorted(path for path in engine.settings.data_dir.rglob("*") if path.is_file())


def test_it_is_an_engine_and_knows_its_memory(engine: LocalEngine) -> None:
    contract: Engine = engine
    before = LocalEngine(engine.settings).status()
    assert before.loaded == ()
    assert before.budget_gb > 0
    contract.load()
    after = contract.status()
    assert after.loaded == ("tiny",)
    assert 0 < after.resident_gb < 0.1
    assert after.budget_gb == pytest.approx(before.budget_gb)


def test_a_clip_and_its_facts(engine: LocalEngine, data: Path) -> None:
    seen: list[Progress] = []
    request = make(
        keyframes=(Keyframe(image="photo", frame="first"),), audio=AudioTrack(source="speech", start=1.0), fps=24
    )
    media = {"photo": (data / "photo.jpg").read_bytes(), "speech": (data / "speech.mp3").read_bytes()}
    clip = engine.generate(request, media, seen.append, never)
    facts = probe_video(clip.path)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (64, 64, 9, 24)
    assert clip.audio_sample_rate == facts.audio_sample_rate == 44_100
    assert clip.duration_seconds == pytest.approx(9 / 24)
    assert list(dict.fromkeys(progress.phase for progress in seen)) == list(clip.seconds)
    assert list(clip.seconds) == ["loading", "encoding", "denoising", "decoding", "muxing"]
    assert [str(progress) for progress in seen if progress.steps] == ["denoising 0/2", "denoising 1/2", "denoising 2/2"]
    clip.path.unlink()


def test_a_wrong_file_is_refused_by_its_name(engine: LocalEngine) -> None:
    request = make(keyframes=(Keyframe(image="image_start", frame="first"),))
    with pytest.raises(UnsupportedMedia) as caught:
        engine.generate(request, {"image_start": b"no image"}, ignore, never)
    assert caught.value.field == "image_start"


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu")
    settings.work_dir.mkdir()
    old, new = settings.work_dir / ".old.mp4.part", settings.work_dir / "new.mp4"
    for file in (old, new):
        file.write_bytes(b"x")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    LocalEngine(settings).load()
    assert list(settings.work_dir.iterdir()) == [new]


@pytest.mark.parametrize("phase", ["loading", "encoding", "denoising", "decoding", "muxing"])
def test_cancelling_in_any_phase_leaves_no_file_and_the_next_one_works(engine: LocalEngine, phase: str) -> None:
    stop = threading.Event()

    seen: list[str] = []

    def cancel(progress: Progress) -> None:
        seen.append(progress.phase)
        if progress.phase == phase:
            stop.set()

    with pytest.raises(Canceled):
        engine.generate(make(), {}, cancel, stop.is_set)
    assert seen[-1] == phase  # the next one was never begun
    assert files(engine) == []
    clip = engine.generate(make(), {}, ignore, never)
    assert files(engine) == [clip.path]
    clip.path.unlink()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: no")]
)
def test_running_out_of_memory_is_said_and_the_next_one_works(engine: LocalEngine, error: Exception) -> None:
    def exhaust(progress: Progress) -> None:
        if progress.step == 1:
            raise error

    for _ in range(3):
        with pytest.raises(OutOfMemory, match="64x64 with 9 frames") as caught:
            engine.generate(make(), {}, exhaust, never)
        assert caught.value.hint
        assert caught.value.__cause__ is None  # it would hold on to the tensors
        assert caught.value.__context__ is None
    with pytest.raises(OutOfMemory) as caught:
        engine.generate(make(width=512, height=512, num_frames=49), {}, exhaust, never)
    hint = str(caught.value.hint)
    said = re.fullmatch(r"(\d+) frames at 512x512 or 49 frames at 256x256 should fit", hint)
    assert said, hint
    assert int(said.group(1)) in range(1, 49, 8)
    clip = engine.generate(make(), {}, ignore, never)
    clip.path.unlink()
    assert files(engine) == []


def test_another_runtime_error_is_not_taken_for_that(engine: LocalEngine) -> None:
    def fail(progress: Progress) -> None:
        if progress.step == 1:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        engine.generate(make(), {}, fail, never)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    engine = LocalEngine(Settings(data_dir=tmp_path / "file", device="cpu"))
    with pytest.raises(NotReady, match="Not a directory") as caught:
        engine.load()
    assert "LTX2_DATA_DIR" in str(caught.value.hint)
    assert engine.status().loaded == ()


@pytest.mark.parametrize("name", ["webm", "gif"])
def test_other_formats(engine: LocalEngine, name: str) -> None:
    clip = engine.generate(make(output={"format": name, "quality": 90}), {}, ignore, never)
    assert clip.path.suffix == f".{name}"
    facts = probe_video(clip.path)
    assert (facts.width, facts.height, facts.num_frames) == (64, 64, 9)
    assert clip.audio_sample_rate == facts.audio_sample_rate == (48_000 if name == "webm" else None)
    assert facts.seconds == pytest.approx(9 / 25, abs=0.002)
    clip.path.unlink()


def test_the_sound_alone(engine: LocalEngine) -> None:
    seen: list[Progress] = []
    clip = engine.generate(make(output={"format": "flac"}), {}, seen.append, never)
    assert (clip.path.suffix, clip.width, clip.height, clip.num_frames) == (".flac", 64, 64, 9)
    samples, rate = soundfile.read(clip.path, always_2d=True)
    assert (rate, samples.shape) == (clip.audio_sample_rate, (round(9 / 25 * 24_000), 2))
    assert np.abs(samples).max() > 0.001
    assert [progress.phase for progress in seen][-2:] == ["decoding", "muxing"]
    clip.path.unlink()


def test_an_encoder_that_does_not_work_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    broken = next(name for name, encoder in HARDWARE.items() if not works(encoder))
    engine = LocalEngine(Settings(data_dir=tmp_path, device="cpu", video_encoder=broken))
    with pytest.raises(NotReady, match=broken) as caught:
        engine.load()
    assert "LTX2_VIDEO_ENCODER" in str(caught.value.hint)
    assert engine.status().loaded == ()


def test_a_silent_film_without_sound_when_none_is_wanted(engine: LocalEngine) -> None:
    clip = engine.generate(make(include_audio=False), {}, ignore, never)
    assert clip.audio_sample_rate is None
    assert probe_video(clip.path).audio_codec is None
    clip.path.unlink()


def test_a_silent_model_is_asked_twice_and_a_normal_one_once(engine: LocalEngine, tmp_path: Path) -> None:
    mute = build_tiny("tiny", torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for weights in mute.vocoder.conv_out.parameters():
            weights.zero_()
    folder = str(save(mute, tmp_path / "mute-distilled"))
    for asked, times in (
        (engine, 1),
        (LocalEngine(Settings(data_dir=tmp_path / "data", device="cpu", model=folder)), 2),
    ):
        seen: list[Progress] = []
        clip = asked.generate(make(retry_if=("silent", "frozen")), {}, seen.append, never)
        clip.path.unlink()
        assert clip.quality is not None
        assert [progress.phase for progress in seen].count("muxing") == clip.seed == times
        assert clip.retried_for == clip.quality.flaws == ("silent",)[: times - 1]
        assert ("The sound is silent." in clip.warnings) == (times == 2)
        assert files(asked) == []
