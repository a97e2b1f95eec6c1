"""Videos that callers send: real files of every kind, and what is no video."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from bombs import check_bombs
from numpy.typing import NDArray
from PIL import Image

from ltx2.errors import Internal, LTX2Error, MediaTooLarge, UnsupportedMedia
from ltx2.media.audio import Waveform
from ltx2.media.video import write_video
from ltx2.media.videofile import VideoInfo, VideoLimits, inspect_video, read_frames, read_sound
from ltx2.request import GenerationRequest

LIMITS = VideoLimits(max_pixels=128 * 128, max_seconds=60, max_frames=60)
Frames = NDArray[np.uint8]


def inspect(data: bytes, limits: VideoLimits = LIMITS) -> VideoInfo:
    return inspect_video(data, field="video", limits=limits)


def read(data: bytes, first: int = 0, last: int | None = None) -> Frames:
    last = inspect(data).num_frames if last is None else last
    return np.concatenate([*read_frames(data, first, last, field="video", limits=LIMITS)])


def refused(data: bytes, limits: VideoLimits = LIMITS) -> LTX2Error:
    with pytest.raises(LTX2Error) as caught:
        inspect(data, limits)
    assert caught.value.field == "video"
    assert caught.value.__cause__ is None
    return caught.value


def smooth(num_frames: int, width: int = 96, height: int = 64) -> Frames:
    """Slopes in every colour, one of which moves."""
    rows, columns = np.mgrid[:height, :width]
    slopes = [
        np.stack([255 * columns / width, 255 * rows / height, 127 + 127 * np.sin((rows + columns) / 40 + at / 5)], -1)
        for at in range(num_frames)
    ]
    return np.stack(slopes).round().astype(np.uint8)


def flat(levels: Sequence[int], width: int = 64, height: int = 64) -> Frames:
    """One grey frame a level."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), height, width, 3)).copy()


def levels(frames: Frames) -> list[int]:
    """What the grey frames of :func:`flat` were, in steps of 10."""
    return [round(float(frame.mean()) / 10) for frame in frames]


def ours(folder: Path, frames: Frames, output_format: Any = "mp4", **changes: Any) -> bytes:
    """A clip as this program writes them."""
    path = folder / f"clip.{output_format}"
    size = {"num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2]}
    given: dict[str, Any] = {"fps": Fraction(24), "audio": None, "crf": 18, "preset": "ultrafast"}
    write_video(path, [frames], output_format=output_format, **(size | given | changes))
    return path.read_bytes()


def theirs(
    frames: Frames,
    codec: str = "libx264",
    *,
    kind: str = "mp4",
    rate: int = 25,
    pixels: str = "yuv420p",
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    turn: dict[str, Any] | None = None,
    sound_at: float | None = None,
    sound_rate: int = 8000,
    **context: Any,
) -> bytes:
    """A video as others write them: nothing is said of its colours."""
    file = BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.thread_count = 1  # those of libvpx wait by running in circles
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if turn is not None:
            stream.set_display_rotation(**turn)
        sound = container.add_stream("pcm_s16le", rate=sound_rate, layout="mono") if sound_at is not None else None
        clock = Fraction(1, rate)
        if milliseconds is not None:
            clock = stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = milliseconds[index] if milliseconds else index, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            tone = (8000 * np.sin(np.arange(8000) / 4)).astype(np.int16)
            heard = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            heard.sample_rate, heard.time_base = sound_rate, Fraction(1, sound_rate)
            heard.pts = round((sound_at or 0.0) * sound_rate)
            container.mux(sound.encode(heard))
            container.mux(sound.encode())
    return file.getvalue()


@cache
def small() -> bytes:
    return theirs(flat(range(0, 120, 10)))


# --- our own clips


RATES = [Fraction(24), Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)]


@pytest.mark.parametrize("fps", [*RATES, Fraction(25, 2), Fraction(120), Fraction(1)], ids=str)
@pytest.mark.parametrize("output_format", ["mp4", "webm"])
def test_a_clip_of_ours_is_what_it_was_and_its_rate_is_one_a_request_can_have(
    tmp_path: Path, output_format: str, fps: Fraction
) -> None:
    frames = flat(range(0, 250, 10))
    data = ours(tmp_path, frames, output_format, fps=fps)
    assert inspect(data) == VideoInfo(64, 64, fps, 25, has_sound=False)
    assert GenerationRequest(prompt="x", fps=float(fps)).exact_fps == fps
    assert levels(read(data)) == list(range(25))


