import io
import random
import socket
import struct
import time
import zlib
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from bombs import check_bombs
from numpy.typing import NDArray

from ltx2.errors import AudioTooLong, LTX2Error, UnsupportedMedia
from ltx2.media.audio import Waveform, change_rate, decode_audio, fit

Samples = NDArray[np.float32]
RATE = 44_100
HALF = 0.5**0.5


def decode(data: bytes, max_seconds: float = 600) -> Waveform:
    waveform = decode_audio(data, field="audio", max_seconds=max_seconds)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.ndim == 2
    assert len(waveform.samples) in (1, 2)
    assert waveform.samples.flags.c_contiguous
    assert waveform.seconds == waveform.samples.shape[1] / waveform.sample_rate
    return waveform


def refused(data: bytes, max_seconds: float = 600) -> LTX2Error:
    with pytest.raises(LTX2Error) as caught:
        decode_audio(data, field="audio_url", max_seconds=max_seconds)
    assert caught.value.field == "audio_url"
    assert caught.value.__cause__ is None
    return caught.value


def tone(frequency: float, rate: int = RATE, seconds: float = 1.0, amplitude: float = 0.5) -> Samples:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def stereo(rate: int = RATE, seconds: float = 1.0) -> Samples:
    return np.stack([tone(440, rate, seconds), tone(880, rate, seconds)])


def sound(
    samples: Samples | NDArray[np.int16], rate: int = RATE, format_: str = "WAV", subtype: str | None = None
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate, format=format_, subtype=subtype)
    return file.getvalue()


