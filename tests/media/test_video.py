"""Frames and sound into real MP4 files, read back with PyAV."""

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from ltx2.errors import Canceled, Internal, UnsupportedMedia
from ltx2.media.audio import Waveform
from ltx2.media.probe import probe_video
from ltx2.media.video import write_video

FILM = Fraction(24000, 1001)
Frames = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return tmp_path / "clip.mp4"


def flat(levels: Iterable[float], width: int = 64, height: int = 64) -> Frames:
    """One grey frame a level, [n, height, width, 3]."""
    levels = np.array(list(levels)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (len(levels), height, width, 3)))


def noise(num_frames: int, width: int = 64, height: int = 64) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def cut(frames: Frames, size: int) -> Iterator[Frames]:
    for first in range(0, len(frames), size):
        yield frames[first : first + size]


def voice(seconds: float, rate: int, channels: int = 1) -> Waveform:
    """Noise below an eighth of the sample rate, another one in each channel, with a beat of 3 Hz."""
    rng = np.random.default_rng(1)
    raw = rng.standard_normal((channels, round(seconds * rate) + 64))
    window = np.hanning(17) / np.hanning(17).sum()
    smooth = np.stack([np.convolve(one, window, "same")[32:-32] for one in raw])
    beat = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * np.arange(smooth.shape[1]) / rate)
    return Waveform((0.5 * smooth * beat).astype(np.float32), rate)


