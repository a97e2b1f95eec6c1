"""From the bytes of a sound to its samples."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from ltx2.errors import AudioTooLong, LTX2Error, UnsupportedMedia
from ltx2.media.audiofile import adts_frames, mp4_index_entries
from ltx2.media.sniff import describe, kind, skip_id3

Samples = NDArray[np.float32]

_RATES: Final = range(4_000, 384_001)
_MAX_CHANNELS: Final = 8
_USUAL_RATE: Final = 48_000
_MIN_VALUES: Final = 2**24
_BLOCK: Final = 2**16
_MAX_INDEX_ENTRIES: Final = 2**20
_MAX_ALAC_FRAME: Final = 2**16
_CODECS: Final = ("aac", "ac3", "alac", "eac3", "flac", "libopus", "mp3", "mp3float", "opus", "vorbis")
# In which order channels come, by their number.
_ORDERS: Final = (
    "FL FR FC",
    "FL FR BL BR",
    "FL FR FC BL BR",
    "FL FR FC LFE BL BR",
    "FL FR FC LFE BC SL SR",
    "FL FR FC LFE BL BR SL SR",
)
_OGG_ORDERS: Final = (
    "FL FC FR",
    "FL FR BL BR",
    "FL FC FR BL BR",
    "FL FC FR BL BR LFE",
    "FL FC FR SL SR BC LFE",
    "FL FC FR SL SR BL BR LFE",
)


@dataclass(frozen=True)
class Waveform:
    """A sound. ``samples`` is ``[channels, samples]`` with 1 or 2 channels, full scale is ±1."""

    samples: Samples
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.samples.shape[1] / self.sample_rate


def decode_audio(data: bytes, *, field: str, max_seconds: float) -> Waveform:
    """The sound in a WAV, FLAC, OGG, MP3, AAC, M4A, MP4, MOV, MKA or WEBM file, at its own rate.

    One and two channels stay as they are. More are mixed to stereo: left and right as they are, centre and
    surround at 0.707, no LFE, the sum scaled down so that it cannot clip. Integers are scaled to ±1; float
    files are not clipped.

    Raises:
        UnsupportedMedia: it is something else, without sound, damaged, not between 4 and 384 kHz, or has
            values that are not numbers.
        AudioTooLong: more than ``max_seconds``, or, at unusual rates, more than the memory for that many
            seconds of 48 kHz stereo (64 MiB are always allowed).
    """
    name, found = kind(data), describe(data)
    if name not in _READERS:
        raise UnsupportedMedia(
            f"expected a sound (WAV, FLAC, OGG, MP3, AAC, M4A, MP4, MKA or WEBM), found {found}", field=field
        )
    data = data[skip_id3(data) :]
    try:
        for read in _READERS[name]:
            try:
                return _decode(lambda read=read: read(data, name), found, max_seconds)
            except LTX2Error:
                raise
            except Exception:  # noqa: BLE001 - whatever a decoder trips over, it is these bytes
                continue
        raise UnsupportedMedia(f"{found} that is damaged or incomplete")
    except LTX2Error as error:
        error.field = field
        raise


def fit(waveform: Waveform, start_seconds: float, seconds: float | Fraction) -> Waveform:
    """The part from ``start_seconds`` on, cut or filled with silence to ``seconds``.

    Both are rounded to the nearest sample. A start behind the end gives silence.
    """
    rate = waveform.sample_rate
    start, length = round(start_seconds * rate), round(seconds * rate)
    part = waveform.samples[:, start : start + length]
    samples = np.zeros((part.shape[0], length), np.float32)
    samples[:, : part.shape[1]] = part
    return Waveform(samples, rate)


@dataclass(frozen=True)
class _Block:
    """A decoded piece: ``[channels, samples]`` of a file."""

    rate: int
    samples: Samples
    order: Sequence[str]
    """What each channel is, as FFmpeg calls it."""


def _decode(read: Callable[[], Iterator[_Block]], found: str, max_seconds: float) -> Waveform:
    # Twice: a header may claim anything and a small file may unfold to hours, so the samples are counted
    # before memory is taken for them.
    rate = channels = length = 0
    for block in read():
        size = block.samples.shape[1]
        if length and (block.rate, min(2, len(block.samples))) != (rate, channels):
            raise ValueError("the format changes midway")
        rate, channels, length = block.rate, min(2, len(block.samples)), length + size
        if length > max_seconds * rate or length * channels > max(max_seconds * _USUAL_RATE * 2, _MIN_VALUES):
            raise AudioTooLong(
                f"{found} of more than {length / rate:.5g} seconds at {rate} Hz, longer than allowed here",
                hint=f"send at most {max_seconds:g} seconds; the server's limit is LTX2_MAX_AUDIO_SECONDS",
            )
        if not np.isfinite(block.samples).all():
            raise UnsupportedMedia(f"{found} with values that are not finite numbers")
    if not length:
        raise UnsupportedMedia(f"{found} without any samples")
    samples = np.empty((channels, length), np.float32)
    at = 0
    for block in read():
        mixed = _mix(block)
        samples[:, at : at + mixed.shape[1]] = mixed
        at += mixed.shape[1]
    if at != length:
        raise ValueError("two lengths")
    return Waveform(samples, rate)


def _mix(block: _Block) -> Samples:
    if len(block.samples) <= 2:
        return block.samples
    weights = np.array([_weights(name) for name in block.order], np.float32).T
    mixed: Samples = weights @ block.samples / max(1, weights.sum(1).max())
    return mixed


def _weights(channel: str) -> tuple[float, float]:
    """How much of a channel goes to the left and to the right (ITU-R BS.775)."""
    if channel in ("FL", "FR"):
        return float(channel == "FL"), float(channel == "FR")
    if channel.startswith("LFE"):
        return 0.0, 0.0
    left, right = "L" in channel, "R" in channel
    return 0.5**0.5 * (left or not right), 0.5**0.5 * (right or not left)


def _check_format(rate: int, channels: int) -> None:
    if rate not in _RATES or not 1 <= channels <= _MAX_CHANNELS:
        raise UnsupportedMedia(
            f"a sound of {channels} channels at {rate} Hz",
            hint=f"send 1 to {_MAX_CHANNELS} channels at {_RATES[0]} to {_RATES[-1]} Hz",
        )


def _read_soundfile(data: bytes, name: str) -> Iterator[_Block]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        _check_format(file.samplerate, file.channels)
        orders = _OGG_ORDERS if name == "ogg" else _ORDERS
        order = orders[file.channels - 3].split() if file.channels > 2 else ()
        while len(block := file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)):
            yield _Block(file.samplerate, block.T, order)


def _read_av(data: bytes, name: str) -> Iterator[_Block]:
    if name == "mov" and mp4_index_entries(data) > _MAX_INDEX_ENTRIES:
        raise UnsupportedMedia("an MP4 or QuickTime file with an oversized index", hint="send the sound as WAV or M4A")
    if name == "aac":
        data = adts_frames(data)
    # No decoder while looking what is in it: a video track could ask for any amount of memory.
    options = {"format_whitelist": name, "protocol_whitelist": "none", "codec_whitelist": "none"}
    with av.open(io.BytesIO(data), "r", options=options) as container:
        if not container.streams.audio:
            raise UnsupportedMedia("a video without sound")
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec.name not in _CODECS and not codec.name.startswith("pcm_"):
            raise UnsupportedMedia(f"sound encoded as {codec.name}", hint="send it as WAV, FLAC, MP3 or AAC")
        if codec.name == "alac" and int.from_bytes((codec.extradata or b"")[12:16]) > _MAX_ALAC_FRAME:
            raise ValueError("a frame is allocated by its claimed length")
        if codec.sample_rate:
            _check_format(codec.sample_rate, codec.channels)
        for frame in container.decode(stream):
            _check_format(frame.sample_rate, frame.layout.nb_channels)
            yield _Block(frame.sample_rate, _floats(frame), [channel.name for channel in frame.layout.channels])


def _floats(frame: av.AudioFrame) -> Samples:
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # found by the check for finite values
            return values.astype(np.float32)
    if values.dtype.kind == "u":
        return (values.astype(np.float32) - 128) / 128
    return values.astype(np.float32) / -float(np.iinfo(values.dtype).min)


# libsndfile reads what it knows; FFmpeg the rest, and FLAC whose header has a wrong length.
_READERS: Final = {
    "wav": (_read_soundfile,),
    "w64": (_read_soundfile,),
    "ogg": (_read_soundfile,),
    "mp3": (_read_soundfile,),
    "flac": (_read_soundfile, _read_av),
    "aac": (_read_av,),
    "mov": (_read_av,),
    "matroska": (_read_av,),
}
