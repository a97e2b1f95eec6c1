"""What of a sound file may reach FFmpeg: its demuxers believe what a file says about itself.

Each of these was made to fill gigabytes by a file of a few kilobytes: ID3 tags, whose compressed frames are
all kept; the index of an MP4, allocated by the number of samples it claims; and a compressed MP4 index.
"""

import re
from collections.abc import Iterator
from typing import Final

_ADTS_HEADER: Final = 7
# Boxes of an MP4, and where behind its name the number of index entries stands that a box asks for. Edits
# (elst) are among them, since each can repeat the whole index.
_COUNTED: Final = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4}
_COUNTED_BOX: Final = re.compile(b"|".join(_COUNTED))


def adts_frames(data: bytes) -> bytes:
    """The AAC frames at the beginning of an ADTS stream, without the tags before and after them."""
    at = 0
    while at + _ADTS_HEADER <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0:
        length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        if length < _ADTS_HEADER:
            break
        at += length
    return data[:at]


def mp4_index_entries(data: bytes) -> int:
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
            if box.group() == b"elst":
                edits += count
            else:
                samples += count
    return samples * max(1, edits)


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
