"""Every format but MP4, and whose encoder writes H.264: real files, read back with PyAV, Pillow and libsndfile."""

import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from av.codec.context import CodecContext
from numpy.typing import NDArray
from PIL import Image

from ltx2.errors import Canceled, Internal, NotReady, UnsupportedMedia
from ltx2.formats import MEDIA_TYPES, SOUNDS, OutputFormat, crf_of, media_type
from ltx2.media.audio import Waveform
from ltx2.media.encoders import (
    AUTOMATIC,
    HARDWARE,
    X264,
    VideoEncoder,
    VideoSpec,
    check_encoder,
    first_working,
    h264_encoder,
    works,
)
from ltx2.media.gif import final_delay, shown_at
from ltx2.media.probe import probe_sound, probe_video
from ltx2.media.soundfiles import write_sound
from ltx2.media.video import write_video
from ltx2.studio.files import content_type

FILM = Fraction(24000, 1001)
VIDEOS = tuple(name for name in MEDIA_TYPES if name not in SOUNDS)
SPEC = VideoSpec(128, 96, Fraction(24), 20, "ultrafast")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def gradients(num_frames: int, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """Smooth colours that drift: [n, height, width, 3]."""
    rows, columns = np.mgrid[:height, :width]
    waves = [
        [127 + 100 * np.sin(place / 40 + index / 5 + 2 * colour) for colour, place in enumerate((rows, columns, rows))]
        for index in range(num_frames)
    ]
    return np.array(waves).transpose(0, 2, 3, 1).round().astype(np.uint8)


def tone(seconds: float, rate: int, pitch: float = 440, channels: int = 1) -> Waveform:
    times = np.arange(round(seconds * rate)) / rate
    return Waveform(np.repeat(0.5 * np.sin(2 * np.pi * pitch * times, dtype=np.float32)[None], channels, axis=0), rate)


def write(path: Path, frames: NDArray[np.uint8], **changes: Any) -> int | None:
    """A video at 24 frames a second, of the format its name ends with."""
    given: dict[str, Any] = {"fps": Fraction(24), "audio": None, "crf": 18, "preset": "ultrafast"}
    size = {"num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2]}
    chunks = [frames[first : first + 4] for first in range(0, len(frames), 4)]
    return write_video(path, chunks, **({"output_format": path.suffix[1:]} | given | size | changes))


def pictures(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def heard(path: Path) -> NDArray[np.float32]:
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp")
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def assert_tone(samples: NDArray[np.float32], rate: int, pitch: float, level: float = 0.5) -> None:
    middle = samples[rate // 10 : -rate // 10]
    assert np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle) == pytest.approx(
        pitch, abs=rate / len(middle)
    )
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(level, rel=0.03)


# What callers meet


def test_each_format_has_a_type_and_its_files_are_known_by_it(tmp_path: Path) -> None:
    for name, expected in MEDIA_TYPES.items():
        path = tmp_path / f"clip.{name}"
        if name in SOUNDS:
            write_sound(path, tone(0.5, 24000), output_format=name, seconds=Fraction(1, 2), cancelled=lambda: False)
        else:
            write(path, gradients(3))
        assert media_type(name) == content_type(path.read_bytes()[:4096]) == expected


@pytest.mark.parametrize(("quality", "crf"), [(100, 14), (95, 16), (90, 18), (50, 34), (20, 46), (8, 51), (1, 51)])
def test_quality_is_a_crf(quality: int, crf: int) -> None:
    assert crf_of(quality) == crf


# MOV and WebM


def test_mov_is_mp4_under_another_brand(tmp_path: Path) -> None:
    frames, path = gradients(9), tmp_path / "clip.mov"
    assert write(path, frames, fps=FILM, audio=tone(0.3, 24000)) == 24000
    assert path.read_bytes()[4:12] == b"ftypqt  "
    facts = probe_video(path)
    assert (facts.video_codec, facts.pixel_format, facts.audio_codec) == ("h264", "yuv420p", "aac")
    assert (facts.num_frames, facts.fps, facts.faststart) == (9, FILM, True)
    assert facts.seconds == float(9 / FILM)
    assert np.abs(pictures(path).astype(int) - frames).mean() < 2


@pytest.mark.parametrize(("fps", "rate", "channels"), [(FILM, 24000, 2), (Fraction(25), 44100, 1)])
def test_webm(tmp_path: Path, fps: Fraction, rate: int, channels: int) -> None:
    frames, path = gradients(25), tmp_path / "clip.webm"
    seconds = 25 / fps
    assert write(path, frames, fps=fps, audio=tone(2, rate, 1000, channels), crf=12, preset="veryfast") == 48000
    facts = probe_video(path)
    assert (facts.width, facts.height, facts.num_frames, facts.faststart) == (96, 64, 25, None)
    assert (facts.video_codec, facts.pixel_format, facts.audio_codec) == ("vp9", "yuv420p", "opus")
    assert (facts.audio_sample_rate, facts.audio_channels) == (48000, channels)
    assert float(facts.fps) == pytest.approx(float(fps), rel=1e-4)
    assert facts.seconds == pytest.approx(float(seconds), abs=0.002)
    assert np.abs(pictures(path).astype(int) - frames).mean(axis=(1, 2, 3)).max() < 2
    samples = heard(path)
    assert samples.shape == (channels, round(seconds * 48000))
    assert_tone(samples[0], 48000, 1000)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        times = [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]
    assert times == pytest.approx([index / float(fps) for index in range(25)], abs=0.0006)
    content = path.read_bytes()
    assert content.index(b"\x1c\x53\xbb\x6b") < content.index(b"\x1f\x43\xb6\x75")  # cues before the first cluster


@pytest.mark.parametrize("preset", ["ultrafast", "veryfast"])
def test_webm_without_loss(tmp_path: Path, preset: str) -> None:
    frames, path = gradients(3), tmp_path / "clip.webm"
    frames[..., 1] = frames[..., 2] = frames[..., 0]
    write(path, frames, crf=0, preset=preset)
    assert np.abs(pictures(path).astype(int) - frames).max() <= 1


@pytest.mark.parametrize("name", ["mp4", "mov", "webm"])
def test_quality_decides_about_the_size(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    frames = np.clip(gradients(8).astype(int) + rng.normal(0, 12, (8, 64, 96, 3)), 0, 255).astype(np.uint8)
    sizes, errors = [], []
    for quality in (95, 70, 40):
        path = tmp_path / f"{quality}.{name}"
        write(path, frames, crf=crf_of(quality), preset="veryfast")
        sizes.append(path.stat().st_size)
        errors.append(np.abs(pictures(path).astype(int) - frames).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[0] > 2 * sizes[2]


def test_a_preset_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="sluggish"):
        write(tmp_path / "clip.webm", gradients(2), preset="sluggish")
    assert not list(tmp_path.iterdir())


# GIF


def delays(path: Path) -> list[int]:
    """Of each frame, in hundredths of a second, as browsers read them."""
    with Image.open(path) as image:
        return [round(image.info["duration"] / 10) for index in range(image.n_frames) if image.seek(index) is None]


def test_gif(tmp_path: Path) -> None:
    frames, path = gradients(12), tmp_path / "clip.gif"
    assert write(path, frames, fps=FILM, audio=tone(1, 24000)) is None
    shown = delays(path)
    assert len(shown) == 12
    assert set(shown) <= {4, 5}
    assert sum(shown) == round(12 * 100 / FILM)
    with Image.open(path) as image:
        assert image.info["loop"] == 0
    facts = probe_video(path)
    assert (facts.num_frames, facts.audio_codec, facts.seconds) == (12, None, 0.5)
    assert np.abs(pictures(path).astype(int) - frames).mean(axis=(1, 2, 3)).max() < 5


def test_each_frame_of_a_gif_has_its_own_colours(tmp_path: Path) -> None:
    levels = [(255, 0, 0), (0, 160, 0), (0, 0, 255), (250, 250, 10), (0, 160, 0)]
    frames = np.ascontiguousarray(np.broadcast_to(np.array(levels, np.uint8)[:, None, None], (5, 64, 96, 3)))
    write(tmp_path / "clip.gif", frames)
    assert np.abs(pictures(tmp_path / "clip.gif").astype(int) - frames).max() <= 2


def test_the_colours_of_a_large_gif_are_found_without_looking_at_every_pixel(tmp_path: Path) -> None:
    """Looking at all of a grainy frame takes longer than making it."""
    noise = np.random.default_rng(0).integers(-8, 9, (1, 704, 1280, 3))
    frames = np.clip(gradients(1, 1280, 704) + noise, 0, 255).astype(np.uint8)
    began = time.process_time()
    write(tmp_path / "clip.gif", frames)
    seconds = time.process_time() - began
    blocks = [film.reshape(-1, 8, 160, 8, 3).mean(axis=(1, 3)) for film in (pictures(tmp_path / "clip.gif"), frames)]
    assert np.abs(blocks[0] - blocks[1]).mean() < 4
    assert seconds < 0.9  # 0.35; 1.45 for all pixels


def test_a_gif_of_frames_that_are_the_same_has_them_all(tmp_path: Path) -> None:
    write(tmp_path / "clip.gif", np.repeat(gradients(1), 6, axis=0), fps=Fraction(10))
    assert delays(tmp_path / "clip.gif") == [10] * 6


@pytest.mark.parametrize(("fps", "num_frames", "kept"), [(60, 30, 25), (120, 60, 25), (Fraction(60000, 1001), 30, 25)])
def test_a_fast_gif_is_as_long_as_it_should_be_with_fewer_frames(
    tmp_path: Path, fps: Fraction, num_frames: int, kept: int
) -> None:
    frames = gradients(num_frames)
    write(tmp_path / "clip.gif", frames, fps=Fraction(fps))
    shown = delays(tmp_path / "clip.gif")
    assert len(shown) == kept
    assert min(shown) == 2
    assert sum(shown) == pytest.approx(100 * num_frames / fps, abs=2)
    nearest = [math.ceil(2 * slot * fps / 100) for slot in range(kept)]
    seen = pictures(tmp_path / "clip.gif").astype(int)
    assert np.abs(seen - frames[nearest]).mean(axis=(1, 2, 3)).max() < 8


@pytest.mark.parametrize("fps", [1, 10, 23.976, 25, 48, 50, 50.5, 60, 119.88, 120])
def test_no_delay_of_a_gif_is_too_short(fps: float) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    for num_frames in (1, 2, 3, 50, 241):
        times = [at for index in range(num_frames) if (at := shown_at(index, rate)) is not None]
        ends = [*times[1:], times[-1] + final_delay(num_frames, rate)]
        assert times[0] == 0
        assert all(end - begin >= 2 for begin, end in zip(times, ends, strict=True))
        assert abs(ends[-1] - 100 * num_frames / rate) <= 2


# Sound alone


@pytest.mark.parametrize("name", ["wav", "flac", "mp3"])
@pytest.mark.parametrize(("given", "channels"), [(0.4, 1), (2.0, 2)])
def test_a_sound_is_as_long_as_its_clip(tmp_path: Path, name: OutputFormat, given: float, channels: int) -> None:
    path, seconds = tmp_path / f"clip.{name}", 25 / FILM
    sound = tone(given, 24000, 1000, channels)
    assert write_sound(path, sound, output_format=name, seconds=seconds, cancelled=lambda: False) == 24000
    facts = probe_sound(path)
    assert (facts.sample_rate, facts.channels) == (24000, channels)
    assert facts.codec == {"wav": "wav pcm_16", "flac": "flac pcm_16", "mp3": "mp3"}[name]
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert len(samples) == 25025
    kept = round(min(given * 24000, 25025))
    assert_tone(samples[:kept, 0], 24000, 1000)
    assert np.abs(samples[kept + 1200 :]).max(initial=0) < 1e-3
    if name != "mp3":
        assert np.abs(samples[:kept].T - sound.samples[:, :kept]).max() <= 2**-15


@pytest.mark.parametrize(("name", "rate"), [("wav", 96000), ("flac", 96000), ("mp3", 48000)])
def test_mp3_has_no_rate_above_48_khz(tmp_path: Path, name: OutputFormat, rate: int) -> None:
    path = tmp_path / f"clip.{name}"
    sound = tone(1, 96000, 1000)
    assert write_sound(path, sound, output_format=name, seconds=Fraction(1), cancelled=lambda: False) == rate
    assert probe_sound(path).sample_rate == rate
    assert probe_sound(path).seconds == 1
    assert_tone(soundfile.read(path, dtype="float32")[0], rate, 1000)


@pytest.mark.parametrize("name", ["wav", "flac", "mp3"])
def test_only_numbers_up_to_one_reach_a_sound_file(tmp_path: Path, name: OutputFormat) -> None:
    broken = np.zeros((1, 24000), np.float32)
    broken[0, 2000:4000], broken[0, 10000:10003] = 50, (np.nan, np.inf, -np.inf)
    path = tmp_path / f"clip.{name}"
    write_sound(path, Waveform(broken, 24000), output_format=name, seconds=Fraction(1), cancelled=lambda: False)
    samples = soundfile.read(path, dtype="float32")[0]
    assert np.abs(samples).max() < 1.5
    assert np.abs(samples[8000:12000]).max() < 0.01
    assert samples[3000] == pytest.approx(1, abs=0.3)


# Nothing is left of what goes wrong


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_that_is_cancelled(tmp_path: Path, name: str) -> None:
    asked: list[int] = []

    def chunks() -> Iterator[NDArray[np.uint8]]:
        while True:
            yield gradients(2)

    given: dict[str, Any] = {"width": 96, "height": 64, "fps": Fraction(24), "crf": 18, "preset": "ultrafast"}
    with pytest.raises(Canceled):
        write_video(
            tmp_path / "clip",
            chunks(),
            output_format=name,
            num_frames=1000,
            audio=tone(1, 24000),
            cancelled=lambda: bool(asked.append(1)) or len(asked) > 3,
            **given,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(SOUNDS))
def test_a_sound_that_is_cancelled_or_of_no_use(tmp_path: Path, name: OutputFormat) -> None:
    asked: list[int] = []
    path = tmp_path / "clip"
    path.write_bytes(b"older")
    with pytest.raises(Canceled):
        write_sound(
            path,
            tone(10, 24000),
            output_format=name,
            seconds=Fraction(10),
            cancelled=lambda: bool(asked.append(1)) or len(asked) > 2,
        )
    three = Waveform(np.zeros((3, 100), np.float32), 24000)
    with pytest.raises(Internal):
        write_sound(path, three, output_format=name, seconds=Fraction(1), cancelled=lambda: False)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


_ON_A_FULL_DISK = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from ltx2.errors import StorageFull
from ltx2.formats import MEDIA_TYPES, SOUNDS
from ltx2.media.audio import Waveform
from ltx2.media.soundfiles import write_sound
from ltx2.media.video import write_video

rng = np.random.default_rng(0)
frames = rng.integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)
noise = Waveform(rng.uniform(-1, 1, (1, 480_000)).astype(np.float32), 48_000)
for limit in (0, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name in MEDIA_TYPES:
        path = Path(sys.argv[1]) / f"clip.{name}"
        try:
            if name in SOUNDS:
                write_sound(path, noise, output_format=name, seconds=noise.seconds, cancelled=lambda: False)
            else:
                write_video(path, iter([frames] * 5), width=96, height=64, fps=Fraction(24), num_frames=20, audio=None,
                            crf=10, preset="ultrafast", output_format=name)
        except StorageFull:
            print(name, end=" ")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stands for it: at once, or in the middle."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ON_A_FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [*MEDIA_TYPES] * 2
    assert run.stderr == ""
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_probed(tmp_path: Path) -> None:
    for name in ("clip.webm", "clip.gif", "clip.mov", "clip.txt", "clip"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(UnsupportedMedia):
            probe_video(tmp_path / name)
    with pytest.raises(UnsupportedMedia):
        probe_sound(tmp_path / "clip")


# Who encodes H.264


def test_an_encoder_works_when_its_pictures_come_back() -> None:
    assert works(X264)
    assert works(VideoEncoder("libx264", lambda _: {"crf": "20"}, "nv12"))
    # what encodes, but loses what it was given
    assert not works(VideoEncoder("libx264", lambda _: {"qp": "51", "preset": "ultrafast"}))
    # what encodes something else than H.264, takes no such option, or is not there
    assert not works(VideoEncoder("mpeg4", lambda _: {}))
    assert not works(VideoEncoder("libx264", lambda _: {"preset": "sluggish"}))
    assert not works(VideoEncoder("h264_made_up", lambda _: {}))


def test_looking_for_hardware_is_quick_and_silent() -> None:
    """One after the other as FFmpeg has them: where there is none of it, as here, each fails by itself."""
    code = """
import logging, time, warnings
warnings.simplefilter("error")
logging.basicConfig(level="INFO")
from ltx2.media.encoders import HARDWARE, X264, first_working, works
works(X264)
for encoder in HARDWARE.values():
    began = time.perf_counter()
    print(encoder.name, works(encoder), round(time.perf_counter() - began, 3))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [name for name, _, _ in rows] == [*HARDWARE]
    assert all(does == "True" or float(seconds) < 0.3 for _, does, seconds in rows)


def test_the_first_that_works_is_taken_and_looked_at_once() -> None:
    broken = VideoEncoder("h264_made_up", lambda _: {})
    assert first_working((broken, X264)) is X264
    assert first_working((broken,)) is None
    first_working(AUTOMATIC)
    began = time.perf_counter()
    for _ in range(100):
        first_working((*AUTOMATIC, X264))
    assert time.perf_counter() - began < 0.05


def test_which_encoder_a_clip_gets(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert h264_encoder("libx264", SPEC) is X264
    assert h264_encoder("auto", SPEC) is (first_working(AUTOMATIC) or X264)
    lossless = VideoSpec(128, 96, Fraction(24), 0, "ultrafast")
    assert all(h264_encoder(name, lossless) is X264 for name in ("auto", *HARDWARE))

    # a stand-in for hardware that works, but not for every size
    small = VideoEncoder("libx264", lambda spec: {"preset": "ultrafast" if spec.width >= 128 else "none for so little"})
    monkeypatch.setitem(HARDWARE, "h264_qsv", small)  # type: ignore[arg-type]
    check_encoder("h264_qsv")
    assert h264_encoder("h264_qsv", SPEC) is small
    with caplog.at_level(logging.WARNING):
        assert h264_encoder("h264_qsv", VideoSpec(64, 64, Fraction(24), 20, "ultrafast")) is X264
    assert "64x64" in caplog.text


def test_an_encoder_that_was_named_and_does_not_work() -> None:
    check_encoder("auto")
    check_encoder("libx264")
    broken = [name for name, encoder in HARDWARE.items() if not works(encoder)]
    assert broken, "no machine has them all"
    for name in broken:
        with pytest.raises(NotReady, match=name) as caught:
            check_encoder(name)
        assert "LTX2_VIDEO_ENCODER" in (caught.value.hint or "")
        with pytest.raises(NotReady):
            h264_encoder(name, SPEC)


@pytest.mark.parametrize("name", [name for name in HARDWARE if name in av.codecs_available])
def test_the_options_of_the_hardware_encoders_exist(name: str) -> None:
    known = CodecContext.create(name, "w").supported_options
    options = {option.name: option for option in (*known.generic, *known.private)}
    encoder = HARDWARE[name]
    for key, value in encoder.options(VideoSpec(1280, 704, FILM, 20, "veryfast")).items():
        choices = {choice.name for choice in options[key].choices}
        assert value.lstrip("+-").isdigit() or value.lstrip("+") in choices
    formats = {known.name for known in av.Codec(name, "w").video_formats or ()}
    assert not formats or encoder.pixel_format in formats


def test_hardware_encodes_a_clip(tmp_path: Path) -> None:
    """Where there is some; libx264 elsewhere."""
    frames = gradients(12, 256, 192)
    write(tmp_path / "clip.mp4", frames, encoder="auto", fps=FILM, audio=tone(0.5, 24000))
    facts = probe_video(tmp_path / "clip.mp4")
    assert (facts.video_codec, facts.num_frames, facts.fps) == ("h264", 12, FILM)
    assert np.abs(pictures(tmp_path / "clip.mp4").astype(int) - frames).mean() < 4


# The same again


@pytest.mark.parametrize("name", MEDIA_TYPES)
def test_the_same_frames_and_sound_make_the_same_file(tmp_path: Path, name: OutputFormat) -> None:
    frames, sound, made = gradients(13), tone(0.5, 24_000, channels=2), set()
    for attempt in range(3):
        path = tmp_path / f"{attempt}.{name}"
        if name in SOUNDS:
            write_sound(path, sound, output_format=name, seconds=Fraction(1, 2), cancelled=lambda: False)
        else:
            write(path, frames, audio=sound, preset="veryfast")
        made.add(path.read_bytes())
    assert len(made) == 1


def test_the_same_file_is_made_on_machines_with_fewer_cores(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, gradients(13), preset="veryfast")
    # x264 writes down how it was set; left alone it takes a number of threads by the cores that it may use
    assert b"threads=6 " in path.read_bytes()