def write(path: Path, frames: Frames | Iterable[Frames], **changes: Any) -> None:
    """A clip of 64x64 at 24 frames a second, unless told otherwise."""
    given: dict[str, Any] = {"fps": Fraction(24), "audio": None, "crf": 18, "preset": "veryfast"}
    if isinstance(frames, np.ndarray):
        given |= {"num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2]}
        frames = cut(frames, 8)
    write_video(path, frames, **({"width": 64, "height": 64} | given | changes))


def pictures(path: Path) -> Frames:
    """All frames as RGB, made with the matrix and range that the file names."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sound(path: Path) -> NDArray[np.float32]:
    """All samples, from time 0."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].pts == 0
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def assert_in_time(given: NDArray[np.float32], heard: NDArray[np.float32]) -> None:
    """The same sound, to the sample: a shift by even one would fit worse."""
    length = min(given.size, heard.size)
    given, heard = given[:length], heard[:length]
    fits = {lag: np.corrcoef(given[64:-64], np.roll(heard, -lag)[64:-64])[0, 1] for lag in range(-48, 49)}
    assert max(fits, key=lambda lag: fits[lag]) == 0
    assert fits[0] > 0.98


# What is in the file


@pytest.mark.parametrize(
    ("width", "height", "num_frames", "fps", "chunk", "rate", "channels"),
    [
        (64, 64, 1, Fraction(24), 8, 48000, 2),
        (64, 96, 25, FILM, 1, 24000, 2),
        (320, 192, 49, Fraction(25), 7, 44100, 1),
        (64, 64, 5, Fraction(1), 2, 16000, 1),
        (64, 64, 121, Fraction(120), 50, 48000, 2),
        (1920, 1088, 9, Fraction(60000, 1001), 4, 96000, 2),
        (66, 70, 10, Fraction(23987, 1000), 3, 8000, 1),
    ],
)
def test_every_fact_is_exact(
    clip: Path, width: int, height: int, num_frames: int, fps: Fraction, chunk: int, rate: int, channels: int
) -> None:
    frames = flat(np.linspace(30, 220, num_frames), width, height)
    audio = voice(float(num_frames / fps), rate, channels)
    write(clip, cut(frames, chunk), num_frames=num_frames, width=width, height=height, fps=fps, audio=audio)

    facts = probe_video(clip)
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (width, height, num_frames, fps)
    assert (facts.video_codec, facts.pixel_format) == ("h264", "yuv420p")
    assert (facts.audio_codec, facts.audio_sample_rate, facts.audio_channels) == ("aac", rate, channels)
    assert facts.seconds == float(num_frames / fps)
    assert facts.size_bytes == clip.stat().st_size
    with av.open(str(clip)) as container:
        video, audio_stream = container.streams.video[0], container.streams.audio[0]
        assert video.codec_context.profile == "High"
        assert video.start_time == audio_stream.start_time == 0
        assert video.duration * video.time_base == num_frames / fps
        assert audio_stream.duration == round(num_frames / fps * rate)
        assert [frame.pts * frame.time_base for frame in container.decode(video)] == [
            index / fps for index in range(num_frames)
        ]


def test_no_sound_no_sound_track(clip: Path) -> None:
    write(clip, flat([100, 110, 120]))
    facts = probe_video(clip)
    assert (facts.audio_codec, facts.audio_sample_rate, facts.audio_channels) == (None, None, None)
    assert facts.seconds == 3 / 24


def test_frames_keep_their_order(clip: Path) -> None:
    levels = np.random.default_rng(2).permutation(np.linspace(20, 235, 70).round())
    write(clip, cut(flat(levels), 3), num_frames=70)
    assert np.abs(pictures(clip).mean(axis=(1, 2, 3)) - levels).max() < 2.5


def test_the_index_comes_first(clip: Path) -> None:
    write(clip, noise(10))
    content = clip.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert probe_video(clip).faststart
    with av.open(str(clip)) as source, av.open(str(clip.with_name("late.mp4")), "w") as late:
        stream = late.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                late.mux(packet)
    assert not probe_video(clip.with_name("late.mp4")).faststart


def test_sound_lies_beside_its_pictures(clip: Path) -> None:
    """In the file, at no place, more than a second of one kind comes before the other."""
    write(clip, noise(24 * 15, 32, 32), audio=voice(15, 16000))
    with av.open(str(clip)) as container:
        packets = sorted((p.pos, p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.size)
    seen = {"video": 0.0, "audio": 0.0}
    for _, kind, seconds in packets:
        seen[kind] = seconds
        assert abs(seen["video"] - seen["audio"]) < 1


def test_tags(clip: Path) -> None:
    write(clip, flat([9, 9]), metadata={"title": "Ein Löwe", "comment": '{"seed": 7}'})
    with av.open(str(clip)) as container:
        assert container.metadata["title"] == "Ein Löwe"
        assert container.metadata["comment"] == '{"seed": 7}'


def test_lossless(clip: Path) -> None:
    frames = noise(3)
    frames[..., 1] = frames[..., 2] = frames[..., 0]
    write(clip, frames, crf=0)
    error = pictures(clip).astype(int) - frames
    assert np.abs(error).max() <= 1  # 219 steps of brightness hold 256 only nearly


# Colour


def test_colours_are_bt709_and_say_so(clip: Path) -> None:
    colours = np.array(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (30, 200, 90)], np.uint8
    )
    write(clip, np.ascontiguousarray(np.broadcast_to(colours[:, None, None, :], (7, 64, 64, 3))))
    with av.open(str(clip)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        planes = [frame.to_ndarray()[:64, :] for frame in container.decode(video=0)]
    assert tags == (1, 1, 1, 1)  # BT.709 three times, limited range
    red, green, blue = (round(16 + 219 * weight) for weight in (0.2126, 0.7152, 0.0722))
    for plane, luma in zip(planes, (red, green, blue, 235, 16, 126), strict=False):
        assert np.abs(plane.astype(int) - luma).max() <= 2
    assert np.abs(pictures(clip).astype(int) - colours[:, None, None, :]).max() <= 4


def test_places_stay(clip: Path) -> None:
    frames = np.zeros((2, 64, 96, 3), np.uint8)
    frames[:, :32, :48], frames[:, :32, 48:], frames[:, 32:, :48] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    write(clip, frames)
    corners = pictures(clip)[:, 16::32, 24::48].astype(int)
    assert np.abs(corners - frames[:, 16::32, 24::48]).max() <= 4


def test_views_are_read_as_they_look(clip: Path) -> None:
    """A crop of a larger array, planes first in memory, upside down."""
    planes = np.zeros((5, 3, 80, 72), np.uint8)
    planes[:, 0, :40], planes[:, 2, 40:] = 220, 220
    view = planes.transpose(0, 2, 3, 1)[:, 72:8:-1, 4:68]
    assert not view.flags.c_contiguous
    write(clip, view)
    assert np.abs(pictures(clip)[:, 4::8].astype(int) - view[:, 4::8]).max() <= 4


# Sound


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (24000, 2), (44100, 1), (16000, 1)])
def test_sound_is_in_time(clip: Path, rate: int, channels: int) -> None:
    given = voice(2, rate, channels)
    write(clip, flat([50] * 48), audio=given)
    heard = sound(clip)
    assert heard.shape[0] == channels
    for one, other in zip(given.samples, heard, strict=True):
        assert_in_time(one, other)