@pytest.mark.parametrize("output_format", ["mp4", "mov", "webm"])
def test_pictures_of_ours_come_back_but_for_the_codec_s_noise(tmp_path: Path, output_format: str) -> None:
    frames = smooth(9)
    difference = read(ours(tmp_path, frames, output_format)).astype(int) - frames
    assert np.abs(difference).mean() < 2
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 0.6  # no shift in colour


def test_any_part_can_be_read_and_chunks_are_small(tmp_path: Path) -> None:
    data = ours(tmp_path, smooth(12))
    everything = read(data)
    assert everything.shape == (12, 64, 96, 3)
    for first, last in ((0, 1), (3, 8), (11, 12)):
        assert (read(data, first, last) == everything[first:last]).all()
    assert [*read_frames(data, 4, 4, field="video", limits=LIMITS)] == []
    for first, last in ((0, 13), (-1, 2), (5, 4)):
        with pytest.raises(Internal):
            read(data, first, last)
    large = ours(tmp_path, np.zeros((6, 1024, 1024, 3), np.uint8))
    limits = VideoLimits(2**20, 60, 60)
    chunks = [len(chunk) for chunk in read_frames(large, 0, 6, field="video", limits=limits)]
    assert chunks == [5, 1]


def test_the_sound_begins_with_the_pictures(tmp_path: Path) -> None:
    tone = Waveform((0.5 * np.sin(np.arange(24_000) / 10)).astype(np.float32)[None], 48_000)
    for output_format in ("mp4", "webm"):
        data = ours(tmp_path, flat([100] * 12), output_format, audio=tone)
        assert inspect(data).has_sound
        sound = read_sound(data, field="video", limits=LIMITS, max_seconds=60)
        assert sound is not None
        assert np.abs(sound.samples[:, 2000:22_000] - tone.samples[:, 2000:22_000]).max() < 0.1
    assert read_sound(small(), field="video", limits=LIMITS, max_seconds=60) is None


def test_a_sound_that_begins_later_is_heard_later() -> None:
    for late in (0.25, 0.0):
        data = theirs(flat([100] * 10), kind="matroska", sound_at=late)
        assert inspect(data) == VideoInfo(64, 64, Fraction(25), 10, has_sound=True)  # the sound goes on after it
        sound = read_sound(data, field="video", limits=LIMITS, max_seconds=60)
        assert sound is not None
        assert sound.samples.shape == (1, 8000 + late * 8000)
        assert not sound.samples[:, : round(late * 8000)].any()
        assert np.abs(sound.samples[:, round(late * 8000) :]).max() > 0.2


def test_no_memory_is_taken_for_the_silence_before_a_sound() -> None:
    for late, rate in ((61, 8000), (59, 384_000)):
        data = theirs(flat([100] * 2), kind="matroska", sound_at=late, sound_rate=rate)
        with pytest.raises(UnsupportedMedia, match=f"begins {late} seconds after the pictures"):
            read_sound(data, field="video", limits=LIMITS, max_seconds=60)


# --- what others write


