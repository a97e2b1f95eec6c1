"""Where the bytes of files lie: a local folder, or a bucket. Who owns them is written elsewhere."""

import errno
import io
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any, Final, Protocol

from ltx2.errors import LTX2Error, NotFound, NotReady, StorageFull
from ltx2.settings import Settings

log = logging.getLogger(__name__)

PART: Final = ".part"
"""What is being written has this at the end of its name."""

_ID: Final = re.compile(r"file_[0-9a-f]{32}")
# no space, no quota, no larger file
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# s3fs tries five times itself: five times five would let a caller wait for minutes
_S3: Final[Mapping[str, Any]] = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 2}}}


def is_id(text: str) -> bool:
    """Whether a text may be a file's id. No other is ever made a path."""
    return _ID.fullmatch(text) is not None


class Storage(Protocol):
    """Keeps bytes by file id. Usable from any thread.

    All methods raise NotReady when the store does not answer, and those that write StorageFull when it has no room.
    A file is seen when all of it is there, and not before.
    """

    shared: bool
    """Whether others may keep files in the same place, so that one that nobody here knows is not rubbish."""

    def put(self, file_id: str, data: bytes) -> None: ...

    def adopt(self, file_id: str, path: Path) -> None:
        """Take over a finished local file; it is gone from its place when this ends well."""

    def read(self, file_id: str) -> bytes:
        """Raises NotFound: there is none."""

    def open(self, file_id: str) -> IO[bytes]:
        """To be read and closed by the caller, whatever becomes of what is stored. Its name is a path.

        Raises:
            NotFound: there is none.
        """

    def exists(self, file_id: str) -> bool: ...

    def delete(self, file_id: str) -> None:
        """One that is not there is fine."""

    def ids(self) -> Iterator[str]:
        """All files that lie there."""

    def remove_partial(self) -> int:
        """Remove what a killed process left half-written. To be called while nothing is being written."""


def open_storage(settings: Settings) -> Storage:
    """The store that the settings name.

    Raises:
        NotReady: it cannot be used; the message says why.
    """
    if settings.files_url is None:
        return LocalStorage(settings.data_dir / "files")
    scheme, _, rest = settings.files_url.rpartition("://")
    if scheme in ("", "file", "local"):
        # fsspec writes local files neither whole nor durably
        return LocalStorage(Path(rest), shared=True)
    return RemoteStorage(settings.files_url, settings.work_dir)


