"""The engine without a model: its clips are real, and it does what the prompt says."""

import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ltx2 import errors
from ltx2.engine import CancelFlag, Clip, Engine, Progress
from ltx2.errors import Canceled, InvalidRequest, LTX2Error, NotReady, OutOfMemory, UnsupportedMedia
from ltx2.fake import FakeEngine, draw_card, tone
from ltx2.media.audio import Waveform, decode_audio
from ltx2.media.probe import probe_video
from ltx2.media.video import write_video
from ltx2.request import AudioTrack, GenerationRequest, Keyframe, Output
from ltx2.settings import Settings

ROOT = Path(__file__).parent.parent
CODES = sorted(
    kind.code
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, LTX2Error) and kind is not LTX2Error
)


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(Settings(data_dir=tmp_path / "data"))


def make(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a cat", "width": 64, "height": 64, "num_frames": 9, "seed": 1} | fields)


def generate(engine: FakeEngine, request: GenerationRequest, media: Mapping[str, bytes] | None = None) -> Clip:
    return engine.generate(request, media or {}, lambda _progress: None, CancelFlag())


def pictures(clip: Clip) -> NDArray[np.uint8]:
    with av.open(str(clip.path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def heard(clip: Clip) -> NDArray[np.float32]:
    return decode_audio(clip.path.read_bytes(), field="clip", max_seconds=60).samples


def files(engine: FakeEngine) -> list[Path]:
    return [path for path in engine.settings.data_dir.rglob("*") if path.is_file()]


def test_it_is_an_engine_and_says_that_it_is_a_fake(engine: FakeEngine) -> None:
    contract: Engine = engine
    before = contract.status()
    assert before.loaded == ()
    assert before.fake
    assert before.budget_gb > 0
    contract.load()
    assert contract.status().loaded == ("fake",)
    contract.close()
    assert contract.status().loaded == ()


@pytest.mark.parametrize(
    ("size", "fps"),
    [((64, 64, 9), 25.0), ((288, 512, 49), 23.976), ((66, 130, 1), 1.0), ((1024, 64, 2), 120.0), ((64, 8192, 2), 24.0)],
)
def test_a_clip_is_what_was_asked_for(engine: FakeEngine, size: tuple[int, int, int], fps: float) -> None:
    width, height, num_frames = size
    clip = generate(engine, make(width=width, height=height, num_frames=num_frames, fps=fps))
    facts = probe_video(clip.path)
    assert (facts.width, facts.height, facts.num_frames) == (clip.width, clip.height, clip.num_frames) == size
    assert facts.fps == clip.fps == make(fps=fps).exact_fps
    assert facts.audio_sample_rate == clip.audio_sample_rate == 48_000
    assert (clip.model, clip.seed, clip.steps, clip.stages) == ("fake", 1, 8, 1)
    assert "test card" in " ".join(clip.warnings)
    assert files(engine) == [clip.path]
    assert clip.path.parent == engine.settings.work_dir


def test_there_is_no_sound_where_none_was_asked_for(engine: FakeEngine, data: Path) -> None:
    request = make(include_audio=False, audio=AudioTrack(source="a"))
    clip = generate(engine, request, {"a": (data / "speech.mp3").read_bytes()})
    assert clip.audio_sample_rate is None
    assert probe_video(clip.path).audio_codec is None


@pytest.mark.parametrize("name", ["mov", "webm", "gif"])
def test_a_card_in_every_format(engine: FakeEngine, name: str) -> None:
    clip = generate(engine, make(output={"format": name, "crf": 10}, width=128))
    facts = probe_video(clip.path)
    assert (clip.path.suffix, facts.width, facts.height, facts.num_frames) == (f".{name}", 128, 64, 9)
    assert clip.audio_sample_rate == facts.audio_sample_rate == (None if name == "gif" else 48_000)
    expected = draw_card(make(width=128)).astype(int)
    assert np.abs(pictures(clip)[0] - expected)[:12].mean() < 16  # above the panel and the square: colour bars


@pytest.mark.parametrize("name", ["wav", "flac", "mp3"])
def test_the_tone_alone(engine: FakeEngine, name: str) -> None:
    clip = generate(engine, make(output={"format": name}, num_frames=50, width=8192, height=8192))
    assert (clip.path.suffix, clip.num_frames, clip.audio_sample_rate) == (f".{name}", 50, 48_000)
    sound = heard(clip)
    assert sound.shape == (1, 96_000)
    assert np.abs(np.fft.rfft(sound[0])).argmax() * 48_000 / 96_000 == pytest.approx(240, abs=1)
    assert clip.seconds["decoding"] + clip.seconds["muxing"] < 1  # no frame of that size was drawn
    assert files(engine) == [clip.path]


def test_the_tone_is_heard_and_its_pitch_is_the_seed_s(engine: FakeEngine) -> None:
    loudest = []
    for seed in (1, 2):
        sound = heard(generate(engine, make(seed=seed, num_frames=50)))[0]
        assert np.sqrt(np.mean(sound**2)) > 0.05
        loudest.append(float(np.abs(np.fft.rfft(sound)).argmax() * 48_000 / len(sound)))
    assert loudest == pytest.approx([240, 260], abs=2)
    assert tone(3, 1.75).samples.shape == (1, 84_000)


def test_the_input_sound_is_heard(engine: FakeEngine, data: Path) -> None:
    speech = (data / "speech.mp3").read_bytes()
    clip = generate(engine, make(num_frames=25, audio=AudioTrack(source="a", start=1.0)), {"a": speech})
    original = decode_audio(speech, field="a", max_seconds=60)
    rate = original.sample_rate
    assert clip.audio_sample_rate == probe_video(clip.path).audio_sample_rate == rate
    expected, got = original.samples[0, rate : 2 * rate], heard(clip)[0, :rate]
    assert np.corrcoef(expected, got[: len(expected)])[0, 1] > 0.9


def test_the_picture_moves(engine: FakeEngine) -> None:
    frames = pictures(generate(engine, make(num_frames=20))).astype(int)
    assert all(np.abs(frames[i] - frames[i - 1]).max() > 50 for i in range(1, len(frames)))


def test_the_same_request_gives_the_same_pictures_and_another_one_others(engine: FakeEngine) -> None:
    first, again, seed, prompt, script, script_too = (
        pictures(generate(engine, make(**changes))).tobytes()
        for changes in ({}, {}, {"seed": 2}, {"prompt": "a dog"}, {"prompt": "猫"}, {"prompt": "犬"})
    )
    assert first == again
    assert len({first, seed, prompt, script, script_too}) == 5


@pytest.mark.parametrize(
    "prompt",
    [
        "\u202eab\u0627\u0644\u200d👨‍👩‍👧‍👦\ufffe",
        "ﷺ" * 100_000,
        "x" * 100_000,
        "a\n\n\tb\r\x01\x7f",
        "a\ud800b",
        "e\u0301" * 50,
    ],
)
def test_any_text_can_be_drawn(prompt: str) -> None:
    drawn = draw_card(GenerationRequest.model_construct(prompt=prompt, width=288, height=512, seed=None))
    assert drawn.shape == (512, 288, 3)
    assert len(np.unique(drawn[140:160].reshape(-1, 3), axis=0)) > 3


def test_images_are_shown_at_their_frames(engine: FakeEngine) -> None:
    file = BytesIO()
    Image.new("RGB", (300, 100), (10, 200, 60)).save(file, "PNG")
    shown = tuple(Keyframe(image="green", frame=frame) for frame in ("first", 5))
    ignored = Keyframe(image="green", frame="last", strength=0.0)
    clip = generate(engine, make(keyframes=(*shown, ignored), output={"crf": 0}), {"green": file.getvalue()})
    is_green = np.abs(pictures(clip)[:, 20:40, 20:40].astype(int) - (10, 200, 60)).max(axis=(1, 2, 3)) < 8
    assert is_green.nonzero()[0].tolist() == [0, 5]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """24 grey frames, brighter by 10 each from 0, and a tone of 1 kHz: a second."""
    path = tmp_path_factory.mktemp("source") / "clip.mp4"
    grey = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 64 * 64 * 3).reshape(24, 64, 64, 3)
    sound = Waveform((0.5 * np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100)).astype(np.float32)[None], 44_100)
    size = {"width": 64, "height": 64, "fps": Fraction(24), "num_frames": 24}
    write_video(path, [grey], audio=sound, crf=10, preset="ultrafast", **size)
    return path.read_bytes()


def changed(engine: FakeEngine, source: bytes, num_frames: int, **fields: Any) -> tuple[list[int | None], list[int]]:
    """Which of the source each frame of a clip is, None for the card; and the loudest pitch of each quarter second."""
    request = make(video="v", fps=24.0, num_frames=num_frames, output={"crf": 5}, **fields)
    clip = generate(engine, request, {"v": source})
    facts = probe_video(clip.path)
    assert (facts.num_frames, facts.fps) == (num_frames, 24)
    frames = pictures(clip)
    shown = [round(frame.mean() / 10) if frame.std() < 5 else None for frame in frames]
    sound = heard(clip)[0, : num_frames * 2000].reshape(-1, 12_000)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(12_000)))
    return shown, [int(round(pitch * 4, -2)) for pitch in spectrum.argmax(axis=1)]