@pytest.mark.parametrize("rate", [22000, 192000, 50000])
def test_rates_that_aac_has_not_become_48_khz(clip: Path, rate: int) -> None:
    def tone(at: int) -> NDArray[np.float32]:
        times = np.arange(2 * at) / at
        return (0.5 * np.sin(2 * np.pi * (300 + 200 * times) * times)).astype(np.float32)[None]

    write(clip, flat([50] * 48), audio=Waveform(tone(rate), rate))
    assert probe_video(clip).audio_sample_rate == 48000
    assert_in_time(tone(48000)[0], sound(clip)[0])
    with av.open(str(clip)) as container:
        assert container.streams.audio[0].duration == 2 * 48000


@pytest.mark.parametrize("seconds", [0, 0.5, 3])
def test_sound_is_as_long_as_the_pictures(clip: Path, seconds: float) -> None:
    write(clip, flat([50] * 25), fps=FILM, audio=voice(seconds, 24000))
    with av.open(str(clip)) as container:
        assert container.streams.audio[0].duration == 25025  # 25 frames * 1001 / 24000 * 24000
    heard = sound(clip)[0]
    kept = round(seconds * 24000)
    assert np.abs(heard[kept + 1024 : 25025]).max(initial=0) < 1e-3
    if seconds:
        assert np.abs(heard[: min(kept, 25025)]).max() > 0.1


def test_only_numbers_up_to_one_reach_the_encoder(clip: Path) -> None:
    broken = np.full((1, 48000), 0.0, np.float32)
    broken[0, 10000:12000], broken[0, 20000], broken[0, 20001], broken[0, 20002] = 50, np.nan, np.inf, -np.inf
    kept = broken.copy()
    write(clip, flat([50] * 24), audio=Waveform(broken, 48000))
    heard = sound(clip)
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() < 1.5
    assert np.abs(heard[0, 18000:22000]).max() < 0.05
    np.testing.assert_array_equal(broken, kept)


@pytest.mark.parametrize(("shape", "rate"), [((3, 100), 48000), ((100,), 48000), ((1, 100), 0)])
def test_sound_of_no_use(clip: Path, shape: tuple[int, ...], rate: int) -> None:
    with pytest.raises(Internal):
        write(clip, flat([50]), audio=Waveform(np.zeros(shape, np.float32), rate))
    assert not list(clip.parent.iterdir())


# Streaming


def test_one_chunk_ahead_at_most_and_in_the_callers_thread(clip: Path) -> None:
    given: list[weakref.ref[Frames]] = []
    kept, threads = [], set()

    def chunks() -> Iterator[Frames]:
        for level in range(20):
            kept.append(sum(reference() is not None for reference in given))
            threads.add(threading.current_thread())
            frames = flat([level * 10] * 4)
            given.append(weakref.ref(frames))
            yield frames
            del frames

    write(clip, chunks(), num_frames=80)
    assert probe_video(clip).num_frames == 80
    assert threads == {threading.current_thread()}
    assert max(kept) == 1


def test_a_file_is_replaced_only_by_a_complete_one(clip: Path) -> None:
    clip.write_bytes(b"older")

    def chunks() -> Iterator[Frames]:
        yield flat([50] * 8)
        assert clip.read_bytes() == b"older"
        yield flat([60] * 8)

    with pytest.raises(Internal):
        write(clip, chunks(), num_frames=17)
    assert clip.read_bytes() == b"older"
    write(clip, chunks(), num_frames=16)
    assert probe_video(clip).num_frames == 16
    assert list(clip.parent.iterdir()) == [clip]


# Going wrong: nothing is left, neither a file nor a thread


class Source:
    """Chunks of noise, as a generator that says whether it was closed."""

    def __init__(self, chunk: Frames, fails_after: int = 1000) -> None:
        self.chunk, self.fails_after = chunk, fails_after
        self.given = 0
        self.closed = False

    def __call__(self) -> Iterator[Frames]:
        try:
            while self.given < self.fails_after:
                self.given += 1
                yield self.chunk
            raise ZeroDivisionError("in the iterator")
        finally:
            self.closed = True


@pytest.mark.parametrize("questions", [1, 2, 3, 7])
def test_cancel(clip: Path, questions: int) -> None:
    source = Source(noise(4))
    asked: list[threading.Thread] = []

    def cancelled() -> bool:
        asked.append(threading.current_thread())
        return len(asked) >= questions

    with pytest.raises(Canceled):
        write(clip, source(), num_frames=4000, audio=voice(1, 24000), cancelled=cancelled)
    assert asked == [threading.current_thread()] * questions
    assert source.closed
    assert source.given <= questions
    assert not list(clip.parent.iterdir())


