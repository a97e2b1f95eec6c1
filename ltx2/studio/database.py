"""The tables, and the one way to write to them. SQLite in the data folder, or a server's database by URL."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
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
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn

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
    Column("batch", String(64)),
    Column("notes", JSON, nullable=False, server_default="{}"),
    Column("base_url", Text, nullable=False, server_default=""),
    Column("run_seconds", Double),
    Column("ttl_seconds", Double),
    Column("clip_seconds", Double),
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
    Index("jobs_by_batch", "owner", "batch"),
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
    Column("expires_at", Double),
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


facts = Table(
    "facts",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(64), nullable=False),
)
"""What is to be known of the database itself."""

VERSION = "2"
"""Of the tables. A program that finds another one leaves them alone."""
_EARLIER = frozenset({"1"})
"""Those that lack nothing but columns."""
ANY_REQUEST = ""
"""The fingerprint of jobs of version 1, whose own changed with each new field: their idempotency keys are believed."""


class Database:
    """Opens the database and makes what is missing in it. Usable from any thread.

    Raises:
        NotReady: it cannot be opened, or another version of this program has made it; the message says which.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.database_url is None:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{settings.data_dir / 'jobs.db'}"
        else:
            url = settings.database_url.get_secret_value()
        with ExitStack() as undo:
            try:
                # the parameters of a statement that fails are what callers sent
                self._engine = create_engine(url, hide_parameters=True)
                undo.callback(self._engine.dispose)
                if self._engine.dialect.name == "sqlite":
                    event.listen(self._engine, "connect", _durable)
                metadata.create_all(self._engine)
                known = self._facts()
                if known["version"] in _EARLIER:
                    known["version"] = self._upgrade()
            except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
                # a driver's own words may have the password
                raise NotReady(
                    f"the database cannot be opened ({type(error).__name__})",
                    hint="see LTX2_DATABASE_URL, and whether this user can write to LTX2_DATA_DIR",
                ) from None
            if known["version"] != VERSION:
                raise NotReady(
                    f"the database has tables of version {known['version']}, this server knows {VERSION}",
                    hint="use the server that made them, or another LTX2_DATA_DIR or LTX2_DATABASE_URL",
                )
            undo.pop_all()
        self.id: str = known["id"]
        """Of this very database."""
        # SQLite has one writer at a time: waiting here is fairer than in its busy handler
        self._writing = threading.Lock()

    def _facts(self) -> dict[str, str]:
        with self._engine.begin() as connection:
            known = {row.name: row.value for row in connection.execute(select(facts))}
            if not known:
                known = {"version": VERSION, "id": secrets.token_hex(16)}
                connection.execute(insert(facts), [{"name": name, "value": value} for name, value in known.items()])
            return known

    def _upgrade(self) -> str:
        """Add the columns that an earlier version did not have. Returns the version of the tables now."""
        with self._engine.begin() as connection:
            there = inspect(connection)
            for table in metadata.sorted_tables:
                known = {column["name"] for column in there.get_columns(table.name)}
                for column in table.columns:
                    if column.name not in known:
                        described = CreateColumn(column).compile(dialect=connection.dialect)
                        connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {described}"))
                for index in table.indexes:
                    index.create(connection, checkfirst=True)
            connection.execute(update(jobs).values(fingerprint=ANY_REQUEST))
            connection.execute(update(facts).where(facts.c.name == "version").values(value=VERSION))
        return VERSION

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, kept when the block ends well.

        Raises:
            StorageFull: the disk is full; nothing was kept.
            NotReady: it is locked or gone; nothing was kept.
        """
        try:
            with self._writing, self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            if "full" in str(error.orig).lower():
                raise StorageFull("the server's database cannot grow: its disk is full") from None
            if "locked" in str(error.orig).lower() or error.connection_invalidated:
                raise NotReady("the server's database cannot be written now", hint="try again later") from None
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


def lock_places(settings: Settings) -> ExitStack:
    """The locks on the data folder and on a database in a file, held as long as the server runs.

    A database on a server has none: that only one server of ours uses it is for its operator to see to.

    Raises:
        NotReady: another server holds one, or the folder cannot be used.
    """
    places = {settings.data_dir / "server.lock": "this data folder"}
    if settings.database_url is not None:
        with suppress(ArgumentError):  # which is told when it is opened
            url = make_url(settings.database_url.get_secret_value())
            if url.get_backend_name() == "sqlite" and url.database:
                places[Path(url.database + ".lock")] = "this database"
    with ExitStack() as held:
        for place, name in places.items():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(place, timeout=0))
            except Timeout:
                raise NotReady(
                    f"another server uses {name}", hint="end it, or set LTX2_DATA_DIR to another folder"
                ) from None
            except OSError as error:
                raise NotReady(
                    f"the data folder cannot be used: {error.strerror}",
                    hint="set LTX2_DATA_DIR to a folder that this user can write",
                ) from None
        return held.pop_all()
    raise AssertionError  # mypy takes an ExitStack for one that swallows exceptions