def test_a_retake_keeps_what_is_outside_of_it(engine: FakeEngine, source: bytes) -> None:
    # the tone of seed 4 is 300 Hz
    kept, made = [*range(24)], [*range(6), *[None] * 12, *range(18, 24)]
    retake = {"start": 0.25, "end": 0.75}
    assert changed(engine, source, 24, seed=4, retake=retake) == (made, [1000, 300, 300, 1000])
    assert changed(engine, source, 24, seed=4, retake=retake | {"streams": "picture"}) == (made, [1000] * 4)
    assert changed(engine, source, 24, seed=4, retake=retake | {"streams": "sound"}) == (kept, [1000, 300, 300, 1000])


def test_a_video_goes_on_after_its_end_or_before_its_beginning(engine: FakeEngine, source: bytes) -> None:
    after, before = {"seconds": 0.5}, {"seconds": 0.5, "side": "start"}
    assert changed(engine, source, 36, seed=4, extend=after) == ([*range(24), *[None] * 12], [1000] * 4 + [300] * 2)
    assert changed(engine, source, 36, seed=4, extend=before) == ([*[None] * 12, *range(24)], [300] * 2 + [1000] * 4)


def test_a_video_without_a_sound_stays_silent_where_it_is_kept(engine: FakeEngine) -> None:
    mute = generate(engine, make(include_audio=False, fps=24.0, num_frames=12)).path.read_bytes()
    request = make(video="v", fps=24.0, num_frames=24, extend={"seconds": 0.5}, output={"format": "wav"})
    sound = heard(generate(engine, request, {"v": mute}))
    assert not sound[:, :23_000].any()
    assert np.abs(sound[:, 24_000:]).max() > 0.1
    assert generate(engine, request.model_copy(update={"include_audio": False, "output": Output()}), {"v": mute})