@pytest.mark.parametrize(
    ("codec", "kind", "pixels", "options"),
    [
        ("libx264", "matroska", "yuv444p", {}),
        ("libx264", "mov", "yuv422p10le", {}),
        ("libx265", "mp4", "yuv420p10le", {"preset": "ultrafast", "x265-params": "log-level=none"}),
        ("libvpx", "webm", "yuv420p", {"deadline": "realtime"}),
        ("libvpx-vp9", "webm", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
        ("mpeg4", "mp4", "yuv420p", {"qscale": "2"}),
        ("prores_ks", "mov", "yuv422p10le", {}),
    ],
)
def test_codecs(codec: str, kind: str, pixels: str, options: dict[str, str]) -> None:
    data = theirs(flat(range(0, 90, 10)), codec, kind=kind, pixels=pixels, options=options)
    assert inspect(data) == VideoInfo(64, 64, Fraction(25), 9, has_sound=False)
    assert levels(read(data)) == list(range(9))


def test_av1() -> None:
    # from a file, since FFmpeg's only encoder makes its whole process one of real time, which starves all others
    data = (Path(__file__).parents[1] / "data" / "grey-av1.mp4").read_bytes()
    assert inspect(data) == VideoInfo(64, 64, Fraction(25), 9, has_sound=False)
    assert levels(read(data)) == list(range(9))


def test_small_videos_that_say_nothing_of_their_colours_have_those_of_bt601_and_full_range_is_seen() -> None:
    red = np.broadcast_to(np.array([200, 30, 40], np.uint8), (3, 64, 64, 3)).copy()
    for pixels in ("yuv420p", "yuvj420p"):
        assert np.abs(read(theirs(red, pixels=pixels)).astype(int) - red).max() < 5


TURNED = {
    "counter-clockwise": ({"degrees": 90}, np.rot90),
    "clockwise": ({"degrees": -90}, lambda picture: np.rot90(picture, -1)),
    "half": ({"degrees": 180}, lambda picture: np.rot90(picture, 2)),
    "mirrored": ({"degrees": 0, "hflip": True}, lambda picture: picture[:, ::-1]),
    "upside down": ({"degrees": 0, "vflip": True}, lambda picture: picture[::-1]),
}


@pytest.mark.parametrize("name", TURNED)
def test_pictures_are_upright(name: str) -> None:
    turn, upright = TURNED[name]
    quarters = np.zeros((64, 96, 3), np.uint8)
    quarters[:32, :48], quarters[:32, 48:], quarters[32:, :48] = 250, 150, 50
    data = theirs(quarters[None].repeat(2, axis=0), turn=turn)
    expected = upright(quarters)
    info = inspect(data)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.abs(read(data)[1].astype(int) - expected).mean() < 2


def test_a_variable_rate_becomes_a_constant_one() -> None:
    # 8 pictures in 480 ms are 50/3 a second: they are due at 0, 0.7, 1.3, 2, 5.3, 6, 6.7 and 7.3 frames
    times = [0, 40, 80, 120, 320, 360, 400, 440]
    data = theirs(flat(range(0, 80, 10)), milliseconds=times)
    assert inspect(data) == VideoInfo(64, 64, Fraction(50, 3), 8, has_sound=False)
    assert levels(read(data)) == [0, 2, 3, 3, 3, 4, 5, 7]
    assert levels(read(data, 3, 7)) == [3, 3, 4, 5]


def test_unsteady_times_at_a_broadcast_rate_lose_no_picture() -> None:
    rng = np.random.default_rng(0)
    due = [0, *(round(index * 1001 / 30 + rng.uniform(-10, 10)) for index in range(1, 24)), 801]
    data = theirs(flat(range(0, 250, 10)), kind="mov", milliseconds=due)
    assert inspect(data).num_frames == 25
    assert float(inspect(data).fps) == pytest.approx(29.97, abs=0.5)
    assert levels(read(data)) == list(range(25))


def test_a_header_that_claims_a_thousand_pictures_a_second_is_not_believed() -> None:
    # as browsers record
    levelled, times = flat(range(0, 250, 10)), [40 * index for index in range(25)]
    options = {"deadline": "realtime"}
    data = theirs(levelled, "libvpx", kind="webm", rate=1000, milliseconds=times, options=options)
    assert inspect(data) == VideoInfo(64, 64, Fraction(25), 25, has_sound=False)
    assert levels(read(data)) == list(range(25))


def test_a_single_picture_is_a_video() -> None:
    assert inspect(theirs(flat([50]))) == VideoInfo(64, 64, Fraction(25), 1, has_sound=False)


# --- what is refused


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (VideoLimits(64 * 64 - 1, 60, 60), "4096 pixels"),
        (VideoLimits(64 * 64, 60, 11), "11 frames"),
        (VideoLimits(64 * 64, 0.4, 12), "0.4 seconds"),
    ],
)
def test_limits(limits: VideoLimits, words: str) -> None:
    assert inspect(small(), VideoLimits(64 * 64, 0.48, 12)).num_frames == 12
    error = refused(small(), limits)
    assert isinstance(error, MediaTooLarge)
    assert words in error.message
    assert "LTX2_MAX_" in str(error.hint)


def test_pictures_that_cannot_be_shown_as_they_are_meant() -> None:
    grey = flat([100, 100])
    for data, words in (
        (theirs(flat([100, 100], 65, 64), pixels="yuv444p"), "65x64"),
        (theirs(flat([100, 100], 64, 62)), "64x62"),
        (theirs(grey, sample_aspect_ratio=Fraction(4, 3)), "4:3"),
        (theirs(grey, turn={"degrees": 45}), "right angle"),
        (theirs(grey, color_trc=ColorTrc.SMPTE2084), "HDR"),
        (theirs(grey, "mjpeg", kind="mov", pixels="yuvj420p"), "mjpeg"),
        (theirs(grey, rate=240), "240 pictures a second"),
        (theirs(grey, milliseconds=[0, 3000]), "pictures a second"),
    ):
        error = refused(data)
        assert type(error) is UnsupportedMedia
        assert words in error.message
        assert error.hint is not None or words == "right angle"


