"""Which jobs are in hand at RunPod, written down: a server that was killed does not pay for them twice."""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from ltx2.errors import LTX2Error
from ltx2.fleet.parcel import KEY
from ltx2.fleet.remote import ID
from ltx2.media.partial import written_beside
from ltx2.request import Strict

log = logging.getLogger(__name__)

SECONDS_KEPT: Final = 86_400.0
"""RunPod keeps results for half an hour, and jobs that wait for a day."""


class _Written(Strict):
    """What is in the file of a note."""

    id: Annotated[str, Field(pattern=ID)]
    media: tuple[Annotated[str, Field(pattern=KEY)], ...]


class Note:
    """The job at RunPod that stands for one generation, or the place where it will be noted."""

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        """The same for the same generation."""
        self._path = path
        self.job: str | None = None
        self.media: tuple[str, ...] = ()
        """What lies in the bucket until it is over."""
        with contextlib.suppress(OSError, ValidationError):
            read = _Written.model_validate_json(path.read_bytes())
            self.job, self.media = read.id, read.media

    def write(self, job: str, media: tuple[str, ...]) -> None:
        """A job was begun. A disk that takes nothing does not end it."""
        self.job, self.media = job, media
        try:
            with written_beside(self._path) as partial:
                partial.write_text(_Written(id=job, media=media).model_dump_json())
        except (OSError, LTX2Error):
            log.warning("job %s at RunPod could not be noted: it would be lost with this server", job)

    def remove(self) -> None:
        """The job is over, or nobody wants it any more."""
        self.job, self.media = None, ()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class Notes:
    """The notes of one server. Any thread may call it.

    Args:
        folder: where they lie; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._held: set[Path] = set()

    def sweep(self) -> None:
        """Remove what no job is left for."""
        before = time.time() - SECONDS_KEPT
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)

    @contextmanager
    def held(self, key: str) -> Iterator[Note]:
        """A note for a generation, which nobody else has within this.

        One that an earlier server has left comes first. Of the same generation there may be several at a time.

        Raises:
            OSError: the folder cannot be made.
        """
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            left = [path for path in sorted(self._folder.glob(f"{key}-*.json")) if path not in self._held]
            path = left[0] if left else self._folder / f"{key}-{uuid.uuid4().hex[:8]}.json"
            self._held.add(path)
        try:
            yield Note(key, path)
        finally:
            with self._lock:
                self._held.discard(path)