def test_a_sound_to_follow_is_heard_instead_of_the_video_s(engine: FakeEngine, source: bytes, data: Path) -> None:
    speech = (data / "speech.mp3").read_bytes()
    request = make(video="v", fps=24.0, num_frames=36, extend={"seconds": 0.5}, audio=AudioTrack(source="a", start=1.0))
    clip = generate(engine, request, {"v": source, "a": speech})
    original = decode_audio(speech, field="a", max_seconds=60)
    rate = original.sample_rate
    expected, got = original.samples[0, rate : 2 * rate], heard(clip)[0, :rate]
    assert np.corrcoef(expected, got[: len(expected)])[0, 1] > 0.9


def test_images_are_shown_only_where_a_video_is_made_anew(engine: FakeEngine, source: bytes) -> None:
    file = BytesIO()
    Image.new("RGB", (64, 64), (10, 200, 60)).save(file, "PNG")
    images = tuple(Keyframe(image="green", frame=frame) for frame in (2, 30))
    request = make(video="v", fps=24.0, num_frames=36, extend={"seconds": 0.5}, keyframes=images, output={"crf": 0})
    shown = pictures(generate(engine, request, {"v": source, "green": file.getvalue()}))
    is_green = np.abs(shown[:, 20:40, 20:40].astype(int) - (10, 200, 60)).max(axis=(1, 2, 3)) < 8
    assert is_green.nonzero()[0].tolist() == [30]


