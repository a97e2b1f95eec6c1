"""Files that appear under their name when they are complete, or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import av

from ltx2.errors import StorageFull

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write to. After the block the file there is ``path``; if it raises, nothing of it is left.

    Args:
        path: the file to make or replace; its folder exists.

    Raises:
        StorageFull: the disk, the quota or the largest allowed file is full.
    """
    partial = path.absolute().with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, av.FFmpegError) as error:
        if error.errno in _FULL:
            raise StorageFull("the disk is full: the clip could not be written") from error
        raise
    finally:
        partial.unlink(missing_ok=True)
