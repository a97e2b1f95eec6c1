"""The tables, and the one way to write to them. SQLite in the data folder, or a server's database by URL."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from ltx2.errors import NotReady, StorageFull
from ltx2.settings import Settings

metadata = MetaData()

ID = String(64)

jobs = Table(
    "jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("dialect", String(32), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64), nullable=False),
    Column("webhook_url", Text),
    Column("upload_url", Text),
    Column("request", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("tries", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("result", Text),
    Column("file_id", ID),
    Column("file_size", BigInteger, nullable=False),
    Column("fake", Boolean, nullable=False),
    Column("failure", JSON),
    Column("hidden", Boolean, nullable=False),
    # two posts with one key make one job, whoever comes first
    UniqueConstraint("owner", "idempotency_key"),
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_by_owner", "owner", "created_at"),
)

files = Table(
    "files",
    metadata,
    Column("id", ID, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("content_type", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("meta", JSON, nullable=False),
    Index("files_by_owner", "owner", "created_at"),
    Index("files_by_time", "created_at"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", ID, primary_key=True),
    Column("job_id", ID, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("url", Text),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    Index("deliveries_by_time", "state", "next_at"),
)


class Database:
    """Opens the database and makes what is missing in it. Usable from any thread.

    Raises:
        NotReady: it cannot be opened; the message says why.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.database_url is None:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{settings.data_dir / 'jobs.db'}"
        else:
            url = settings.database_url.get_secret_value()
        try:
            # the parameters of a statement that fails are what callers sent
            self._engine = create_engine(url, hide_parameters=True)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _durable)
            metadata.create_all(self._engine)
        except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
            # a driver's own words may have the password
            raise NotReady(
                f"the database cannot be opened ({type(error).__name__})",
                hint="see LTX2_DATABASE_URL, and whether this user can write to LTX2_DATA_DIR",
            ) from None
        # SQLite has one writer at a time: waiting here is fairer than in its busy handler
        self._writing = threading.Lock()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, kept when the block ends well.

        Raises:
            StorageFull: the disk is full; nothing was kept.
        """
        try:
            with self._writing, self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            if "full" in str(error.orig).lower():
                raise StorageFull("the server's database cannot grow: its disk is full") from None
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read with; does not wait for who writes."""
        with self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _durable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def lock_folder(settings: Settings) -> FileLock:
    """The lock on the data folder, held as long as the server runs.

    Raises:
        NotReady: another server holds it, or the folder cannot be used.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(settings.data_dir / "server.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise NotReady(
            "another server uses this data folder", hint="end it, or set LTX2_DATA_DIR to another folder"
        ) from None
    except OSError as error:
        raise NotReady(
            f"the data folder cannot be used: {error.strerror}",
            hint="set LTX2_DATA_DIR to a folder that this user can write",
        ) from None
    return lock