def test_a_loop_ends_with_its_first_frame(engine: FakeEngine) -> None:
    frames = pictures(generate(engine, make(loop=True, num_frames=20, output={"crf": 0})))
    assert (frames[19] == frames[0]).all()
    assert (frames[18] != frames[0]).any()


def test_a_wrong_file_is_refused_by_its_name(engine: FakeEngine) -> None:
    for request in (
        make(keyframes=(Keyframe(image="x", frame="first"),)),
        make(audio=AudioTrack(source="x")),
        make(video="x", retake={"start": 0, "end": 1}),
    ):
        with pytest.raises(UnsupportedMedia) as caught:
            generate(engine, request, {"x": b"nothing"})
        assert caught.value.field == "x"
    assert files(engine) == []


def test_progress_goes_through_the_phases_step_by_step(engine: FakeEngine) -> None:
    seen: list[Progress] = []
    clip = engine.generate(make(num_inference_steps=2), {}, seen.append, CancelFlag())
    steps = ["denoising 0/2", "denoising 1/2", "denoising 2/2"]
    assert [str(progress) for progress in seen] == ["loading", "encoding", *steps, "decoding", "muxing"]
    assert list(clip.seconds) == ["loading", "encoding", "denoising", "decoding", "muxing"]


@pytest.mark.parametrize("phase", ["loading", "encoding", "denoising 0/8", "denoising 4/8", "decoding", "muxing"])
def test_a_cancelled_generation_leaves_no_file(engine: FakeEngine, phase: str) -> None:
    flag = CancelFlag()

    def cancel(progress: Progress) -> None:
        if str(progress) == phase:
            flag.set()

    with pytest.raises(Canceled):
        engine.generate(make(), {}, cancel, flag)
    assert files(engine) == []


def test_it_takes_its_time_and_cancelling_ends_that_at_once(engine: FakeEngine) -> None:
    started = time.perf_counter()
    clip = generate(engine, make(prompt="a cat, seconds=0.4, please"))
    assert 0.4 <= clip.seconds["denoising"] <= time.perf_counter() - started
    flag = CancelFlag()
    threading.Timer(0.1, flag.set).start()
    started = time.perf_counter()
    with pytest.raises(Canceled):
        engine.generate(make(prompt="seconds=1000000000"), {}, lambda _progress: None, flag)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("code", CODES)
def test_it_fails_with_the_code_the_prompt_names(engine: FakeEngine, code: str) -> None:
    seen: list[str] = []
    with pytest.raises(LTX2Error) as caught:
        engine.generate(
            make(prompt=f"a cat fail={code}."), {}, lambda progress: seen.append(str(progress)), CancelFlag()
        )
    assert caught.value.code == code
    assert seen[-1] == "denoising 4/8"
    assert files(engine) == []


@pytest.mark.parametrize(
    ("what", "error"),
    [("bug", RuntimeError), ("cuda", RuntimeError), ("memory", OutOfMemory), ("systemexit", SystemExit)],
)
def test_it_fails_as_a_model_may(engine: FakeEngine, what: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        generate(engine, make(prompt=f"fail={what}"))
    generate(engine, make())


def test_it_writes_a_prompt_out(engine: FakeEngine) -> None:
    clip = generate(engine, make(enhance_prompt=True))
    assert clip.prompt == "a cat, in detail"
    assert generate(engine, make()).prompt is None
    assert np.array_equal(pictures(clip), pictures(generate(engine, make(prompt="a cat, in detail"))))
    short = FakeEngine(Settings(data_dir=engine.settings.data_dir, max_prompt_chars=6))
    assert generate(short, make(enhance_prompt=True)).prompt == "a cat,"


def test_a_length_that_was_left_open_is_the_usual_one(engine: FakeEngine) -> None:
    assert generate(engine, make(num_frames=None)).num_frames == 49
    late = (Keyframe(image="late", frame=49),)
    with pytest.raises(InvalidRequest) as refused:
        generate(engine, make(num_frames=None, keyframes=late))
    assert refused.value.field == "late"


def test_a_failure_nobody_knows_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate(engine, make(prompt="fail=nonsense"))
    assert caught.value.field == "prompt"


def test_a_folder_that_cannot_be_made_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    engine = FakeEngine(Settings(data_dir=tmp_path / "file"))
    with pytest.raises(NotReady, match="folder for clips"):
        engine.load()


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, ltx2.fake; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