class LocalStorage:
    """A folder. What was written is still there, and whole, when the power fails afterwards.

    Args:
        folder: made when it is not there.
        shared: whether others may keep files in it.

    Raises:
        NotReady: it cannot be made.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.shared = shared
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotReady(
                f"the folder for files cannot be made: {error.strerror}",
                hint="set LTX2_DATA_DIR, or LTX2_FILES_URL, to a folder that this user can write",
            ) from None

    def put(self, file_id: str, data: bytes) -> None:
        target = self._path(file_id)
        with _in_words():
            self._write(target, io.BytesIO(data))

    def adopt(self, file_id: str, path: Path) -> None:
        target = self._path(file_id)
        with _in_words():
            with open(path, "rb", opener=_no_link) as source:
                # a new name must not be safer on the disk than what it names
                os.fsync(source.fileno())
                try:
                    path.rename(target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    self._write(target, source)
                    path.unlink()
            self._sync()

    def read(self, file_id: str) -> bytes:
        with self.open(file_id) as file, _in_words():
            return file.read()

    def open(self, file_id: str) -> IO[bytes]:
        path = self._path(file_id)
        with _in_words(), _missing():
            return open(path, "rb", opener=_regular)

    def exists(self, file_id: str) -> bool:
        path = self._path(file_id)
        with _in_words():
            try:
                # a link is none
                return S_ISREG(path.lstat().st_mode)
            except FileNotFoundError:
                return False

    def delete(self, file_id: str) -> None:
        path = self._path(file_id)
        with _in_words():
            path.unlink(missing_ok=True)

    def ids(self) -> Iterator[str]:
        return (name for name in self._names() if is_id(name))

    def remove_partial(self) -> int:
        left = [name for name in self._names() if name.endswith(PART) and is_id(name.removesuffix(PART))]
        with _in_words():
            for name in left:
                (self._folder / name).unlink(missing_ok=True)
        return len(left)

    def _names(self) -> list[str]:
        with _in_words(), os.scandir(self._folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]

    def _path(self, file_id: str) -> Path:
        return self._folder / _checked(file_id)

    def _write(self, target: Path, source: IO[bytes]) -> None:
        part = target.with_name(target.name + PART)
        try:
            with open(part, "wb", opener=_no_link) as file:
                shutil.copyfileobj(source, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        self._sync()

    def _sync(self) -> None:
        """Make the names in the folder durable, as fsync of a file does not."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RemoteStorage:
    """Any place fsspec knows, such as ``s3://bucket/folder``. Its own environment variables say how to get in.

    What was begun and never finished is for the bucket's lifecycle rules to remove.

    Args:
        url: of the folder.
        work: local folder for files while they are being read.
        patience: seconds an upload may take, and one more for each megabyte.

    Raises:
        NotReady: it cannot be written to and read from; the message has neither the URL nor the credentials.
    """

    shared = True

    def __init__(self, url: str, work: Path, *, patience: float = 60) -> None:
        self._work = work
        self._patience = patience
        hint = "see LTX2_FILES_URL and the AWS_… variables, and whether the bucket is there"
        try:
            # importing s3fs takes long, and nobody needs it who keeps files in a folder
            from fsspec.core import url_to_fs

            # A listing once seen is no news, since others write too. A file system once opened would be
            # used again with the credentials of that time.
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            if url.startswith(("s3:", "s3a:")):
                options |= _S3
            self._fs, root = url_to_fs(url, **options)
            self._root = str(root).rstrip("/")
            self._try()
        except FileNotFoundError:
            raise NotReady("the file store has no such bucket", hint=hint) from None
        except PermissionError:
            raise NotReady("the file store denies access", hint=hint) from None
        except Exception as error:  # noqa: BLE001 - whatever it is: its words may have the URL in them
            raise NotReady(f"the file store cannot be reached ({type(error).__name__})", hint=hint) from None

    def put(self, file_id: str, data: bytes) -> None:
        key = self._key(file_id)
        with _in_words():
            self._fs.pipe_file(key, data, **self._limit(len(data)))

    def adopt(self, file_id: str, path: Path) -> None:
        key = self._key(file_id)
        with _in_words():
            self._fs.put_file(str(path), key, **self._limit(path.stat().st_size))
            path.unlink()

    def read(self, file_id: str) -> bytes:
        key = self._key(file_id)
        with _in_words(), _missing():
            return bytes(self._fs.cat_file(key))

    def open(self, file_id: str) -> IO[bytes]:
        key = self._key(file_id)
        with _in_words():
            self._work.mkdir(parents=True, exist_ok=True)
            file = tempfile.NamedTemporaryFile(prefix="download-", dir=self._work)  # noqa: SIM115 - for the caller
        try:
            with _in_words(), _missing():
                self._fs.get_file(key, file.name)
        except BaseException:
            file.close()
            raise
        return file

    def exists(self, file_id: str) -> bool:
        key = self._key(file_id)
        with _in_words():
            try:
                # not `exists`, which takes a store that does not answer for one that has nothing
                return bool(self._fs.info(key)["type"] == "file")
            except FileNotFoundError:
                return False

    def delete(self, file_id: str) -> None:
        key = self._key(file_id)
        with _in_words(), suppress(FileNotFoundError):
            self._fs.rm_file(key)

    def ids(self) -> Iterator[str]:
        with _in_words():
            names = [str(path).rpartition("/")[2] for path in self._fs.find(self._root, maxdepth=1)]
        return (name for name in names if is_id(name))

    def remove_partial(self) -> int:
        return 0

    def _key(self, file_id: str) -> str:
        return f"{self._root}/{_checked(file_id)}"

    def _limit(self, size: int) -> dict[str, float]:
        """The time limit of an upload. Without, a server that takes connections and is silent would hold us for ever.

        Whatever else is asked of S3 has limits of its own.
        """
        return {"timeout": self._patience + size / 1e6} if self._fs.async_impl else {}

    def _try(self) -> None:
        """Do what will be done to files. Asking for the bucket needs rights that this does not, and gives no others."""
        key = f"{self._root}/probe_{secrets.token_hex(8)}"
        self._fs.pipe_file(key, b"written to see whether it can be", **self._limit(0))
        self._fs.cat_file(key)
        self._fs.rm_file(key)


def _checked(file_id: str) -> str:
    # ids of callers are looked up in the database first: another one here is a bug
    if not is_id(file_id):
        raise ValueError("this is not the id of a file")
    return file_id


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _regular(path: str, flags: int) -> int:
    # what waits for a writer would be waited for
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise FileNotFoundError


@contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # a link is none of ours, wherever it leads
        if isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP:
            raise NotFound("there is no such file", hint="files are removed after LTX2_FILES_HOURS") from None
        raise


@contextmanager
def _in_words() -> Iterator[None]:
    """Make of whatever a store trips over an error that a caller may see."""
    try:
        yield
    except LTX2Error:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of store has its own, and their words may have secrets
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StorageFull("the server has no room for this file") from None
        log.error("the file store cannot be reached: %s", type(error).__name__)  # noqa: TRY400
        raise NotReady("the file store cannot be reached", hint="try again later") from None