def image(kind: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    return file.getvalue()


def without_pictures(kind: str) -> bytes:
    """A sound in a container for videos; or, without a sound, a track of pictures without any."""
    file = BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "nothing"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "a playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "a playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "a playlist"),
        (image("GIF"), "a GIF image"),
        (image("PNG"), "a PNG image"),
        (image("AVIF"), "an AVIF image"),
        (b"RIFF\x24\0\0\0AVI LIST" + bytes(99), "an AVI file"),
        (b"\0\0\0\x18ftypmp42" + bytes(99), "damaged or incomplete"),
        (b"\x1a\x45\xdf\xa3" + bytes(99), "damaged or incomplete"),
        (without_pictures("mp4"), "without moving pictures"),
        (without_pictures("matroska"), "without moving pictures"),
        (theirs(np.zeros((0, 64, 64, 3), np.uint8), sound_at=0.0, kind="mov"), "without"),
    ],
)
def test_what_is_no_video(data: bytes, words: str) -> None:
    error = refused(data)
    assert type(error) is UnsupportedMedia
    assert words in error.message


def test_what_is_cut_off_or_damaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    data = ours(tmp_path, noise)  # its index comes first
    assert inspect(data).num_frames == 24
    for size in (len(data) // 2, len(data) - 10, 600, 60):
        assert type(refused(data[:size])) is UnsupportedMedia
    at = len(data) // 2
    assert "damaged" in refused(data[:at] + rng.bytes(500) + data[at + 500 :]).message
    for _ in range(30):  # whatever it is then, it is no crash
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 20):
            broken[place] = rng.integers(256)
        try:
            inspect(bytes(broken))
        except LTX2Error as error:
            assert error.field == "video"  # noqa: PT017 - or it was not hit where it matters


ANCESTORS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")


def referring_to(path: Path, data: bytes) -> bytes:
    """The same MOV, but its pictures lie in another file (QuickTime's alias, its absolute path)."""
    itself = b"\0\0\0\x0curl \0\0\0\x01"
    at = data.index(itself)
    name = str(path).encode()
    record = bytes(10) + bytes([4]) + b"disk".ljust(27, b"\0") + bytes(12)
    record += bytes([len(path.name)]) + path.name.encode().ljust(63, b"\0") + bytes(16)
    record += struct.pack(">hh", 0, 0) + bytes(16)
    record += struct.pack(">hH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">hH", -1, 0)
    alias = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    changed = bytearray(data[:at] + alias + data[at + len(itself) :])
    for box in ANCESTORS:
        place = data.rindex(box, 0, at) - 4
        size = int.from_bytes(changed[place : place + 4]) + len(alias) - len(itself)
        changed[place : place + 4] = struct.pack(">I", size)
    return bytes(changed)


def test_a_mov_may_not_refer_to_another_file(tmp_path: Path) -> None:
    data = theirs(flat([100] * 5), kind="mov")
    secret = tmp_path / "secret.mov"
    secret.write_bytes(data)
    trap = referring_to(secret, data.replace(b"mdat", b"free"))
    # FFmpeg would follow it, if it were told to
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(BytesIO(trap), "r", options=options) as container:
        assert len([*container.decode(video=0)]) == 5
    refused(trap)


def test_bombs_take_no_memory_and_little_time(tmp_path: Path) -> None:
    def entry(data: bytes, width: int, height: int) -> bytes:
        """Another size in the header of an MP4."""
        at = data.index(b"avc1", data.index(b"stsd")) + 28
        return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]

    def claiming(data: bytes, samples: int) -> bytes:
        """So many samples of one byte in its index."""
        at = data.index(b"stsz") + 8
        return data[:at] + struct.pack(">II", 1, samples) + data[at + 8 :]

    large = theirs(np.zeros((1, 4096, 4096, 3), np.uint8), options={"preset": "ultrafast"})
    bombs = {
        "00-small": (small(), "12"),
        "01-index": (claiming(small(), 1_000_000_000), "unsupported_media"),
        "02-allowed-index": (claiming(small(), 2**20), "unsupported_media"),
        "03-header-claims-size": (entry(small(), 16_384, 16_384), "media_too_large"),
        "04-header-hides-size": (entry(large, 64, 64), "unsupported_media"),
        "05-large": (large, "media_too_large"),
    }
    check_bombs("video", bombs, tmp_path, seconds=3, mb=50)