def encoded(
    samples: Samples, rate: int, container: str, codec: str, layout: str = "stereo", video: bool = False
) -> bytes:
    """A file by PyAV, with time stamps, as other programs write them."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        if video:
            picture = out.add_stream("libx264", rate=25)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.layout = av.AudioLayout(layout)
        if video:
            black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            out.mux([*picture.encode(black), *picture.encode()])
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            format=stream.codec_context.format,
            layout=layout,
            rate=rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode())
    return file.getvalue()


def strongest(samples: Samples, rate: int) -> list[int]:
    """The loudest frequency of each channel, in Hz."""
    return [round(float(np.abs(np.fft.rfft(channel)).argmax()) * rate / len(channel)) for channel in samples]


# --- what is taken


@pytest.mark.parametrize(
    ("format_", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-22),
        ("WAV", "PCM_32", 2**-23),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("WAVEX", "PCM_16", 2**-15),
        ("RF64", "PCM_16", 2**-15),
        ("W64", "PCM_16", 2**-15),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-22),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_exact_formats(format_: str, subtype: str, tolerance: float, channels: int) -> None:
    samples = stereo(22_050, 0.5)[:channels]
    found = decode(sound(samples, 22_050, format_, subtype))
    assert found.sample_rate == 22_050
    assert found.samples.shape == samples.shape
    assert np.abs(found.samples - samples).max() <= tolerance


@pytest.mark.parametrize(
    ("format_", "subtype", "rate"),
    [("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 48_000), ("MP3", None, 44_100), ("WAV", "IMA_ADPCM", 44_100)],
)
def test_compressed_formats_of_libsndfile(format_: str, subtype: str | None, rate: int) -> None:
    found = decode(sound(stereo(rate), rate, format_, subtype))
    assert found.sample_rate == rate
    assert abs(found.seconds - 1) < 0.03
    assert strongest(found.samples, rate) == pytest.approx([440, 880], abs=2)
    assert np.sqrt((found.samples**2).mean(1)) == pytest.approx([0.5 * HALF] * 2, abs=0.01)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "video"),
    [
        ("ipod", "aac", 44_100, False),
        ("mp4", "aac", 48_000, True),
        ("mov", "pcm_s16le", 48_000, True),
        ("ipod", "alac", 44_100, False),
        ("mp4", "libmp3lame", 44_100, False),
        ("mp4", "libopus", 48_000, False),
        ("webm", "libopus", 48_000, False),
        ("matroska", "flac", 44_100, True),
        ("matroska", "pcm_f32le", 16_000, False),
        ("matroska", "ac3", 48_000, False),
        ("adts", "aac", 44_100, False),
    ],
)
def test_formats_of_ffmpeg(container: str, codec: str, rate: int, video: bool) -> None:
    samples = np.zeros((2, rate), np.float32)
    burst = slice(rate // 2, rate // 2 + rate // 20)
    samples[:, burst] = stereo(rate)[:, burst]
    found = decode(encoded(samples, rate, container, codec, video=video))
    assert found.sample_rate == rate
    assert abs(found.seconds - 1) < 0.05
    assert strongest(found.samples, rate) == pytest.approx([440, 880], abs=25)
    # In time: what an encoder puts before the sound is cut off again. ADTS does not say how much it is.
    lag = np.correlate(found.samples[1].astype(float), samples[1, burst].astype(float), "valid").argmax() - rate // 2
    assert abs(lag) <= (1024 if container == "adts" else 1)


def test_mono_by_ffmpeg_stays_mono() -> None:
    assert decode(encoded(tone(440)[None], RATE, "ipod", "aac", "mono")).samples.shape[0] == 1


def test_integers_of_ffmpeg_are_scaled_to_one() -> None:
    ramp = np.linspace(-1, 1, 2**12, dtype=np.float32)[None]
    for codec, step in (("pcm_u8", 2**-7), ("pcm_s16le", 2**-15), ("pcm_s24le", 2**-22), ("pcm_s32le", 2**-22)):
        found = decode(encoded(ramp, 8_000, "mov" if codec != "pcm_u8" else "matroska", codec, "mono"))
        assert np.abs(found.samples - ramp).max() <= step


def test_real_speech(data: Path) -> None:
    found = decode((data / "speech.mp3").read_bytes())
    assert found.seconds > 0.5
    assert 0.01 < np.abs(found.samples).max() <= 1.5


def test_an_id3_tag_with_a_picture() -> None:
    mp3 = sound(tone(440)[None], RATE, "MP3")
    picture = b"\0image/jpeg\0\x03\0" + b"\xff\xd8\xff" * 10_000
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    tag = b"ID3\x03\0\0" + syncsafe(len(frame)) + frame
    for start in (tag, tag + tag):
        assert (decode(start + mp3).samples == decode(mp3).samples).all()
    adts = encoded(stereo(), RATE, "adts", "aac")
    assert (decode(tag + adts + tag).samples == decode(adts).samples).all()


def test_float_files_are_not_clipped() -> None:
    loud = tone(440, amplitude=3.0)[None]
    assert np.abs(decode(sound(loud, subtype="FLOAT")).samples).max() == pytest.approx(3, abs=1e-3)


def test_a_streamed_flac_has_no_length() -> None:
    samples = stereo(RATE, 3)
    for frames in (0, 2**36 - 1, 5, RATE):
        found = decode(flac_claiming(frames, sound(samples, RATE, "FLAC")))
        assert found.samples.shape[1] in (samples.shape[1], frames)
        assert np.abs(found.samples - samples[:, : found.samples.shape[1]]).max() <= 2**-15


def test_a_streamed_wav_has_no_length() -> None:
    samples = stereo()
    data = bytearray(sound(samples))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert np.abs(decode(bytes(data)).samples - samples).max() <= 2**-15


# --- more than two channels


@pytest.mark.parametrize("order", ["L R C", "L R l r", "L R C l r", "L R C - l r", "L R C - c l r", "L R C - l r l r"])
@pytest.mark.parametrize("format_", ["WAV", "FLAC"])
def test_downmix_by_libsndfile(format_: str, order: str) -> None:
    check_downmix(order.split(), lambda samples: sound(samples, RATE, format_))


@pytest.mark.parametrize("order", ["L C R", "L C R l r", "L C R l r -"])
def test_downmix_of_ogg(order: str) -> None:
    check_downmix(order.split(), lambda samples: sound(samples, RATE, "OGG", "VORBIS"), 0.05)


@pytest.mark.parametrize(
    ("layout", "order"),
    [("3.0", "L R C"), ("4.0", "L R C c"), ("5.1", "L R C - l r"), ("7.1", "L R C - l r l r"), ("2.1", "L R -")],
)
def test_downmix_by_ffmpeg(layout: str, order: str) -> None:
    check_downmix(order.split(), lambda samples: encoded(samples, 48_000, "mov", "pcm_f32le", layout))


def check_downmix(order: list[str], write: Any, tolerance: float = 2**-14) -> None:
    """Each channel in turn: front, (C)entre, the surrounds l, r and c, and - for the LFE."""
    left = {"L": 1.0, "R": 0.0, "C": HALF, "c": HALF, "l": HALF, "r": 0.0, "-": 0.0}
    right = {**left, "L": 0.0, "R": 1.0, "l": 0.0, "r": HALF}
    full = max(1, sum(left[name] for name in order))
    for index, name in enumerate(order):
        samples = np.zeros((len(order), 9_600), np.float32)
        samples[index] = tone(200, 48_000, 0.2)
        found = decode(write(samples)).samples
        length = min(found.shape[1], 9_600)
        for channel, weight in zip(found, (left[name], right[name]), strict=True):
            assert np.abs(channel[:length] - weight / full * samples[index, :length]).max() <= tolerance
    everything = np.ones((len(order), 4_800), np.float32)
    if tolerance < 0.01:
        assert np.abs(decode(write(everything)).samples).max() <= 1 + 1e-6


# --- what is refused


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "nothing"),
        (b"hello", "text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a PNG image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "a JPEG image"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04", "a ZIP"),
        (b"MThd\0\0\0\x06", "a MIDI file"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI file"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
        (b"FORM\0\0\0\0AIFFCOMM", "an AIFF file"),
        (b"G" + b"\0" * 187 + b"G" + b"\0" * 187, "an MPEG transport stream"),
        (bytes(range(1, 9)) * 50, "unknown"),
        (sound(np.zeros((1, 0), np.float32)), "without any samples"),
        (b"\xff\xfb\x90\x00" + b"\0" * 40, "an MP3 file"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 40, "an MP4"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 40, "a Matroska"),
    ],
)
def test_the_error_says_what_was_found(data: bytes, found: str) -> None:
    error = refused(data)
    assert type(error) is UnsupportedMedia
    assert found in error.message


def test_a_video_without_sound() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        out.mux([*stream.encode(frame), *stream.encode()])
    assert "without sound" in refused(file.getvalue()).message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format_", ["WAV", "mov"])
def test_values_must_be_finite(bad: float, format_: str) -> None:
    samples = tone(440).copy()[None]
    samples[0, 30_000] = bad
    data = (
        sound(samples, RATE, "WAV", "FLOAT") if format_ == "WAV" else encoded(samples, RATE, "mov", "pcm_f32le", "mono")
    )
    assert "finite" in refused(data).message


def test_a_float64_too_large_for_float32() -> None:
    samples = np.full((1, 2000), 1e39)
    file = io.BytesIO()
    soundfile.write(file, samples.T, RATE, format="WAV", subtype="DOUBLE")
    assert "finite" in refused(file.getvalue()).message
    quiet = encoded(np.full((1, 2000), 0.5, np.float32), RATE, "mov", "pcm_f64le", "mono")
    assert "finite" in refused(quiet.replace(struct.pack("<d", 0.5), struct.pack("<d", 1e39))).message


@pytest.mark.parametrize("rate", [0, 1, 3_999, 384_001, 2**31 - 1, 2**32 - 1])
def test_sample_rates(rate: int) -> None:
    data = bytearray(sound(stereo()))
    data[24:28] = struct.pack("<I", rate)
    error = refused(bytes(data))
    assert type(error) is UnsupportedMedia
    for taken in (4_000, 384_000):
        data[24:28] = struct.pack("<I", taken)
        assert decode(bytes(data)).sample_rate == taken


def test_too_many_channels() -> None:
    assert decode(sound(np.zeros((8, 100), np.float32))).samples.shape == (2, 100)
    assert type(refused(sound(np.zeros((9, 100), np.float32)))) is UnsupportedMedia


@pytest.mark.parametrize("format_", ["WAV", "FLAC", "OGG", "MP3", "ipod", "webm"])
def test_the_longest_sound(format_: str) -> None:
    samples = stereo(48_000, 2)
    codecs = {"ipod": "aac", "webm": "libopus"}
    data = encoded(samples, 48_000, format_, codecs[format_]) if format_ in codecs else sound(samples, 48_000, format_)
    assert decode(data, 2.1).seconds == pytest.approx(2, abs=0.05)
    error = refused(data, 1.9)
    assert type(error) is AudioTooLong
    assert "1.9 seconds" in str(error)
    assert decode(sound(samples), samples.shape[1] / RATE).samples.shape == samples.shape


def test_unusual_rates_may_be_shorter() -> None:
    # 2**24 values are always allowed: 21.8 seconds of 384 kHz stereo.
    assert decode(sound(np.zeros((2, 2**23), np.float32), 384_000, "FLAC"), 100).samples.shape == (2, 2**23)
    assert type(refused(sound(np.zeros((2, 2**23 + 1), np.float32), 384_000, "FLAC"), 100)) is AudioTooLong


WAV = sound(stereo(RATE, 0.1))


def patched(at: int, value: bytes) -> bytes:
    return WAV[:at] + value + WAV[at + len(value) :]


MALFORMED = {
    "no channels": patched(22, b"\0\0"),
    "65535 channels": patched(22, b"\xff\xff"),
    "no bits": patched(34, b"\0\0"),
    "7 bits": patched(34, b"\x07\0"),
    "65535 bits": patched(34, b"\xff\xff"),
    "unknown codec": patched(20, b"\x34\x12"),
    "no block size": patched(32, b"\0\0"),
    "wrong block size": patched(32, b"\x07\0"),
    "huge fmt": patched(16, b"\xff\xff\xff\x7f"),
    "negative fmt": patched(16, b"\xff\xff\xff\xff"),
    "no data chunk": patched(36, b"dead"),
    "data too long": patched(40, b"\xff\xff\xff\x7f"),
    "data empty": patched(40, b"\0\0\0\0"),
    "header only": WAV[:44],
    "half a header": WAV[:30],
    "only RIFF": WAV[:12],
    "odd end": WAV[:-3],
    "float of 16 bits": patched(20, b"\x03\0"),
    "big-endian": b"RIFX" + WAV[4:],
    "empty chunks": WAV[:12] + b"JUNK\0\0\0\0" * 100_000 + WAV[12:],
    "chunk without end": WAV[:12] + b"LIST\xf0\xff\xff\xff" + WAV[12:],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_wavs_are_refused_or_right(name: str) -> None:
    began = time.perf_counter()
    try:
        found = decode(MALFORMED[name])
    except UnsupportedMedia:
        pass
    else:
        expected = decode(WAV).samples[:, : found.samples.shape[1]]
        assert found.samples.shape[1] > 0
        assert found.sample_rate == RATE
        assert (found.samples == expected).all()
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    "data",
    [
        sound(stereo(), RATE, "WAV"),
        sound(stereo(), RATE, "FLAC"),
        sound(stereo(), RATE, "OGG"),
        sound(stereo(), RATE, "MP3"),
        encoded(stereo(), RATE, "ipod", "aac"),
        encoded(stereo(), RATE, "ipod", "alac"),
        encoded(stereo(48_000), 48_000, "webm", "libopus"),
        encoded(stereo(), RATE, "adts", "aac"),
    ],
    ids=["wav", "flac", "ogg", "mp3", "m4a", "alac", "webm", "adts"],
)
def test_broken_files_never_crash(data: bytes) -> None:
    source = random.Random(0)
    for size in [*range(1, 100, 7), *(source.randrange(len(data)) for _ in range(10))]:
        tried(data[:size])
    for _ in range(30):
        broken = bytearray(data)
        for _ in range(20):
            broken[int(len(data) * source.random() ** 2)] = source.randrange(256)
        tried(bytes(broken))


def tried(data: bytes) -> None:
    try:
        found = decode(data)
    except (UnsupportedMedia, AudioTooLong):
        return
    assert np.isfinite(found.samples).all()


# --- what would reach out


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
    "m3u8 after a space": "  \n#EXTM3U\n#EXTINF:10,\n{url}\n",
    "ffconcat": "ffconcat version 1.0\nfile '{url}'\n",
    "concat without version": "file '{url}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "sbagen": "-SE\nff: pink/40 200+10/40\n0:00 ff\n+19:00 ff\n",
    "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{url}</BaseURL></MPD>",
    "pls": "[playlist]\nFile1={url}\n",
    "asx": "<ASX><ENTRY><REF HREF='{url}'/></ENTRY></ASX>",
    "ffmetadata": ";FFMETADATA1\ntitle={url}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize(
    "prefix", [b"", b"ID3\x04\0\0\0\0\0\0", b"\xff\xfb\x90\x00", b"\0\0\0\x08ftyp", b"\x1a\x45\xdf\xa3"]
)
@pytest.mark.parametrize("target", ["file", "http"])
def test_playlists_reach_nothing(name: str, prefix: bytes, target: str, tmp_path: Path) -> None:
    decode(WAV)
    (tmp_path / "secret.wav").write_bytes(WAV)
    with socket.create_server(("127.0.0.1", 0)) as server:
        http = f"http://127.0.0.1:{server.getsockname()[1]}/secret.wav"
        url = (tmp_path / "secret.wav").as_uri() if target == "file" else http
        began = time.perf_counter()
        # Followed, the file would be a sound.
        error = refused(prefix + PLAYLISTS[name].format(url=url).encode())
        assert time.perf_counter() - began < 0.1
        assert type(error) is UnsupportedMedia
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_mp4_with_its_sound_in_another_file() -> None:
    m4a = encoded(stereo(), RATE, "ipod", "aac")
    elsewhere = m4a.replace(b"url \0\0\0\x01", b"url \0\0\0\0")
    assert elsewhere != m4a
    assert (decode(elsewhere).samples == decode(m4a).samples).all()


# --- bombs


def syncsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


@cache
def zlib_bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def id3_bomb() -> bytes:
    packed = zlib_bomb(200)
    frame = b"PRIV" + syncsafe(len(packed) + 4) + b"\0\x09" + syncsafe(200 * 2**20) + packed
    return b"ID3\x04\0\0" + syncsafe(len(frame)) + frame


def flac_claiming(frames: int, data: bytes) -> bytes:
    """Another number of samples in the header of a FLAC: 36 bits from the second half of byte 21."""
    return data[:21] + bytes([data[21] & 0xF0 | frames >> 32]) + struct.pack(">I", frames & 0xFFFFFFFF) + data[26:]


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def mp4(samples: int, edits: int = 0, compressed: bool = False) -> bytes:
    """An MP4 of AAC whose index claims so many samples of one byte, all in one chunk."""
    config = "03808080220001000480808014401500000000010000000100000580808002121006808080"
    esds = box(b"esds", bytes(4), bytes.fromhex(config), b"\x01\x02")
    entry = box(b"mp4a", bytes(6), struct.pack(">HHHIHHHHI", 1, 0, 0, 0, 2, 16, 0, 0, RATE << 16), esds)
    table = box(
        b"stbl",
        box(b"stsd", bytes(4), struct.pack(">I", 1), entry),
        box(b"stts", bytes(4), struct.pack(">III", 1, samples, 2)),
        box(b"stsc", bytes(4), struct.pack(">IIII", 1, 1, samples, 1)),
        box(b"stsz", bytes(4), struct.pack(">II", 1, samples)),
        box(b"stco", bytes(4), struct.pack(">II", 1, 8)),
    )
    media = box(
        b"mdia",
        box(b"mdhd", bytes(12), struct.pack(">IIHH", RATE, 1024, 0, 0)),
        box(b"hdlr", bytes(8), b"soun", bytes(13)),
        box(b"minf", table),
    )
    edit = box(b"edts", box(b"elst", bytes(4), struct.pack(">I", edits), struct.pack(">IiI", 10**6, 0, 65536) * edits))
    header = box(b"tkhd", b"\0\0\0\x07", bytes(8), struct.pack(">II", 1, 0), bytes(68))
    movie = box(b"mvhd", bytes(12), struct.pack(">II", 1000, 1000), bytes(80))
    moov = box(b"moov", movie, box(b"trak", header, edit, media))
    if compressed:
        packed = zlib_bomb(200)
        moov = box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", 200 * 2**20), packed)))
    return box(b"ftyp", b"isom", bytes(4), b"isom") + moov + box(b"mdat", bytes(2000))


def test_bombs_take_no_memory_and_little_time(tmp_path: Path) -> None:
    silence = np.zeros((1, 601 * 48_000), np.int16)
    mp3 = sound(stereo(), RATE, "MP3")
    flac = sound(np.zeros((1, 10), np.float32), RATE, "FLAC")
    alac = encoded(stereo(), RATE, "ipod", "alac")
    # The frame length in the codec's configuration: 4096, behind the second "alac" and 4 zeros.
    assert alac.count(b"alac\0\0\0\0\0\0\x10\0") == 1
    bombs = {
        "00-small": (sound(stereo()), "sound"),
        "01-flac-header": (flac_claiming(2**36 - 1, flac[:97]), "unsupported_media"),
        "02-flac-silence": (sound(silence, 48_000, "FLAC"), "audio_too_long"),
        "03-flac-384-khz": (sound(np.zeros((2, 76 * 384_000), np.int16), 384_000, "FLAC"), "audio_too_long"),
        "04-mka-silence": (encoded(silence.astype(np.float32), 48_000, "matroska", "flac", "mono"), "audio_too_long"),
        "05-wav-channels": (MALFORMED["65535 channels"], "unsupported_media"),
        "06-wav-claims": (MALFORMED["data too long"], "sound"),
        "07-sbagen": (PLAYLISTS["sbagen"].encode(), "unsupported_media"),
        "08-id3-mp3": (id3_bomb() + mp3, "sound"),
        "09-id3-aac": (encoded(stereo(), RATE, "adts", "aac") + id3_bomb(), "sound"),
        "10-mp4-index": (mp4(100_000_000), "unsupported_media"),
        "11-mp4-edits": (mp4(400_000, edits=200), "unsupported_media"),
        "12-mp4-cmov": (mp4(1, compressed=True), "unsupported_media"),
        "13-mp4-allowed-index": (mp4(2**20), "unsupported_media"),
        "14-alac": (
            alac.replace(b"alac\0\0\0\0\0\0\x10\0", b"alac\0\0\0\0\x00\xff\xff\xff"),
            "unsupported_media",
        ),
        "15-id3-mp4": (b"ID3\x04ftyp" + bytes(3) + mp4(100_000_000), "unsupported_media"),
        "16-id3-claims": (b"ID3\x04\0\0\x7f\x7f\x7f\x7f" * 1000, "unsupported_media"),
    }
    check_bombs("audio", bombs, tmp_path, seconds=3, mb=100)


# --- fit


def test_fit_cuts_and_fills() -> None:
    samples = np.stack([np.arange(1, 101), -np.arange(1, 101)]).astype(np.float32)
    waveform = Waveform(samples, 100)
    assert waveform.seconds == 1
    assert (fit(waveform, 0, 1).samples == samples).all()
    assert (fit(waveform, 0.25, 0.5).samples == samples[:, 25:75]).all()
    late = fit(waveform, 0.75, 0.5)
    assert late.samples.shape == (2, 50)
    assert (late.samples[:, :25] == samples[:, 75:]).all()
    assert not late.samples[:, 25:].any()
    for start in (1, 7.5, 1e9):
        silence = fit(waveform, start, 0.3)
        assert silence.samples.shape == (2, 30)
        assert not silence.samples.any()
    assert late.sample_rate == 100
    assert late.samples.dtype == np.float32


def test_fit_rounds_to_the_nearest_sample() -> None:
    waveform = Waveform(np.ones((1, 100_000), np.float32), 44_100)
    assert fit(waveform, 0, Fraction(121 * 1001, 24_000)).samples.shape == (1, 222_560)  # 222559.8
    assert fit(waveform, 0, 1.00001).samples.shape == (1, 44_100)
    assert fit(waveform, 0, 1.00002).samples.shape == (1, 44_101)
    assert fit(Waveform(np.arange(10, dtype=np.float32)[None], 10), 0.26, 0.2).samples.tolist() == [[3, 4]]


def test_fit_does_not_share_memory() -> None:
    waveform = Waveform(np.ones((1, 100), np.float32), 100)
    fit(waveform, 0, 1).samples[:] = 0
    assert waveform.samples.all()


@pytest.mark.parametrize(("old", "new"), [(8000, 48_000), (44_100, 48_000), (384_000, 24_000), (4000, 384_000)])
@pytest.mark.parametrize("length", [1, 10, 100])
def test_the_shortest_sounds_have_a_rate_that_can_be_changed(old: int, new: int, length: int) -> None:
    short = Waveform(np.full((2, length), 0.5, np.float32), old)
    changed = change_rate(short, new)
    assert changed.sample_rate == new
    assert abs(changed.samples.shape[1] - length * new / old) < 1 + 1e-9
