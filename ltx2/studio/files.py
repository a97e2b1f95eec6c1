"""Files: what callers sent and what was made for them. The bytes lie in a store, the records in the database.

A record is written after its bytes and removed before them, so that whoever finds a record finds the bytes.
"""

import logging
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, or_, select

from ltx2.errors import LTX2Error, NotFound, StorageFull
from ltx2.media.sniff import kind
from ltx2.settings import Settings
from ltx2.studio.database import Database, files, jobs
from ltx2.studio.job import TERMINAL, new_id
from ltx2.studio.storage import Storage, is_id

log = logging.getLogger(__name__)

UNKNOWN: Final = "application/octet-stream"
_TYPES: Final = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "mov": "video/mp4",
    "json": "application/json",
    "text": "text/plain",
}
"""By the kind of the bytes. Web pages and drawings are missing: a browser would run what strangers wrote in them."""
_EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "audio/mpeg": "mp3",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "text/plain": "txt",
    UNKNOWN: "bin",
}
"""Where it is not the end of the type."""
# enough to tell what it is, unless there is an album cover before the sound
_HEAD: Final = 2**20
_LONGEST_NAME: Final = 200
# control characters, what turns the direction of writing, surrogates, line and paragraph separators
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class FileRecord:
    """A file as it is written down."""

    id: str
    owner: str
    filename: str
    """To be shown; never part of a path. Without quotes, slashes and control characters."""
    content_type: str
    """By its content, whatever the caller said."""
    size: int
    """Bytes."""
    created_at: float
    """Unix time."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else is to be kept with it: JSON."""
    expires_at: float | None = None
    """When it is removed, where that is before the server would do so. Up to a minute later, in truth."""


def insert_file(connection: Connection, record: FileRecord) -> None:
    """Write a record down within a transaction."""
    connection.execute(insert(files), asdict(record))


def content_type(data: bytes) -> str:
    """A media type that is safe to be served with.

    Args:
        data: all of a file, or its beginning.
    """
    name = kind(data)
    if name == "matroska":
        # the document type is one of the first things in the header
        return "video/webm" if b"webm" in data[:128] else "video/x-matroska"
    if data[4:12] == b"ftypqt  ":
        return "video/quicktime"
    return _TYPES.get(name, UNKNOWN)


def display_name(given: str | None, default: str) -> str:
    """The name a caller gave a file, as far as it can be shown and put into a header."""
    last = (given or "").replace("\\", "/").rpartition("/")[2]
    seen = "".join(char for char in last if char not in "\"'" and unicodedata.category(char) not in _UNSEEN)
    name = seen.strip(" .")
    if len(name) > _LONGEST_NAME:
        suffix = PurePosixPath(name).suffix
        extension = suffix if len(suffix) < 16 else ""
        name = name[: _LONGEST_NAME - len(extension)] + extension
    return name or default