@pytest.mark.parametrize("num_frames", [100, 40])
def test_cancel_while_the_encoder_is_busy(clip: Path, num_frames: int) -> None:
    """One chunk that takes many seconds: with what x264 takes in, or, of few frames, with what it still holds."""
    frames = noise(num_frames, 1280, 704)
    started, spent = time.monotonic(), time.process_time()
    with pytest.raises(Canceled):
        write(
            clip,
            iter([frames]),
            num_frames=num_frames,
            width=1280,
            height=704,
            preset="slow",
            cancelled=lambda: time.monotonic() > started + 0.5,
        )
    # all of it would take more than twice as much; by the clock it depends on what else the machine does
    assert time.process_time() < spent + 10
    assert not list(clip.parent.iterdir())


@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_the_iterator_fails(clip: Path, chunks: int) -> None:
    with pytest.raises(ZeroDivisionError, match="in the iterator"):
        write(clip, Source(noise(4), fails_after=chunks)(), num_frames=4000)
    assert not list(clip.parent.iterdir())


def test_the_encoder_fails(clip: Path) -> None:
    source = Source(noise(4))
    with pytest.raises(av.FFmpegError):
        write(clip, source(), num_frames=4000, preset="sluggish")
    assert source.closed
    assert source.given == 1
    assert not list(clip.parent.iterdir())


def test_no_such_folder(clip: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(clip / "below" / "clip.mp4", noise(2))


@pytest.mark.parametrize(
    "chunk",
    [
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((2, 64, 64, 4), np.uint8),
        np.zeros((2, 64, 62, 3), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
    ids=lambda chunk: f"{chunk.dtype}-{chunk.shape}",
)
def test_frames_of_another_kind(clip: Path, chunk: NDArray[Any]) -> None:
    with pytest.raises(Internal):
        write(clip, iter([noise(2), chunk]), num_frames=4)
    assert not list(clip.parent.iterdir())


@pytest.mark.parametrize("num_frames", [1, 15, 17, 1000])
def test_another_number_of_frames(clip: Path, num_frames: int) -> None:
    with pytest.raises(Internal, match=f"{num_frames} frames were announced"):
        write(clip, cut(noise(16), 5), num_frames=num_frames)
    assert not list(clip.parent.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"width": 63}, {"height": 0}, {"num_frames": 0}, {"fps": Fraction(0)}, {"fps": Fraction(-24)}]
)
def test_sizes_that_no_video_has(clip: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(Internal):
        write(clip, noise(2), **wrong)
    assert not list(clip.parent.iterdir())


_ON_A_FULL_DISK = """
import resource, signal, sys, threading
from fractions import Fraction
from pathlib import Path
import numpy as np
from ltx2.errors import StorageFull
from ltx2.media.video import write_video

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
try:
    write_video(Path(sys.argv[1]), iter([frames] * 30), width=64, height=64, fps=Fraction(24), num_frames=120,
              audio=None, crf=18, preset="ultrafast")
except StorageFull as error:
    print(error.code, threading.active_count(), error)
"""


@pytest.mark.parametrize("limit", [0, 100_000])
def test_full_disk(clip: Path, limit: int) -> None:
    """A limit on file sizes stands for it: at once, or in the middle."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ON_A_FULL_DISK, str(clip), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("storage_full 1 ")
    assert str(clip.parent) not in run.stdout
    assert run.stderr == ""
    assert not list(clip.parent.iterdir())


def test_full_disk_while_the_index_is_moved(clip: Path) -> None:
    """The last bytes of a file are written when everything is encoded: a limit just below its size."""
    write(clip, np.concatenate([noise(4)] * 30), preset="ultrafast")
    limit = clip.stat().st_size - 100
    clip.unlink()
    test_full_disk(clip, limit)


# Facts of files that are not ours


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, b"\0\0\0\x18ftypmp42" + b"\0" * 100])
def test_nothing_to_probe(clip: Path, content: bytes) -> None:
    clip.write_bytes(content)
    with pytest.raises(UnsupportedMedia):
        probe_video(clip)


def test_sound_alone_has_no_pictures(clip: Path) -> None:
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(UnsupportedMedia):
        probe_video(clip)


def test_neither_torch_nor_fastapi() -> None:
    code = "import sys, ltx2.media.video, ltx2.media.probe; print({'torch', 'fastapi'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
