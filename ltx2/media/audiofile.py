"""A sound file as blocks of samples: libsndfile reads what it knows, FFmpeg the rest.

FFmpeg's demuxers believe what a file says about itself. Each of these was made to fill gigabytes by a file of
a few kilobytes: ID3 tags, whose compressed frames are all kept; the index of an MP4, allocated by the number
of samples it claims; and a compressed MP4 index. So none of them gets there.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from ltx2.errors import UnsupportedMedia

Samples = NDArray[np.float32]

_RATES: Final = range(4_000, 384_001)
_MAX_CHANNELS: Final = 8
_BLOCK: Final = 2**16
"""Samples of all channels that are read at a time."""
MAX_INDEX_ENTRIES: Final = 2**20
"""Of an MP4. About 40 bytes each."""
_MAX_ALAC_FRAME: Final = 2**16
"""Samples; encoders write 4096."""
_CODECS: Final = ("aac", "ac3", "alac", "eac3", "flac", "libopus", "mp3", "mp3float", "opus", "vorbis")
_ORDERS: Final = {
    3: "FL FR FC",
    4: "FL FR BL BR",
    5: "FL FR FC BL BR",
    6: "FL FR FC LFE BL BR",
    7: "FL FR FC LFE BC SL SR",
    8: "FL FR FC LFE BL BR SL SR",
}
"""What the channels of a file are, by their number."""
_OGG_ORDERS: Final = {
    3: "FL FC FR",
    4: "FL FR BL BR",
    5: "FL FC FR BL BR",
    6: "FL FC FR BL BR LFE",
    7: "FL FC FR SL SR BC LFE",
    8: "FL FC FR SL SR BL BR LFE",
}
_PLAIN_CODECS: Final = (1, 3, 0xFFFE)
"""Of a WAV: integers, floats, either."""
_ADTS_HEADER: Final = 7
_COUNTED: Final = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4}
"""Boxes of an MP4, and how far behind the name stands the number of index entries they ask for."""
_COUNTED_BOX: Final = re.compile(b"|".join(_COUNTED))


@dataclass(frozen=True)
class Block:
    """A decoded piece of a file: ``[channels, samples]``, full scale is ±1."""

    rate: int
    samples: Samples
    order: Sequence[str]
    """What each of more than two channels is, as FFmpeg calls it."""


def read_soundfile(data: bytes, name: str) -> Iterator[Block]:
    """The blocks of a WAV, Wave64, FLAC, OGG or MP3 file (``name`` is its kind), by libsndfile.

    Raises:
        UnsupportedMedia: its sample rate or number of channels.
        soundfile.LibsndfileError, ValueError, struct.error: it is damaged.
    """
    if name == "wav":
        _check_wav(data)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        _check_format(file.samplerate, file.channels)
        order = (_OGG_ORDERS if name == "ogg" else _ORDERS).get(file.channels, "").split()
        while len(block := file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)):
            yield Block(file.samplerate, block.T, order)


def read_ffmpeg(data: bytes, name: str) -> Iterator[Block]:
    """The blocks of the first sound track of an AAC, FLAC, MP4 or Matroska file (``name`` is its kind).

    Raises:
        UnsupportedMedia: it has no sound, or of a codec, sample rate or number of channels not taken.
        Exception: of many kinds, when it is damaged.
    """
    if name == "mov" and index_entries(data) > MAX_INDEX_ENTRIES:
        raise UnsupportedMedia("an MP4 or QuickTime file with an oversized index", hint="send the sound as WAV or M4A")
    if name == "aac":
        data = _adts_frames(data)
    # Only the one demuxer; and no decoder before the tracks are known: one of a video could take any memory.
    options = {"format_whitelist": name, "protocol_whitelist": "none", "codec_whitelist": "none"}
    with av.open(io.BytesIO(data), "r", options=options) as container:
        if not container.streams.audio:
            raise UnsupportedMedia("a video without sound")
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec.name not in _CODECS and not codec.name.startswith("pcm_"):
            raise UnsupportedMedia(f"sound encoded as {codec.name}", hint="send it as WAV, FLAC, MP3 or AAC")
        if codec.name == "alac" and int.from_bytes((codec.extradata or b"")[12:16]) > _MAX_ALAC_FRAME:
            raise ValueError("frames are allocated by their claimed length")
        if codec.sample_rate:
            _check_format(codec.sample_rate, codec.channels)
        for frame in container.decode(stream):
            _check_format(frame.sample_rate, frame.layout.nb_channels)
            yield Block(frame.sample_rate, _floats(frame), [channel.name for channel in frame.layout.channels])


Reader = Callable[[bytes, str], Iterator[Block]]
READERS: Final[dict[str, tuple[Reader, ...]]] = {
    "wav": (read_soundfile,),
    "w64": (read_soundfile,),
    "ogg": (read_soundfile,),
    "mp3": (read_soundfile,),
    # libsndfile fails when the header has no or a wrong length, as in a streamed file.
    "flac": (read_soundfile, read_ffmpeg),
    "aac": (read_ffmpeg,),
    "mov": (read_ffmpeg,),
    "matroska": (read_ffmpeg,),
}
"""Who reads which kind, in the order to try."""


def _check_format(rate: int, channels: int) -> None:
    if rate not in _RATES or not 1 <= channels <= _MAX_CHANNELS:
        raise UnsupportedMedia(
            f"a sound of {channels} channels at {rate} Hz",
            hint=f"send 1 to {_MAX_CHANNELS} channels at {_RATES[0]} to {_RATES[-1]} Hz",
        )


def _check_wav(data: bytes) -> None:
    """Refuse plain samples whose block size does not go with their bits: libsndfile would read noise."""
    order = ">" if data.startswith(b"RIFX") else "<"
    codec, channels, _, block, bits = struct.unpack_from(order + "HHQHH", data, data.index(b"fmt ", 12) + 8)
    if codec in _PLAIN_CODECS and block != channels * -(-bits // 8):
        raise ValueError("the block size")


def _floats(frame: av.AudioFrame) -> Samples:
    values: NDArray[np.generic] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    with np.errstate(over="ignore"):  # too large a float64 becomes infinite, which is refused later
        floats = values.astype(np.float32)
    if np.issubdtype(values.dtype, np.floating):
        return floats
    bits = 8 * values.dtype.itemsize
    unsigned = np.issubdtype(values.dtype, np.unsignedinteger)
    return np.float32(2.0 ** (1 - bits)) * floats - np.float32(unsigned)


def _adts_frames(data: bytes) -> bytes:
    """The AAC frames at the beginning of an ADTS stream, without the tags before and after them."""
    at = 0
    while at + _ADTS_HEADER <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0:
        length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        if length < _ADTS_HEADER:
            break
        at += length
    return data[:at]


def index_entries(data: bytes) -> int:
    """How many entries FFmpeg would make for the index of an MP4, at most.

    Raises:
        ValueError: the index is compressed, so there is no telling.
    """
    samples, edits = 0, 0
    for start, end in _boxes(data):
        if data.find(b"cmov", start, end) >= 0:
            raise ValueError("a compressed index")
        # Boxes are looked for at any depth and place: FFmpeg, too, takes them where it finds them.
        for box in _COUNTED_BOX.finditer(data, start, end):
            at = box.end() + _COUNTED[box.group()]
            count = int.from_bytes(data[at : at + 4])
            # An edit can repeat the whole index of its track. A picture and a sound have one each.
            if box.group() == b"elst":
                edits += count
            else:
                samples += count
    return samples * max(1, edits // 2)


def _boxes(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of each outermost box except those that hold the media itself."""
    at = 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        end = at + size if size >= 8 else len(data)
        if name != b"mdat":
            yield at, end
        at = end