class Files:
    """Records and bytes together. Usable from any thread."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings

    def add(
        self, data: bytes, *, owner: str, filename: str | None, meta: Mapping[str, Any] | None = None
    ) -> FileRecord:
        """Keep bytes as a new file.

        Raises:
            StorageFull: there is no room; nothing was kept.
        """
        record = _describe(data, len(data), owner, filename, meta)
        self._storage.put(record.id, data)
        try:
            with self._database.write() as connection:
                insert_file(connection, record)
        except BaseException:
            self.discard(record)
            raise
        return record

    def adopt(
        self,
        path: Path,
        *,
        owner: str,
        filename: str | None,
        meta: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> FileRecord:
        """Take over a finished local file. Its record is to be written with :func:`insert_file`, or discarded.

        Args:
            path: of the file.
            owner: whose it is.
            filename: to be shown.
            meta: JSON.
            seconds: how long it is kept; None as long as all files are.

        Raises:
            StorageFull: there is no room; the file is still where it was.
        """
        with path.open("rb") as file:
            head = file.read(_HEAD)
        record = _describe(head, path.stat().st_size, owner, filename, meta)
        if seconds is not None:
            record = replace(record, expires_at=record.created_at + seconds)
        self._storage.adopt(record.id, path)
        return record

    def discard(self, record: FileRecord) -> None:
        """Remove the bytes of a file whose record was not written."""
        # the store has logged it, and who discards has worse to tell
        with suppress(LTX2Error):
            self._storage.delete(record.id)

    def get(self, file_id: str, owner: str) -> FileRecord:
        """Raises NotFound: there is none, or it is somebody else's."""
        with self._database.read() as connection:
            return _find(connection, file_id, owner)

    def read(self, file_id: str, owner: str) -> bytes:
        """Raises NotFound: there is none, or it is somebody else's."""
        return self._storage.read(self.get(file_id, owner).id)

    def open(self, file_id: str, owner: str) -> tuple[FileRecord, IO[bytes]]:
        """A file, to be read and closed by the caller. Who deletes it meanwhile does no harm.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        record = self.get(file_id, owner)
        return record, self._storage.open(record.id)

    @contextmanager
    def local(self, file_id: str, owner: str) -> Iterator[tuple[FileRecord, Path]]:
        """A file with a path to read it from, good within the context, unless somebody deletes it.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        record, file = self.open(file_id, owner)
        with file:
            yield record, Path(file.name)

    def delete(self, file_id: str, owner: str) -> None:
        """Raises NotFound: there is none, or it is somebody else's."""
        with self._database.write() as connection:
            record = _find(connection, file_id, owner)
            connection.execute(delete(files).where(files.c.id == record.id))
        self._remove([record])

    def sweep(self, now: float) -> int:
        """Remove files that are older than they may be. Returns how many.

        What a job that has not ended yet is to use stays.
        """
        old = files.c.expires_at < now
        if self._settings.files_hours:
            old |= files.c.created_at < now - self._settings.files_hours * 3600
        with self._database.write() as connection:
            waiting = connection.execute(select(jobs.c.inputs).where(jobs.c.state.not_in(TERMINAL))).scalars()
            used = {file_id for inputs in waiting for file_id in inputs.values()}
            gone = [_record(row) for row in connection.execute(select(files).where(old)) if row.id not in used]
            if gone:
                each = [{"gone": record.id} for record in gone]
                connection.execute(delete(files).where(files.c.id == bindparam("gone")), each)
        self._remove(gone)
        return len(gone)

    def remove_orphans(self) -> int:
        """Remove what a killed process left: bytes without a record, and half-written ones. Returns how many.

        To be called before anything is added. A place that others may use too is left alone, and so is everything
        where the records are in another database than before: to that, all of it would be orphans.
        """
        if self._storage.shared or not self._is_home():
            return 0
        partial = self._storage.remove_partial()
        there = set(self._storage.ids())
        with self._database.read() as connection:
            orphans = there.difference(connection.execute(select(files.c.id)).scalars())
        for file_id in orphans:
            self._storage.delete(file_id)
        return partial + len(orphans)

    def _is_home(self) -> bool:
        """Whether the records of the files that lie here are in this database."""
        note = self._settings.data_dir / "files-database"
        if not note.exists():
            note.write_text(self._database.id)
        is_home = note.read_text() == self._database.id
        if not is_home:
            log.warning("the files are those of another database and stay; remove %s to make them this one's", note)
        return is_home

    def check_room(self) -> None:
        """Raises StorageFull: all files together are as large as they may be."""
        with self._database.read() as connection:
            held = connection.execute(select(func.coalesce(func.sum(files.c.size), 0))).scalar_one()
        if held >= self._settings.files_max_gb * 1e9:
            raise StorageFull(
                f"the server keeps {self._settings.files_max_gb:g} GB of files, and no more",
                hint="delete files that are no longer needed, or raise LTX2_FILES_MAX_GB",
            )

    # last, since in the class its name hides the type's
    def list(self, owner: str, *, limit: int = 1000, after: str | None = None) -> list[FileRecord]:
        """The files of an owner, the newest first.

        Args:
            owner: whose.
            limit: how many at most.
            after: id of the file before the first one, to go on where a list ended.

        Raises:
            NotFound: there is no such file to go on from.
        """
        mine = files.c.owner == owner
        with self._database.read() as connection:
            if after is not None:
                last = _find(connection, after, owner, field="after")
                earlier = files.c.created_at < last.created_at
                beside = and_(files.c.created_at == last.created_at, files.c.id > last.id)
                mine &= or_(earlier, beside)
            newest = select(files).where(mine).order_by(files.c.created_at.desc(), files.c.id).limit(limit)
            return [_record(row) for row in connection.execute(newest)]

    def _remove(self, records: Iterable[FileRecord]) -> None:
        """Remove the bytes of files whose records are gone. Those that the store keeps get their records back."""
        left = [*records]
        try:
            while left:
                self._storage.delete(left[-1].id)
                left.pop()
        except BaseException:
            with self._database.write() as connection:
                for record in left:
                    insert_file(connection, record)
            raise


def _describe(head: bytes, size: int, owner: str, filename: str | None, meta: Mapping[str, Any] | None) -> FileRecord:
    file_id, found = new_id("file"), content_type(head)
    extension = _EXTENSIONS.get(found) or found.partition("/")[2]
    name = display_name(filename, f"{file_id}.{extension}")
    return FileRecord(file_id, owner, name, found, size, time.time(), dict(meta or {}))


def _find(connection: Connection, file_id: str, owner: str, field: str | None = None) -> FileRecord:
    # some databases stumble over texts that are no ids
    if is_id(file_id):
        mine = (files.c.id == file_id) & (files.c.owner == owner)
        row = connection.execute(select(files).where(mine)).one_or_none()
        if row is not None:
            return _record(row)
    raise NotFound("there is no such file", field=field, hint="files are removed after LTX2_FILES_HOURS")


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(
        row.id, row.owner, row.filename, row.content_type, row.size, row.created_at, row.meta, row.expires_at
    )
