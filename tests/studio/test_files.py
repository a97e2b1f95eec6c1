"""Files in a real folder, with records in a real database, on disks that are full and in processes that are killed."""

import errno
import os
import subprocess
import sys
import textwrap
import time
import wave
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import insert, update

from ltx2.errors import NotFound, NotReady, StorageFull
from ltx2.settings import Settings
from ltx2.studio.database import Database, files, jobs
from ltx2.studio.files import Files, content_type, display_name, insert_file
from ltx2.studio.job import new_id
from ltx2.studio.storage import LocalStorage, open_storage

ROOT = Path(__file__).parent.parent.parent
Opened = Callable[..., tuple[Files, Database]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens the same files as a server would, with settings of one's own."""
    databases = []

    def make(**settings: Any) -> tuple[Files, Database]:
        checked = Settings(data_dir=tmp_path, **settings)
        databases.append(Database(checked))
        return Files(databases[-1], open_storage(checked), checked), databases[-1]

    yield make
    for database in databases:
        database.close()


def lying(folder: Path) -> set[str]:
    return {path.name for path in (folder / "files").iterdir()}


def write_job(database: Database, state: str, inputs: dict[str, str]) -> None:
    row = {"id": new_id("job"), "owner": "ann", "dialect": "native", "priority": 0, "fingerprint": "", "request": "{}"}
    row |= {"inputs": inputs, "state": state, "created_at": 0.0, "tries": 0, "cancel_requested": False, "phase": state}
    row |= {"step": 0, "steps": 0, "file_size": 0, "fake": False, "hidden": False}
    with database.write() as connection:
        connection.execute(insert(jobs), row)


def test_what_was_added_is_there_with_its_record_and_nothing_else_is(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened()
    before = time.time()
    record = store.add(b"hello", owner="ann", filename="a.txt", meta={"purpose": "vision"})
    assert (record.owner, record.filename, record.content_type, record.size) == ("ann", "a.txt", "text/plain", 5)
    assert before <= record.created_at <= time.time()
    assert store.get(record.id, "ann") == record
    assert record.meta == {"purpose": "vision"}
    assert store.read(record.id, "ann") == b"hello"
    with store.local(record.id, "ann") as (found, path):
        assert found == record
        assert path.read_bytes() == b"hello"
    again, file = store.open(record.id, "ann")
    with file:
        assert (again, file.read()) == (record, b"hello")
    assert lying(tmp_path) == {record.id}


def test_another_server_on_the_same_folder_finds_it(opened: Opened) -> None:
    record = opened()[0].add(b"hello", owner="ann", filename=None)
    later, _ = opened()
    assert later.get(record.id, "ann") == record
    assert later.read(record.id, "ann") == b"hello"


def test_a_finished_file_moves_in_and_gets_its_record_in_the_transaction(opened: Opened, tmp_path: Path) -> None:
    store, database = opened()
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    inode = clip.stat().st_ino
    record = store.adopt(clip, owner="ann", filename=None, meta={"seed": 7})
    assert not clip.exists()
    assert (tmp_path / "files" / record.id).stat().st_ino == inode  # it was not copied
    assert (record.filename, record.content_type, record.size) == (f"{record.id}.mp4", "video/mp4", 112)
    with pytest.raises(NotFound):
        store.get(record.id, "ann")
    with database.write() as connection:
        insert_file(connection, record)
    assert store.get(record.id, "ann") == record


def test_a_finished_file_comes_over_from_another_disk(opened: Opened, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    store, _ = opened()
    clip = memory / new_id("file")
    try:
        clip.write_bytes(b"x" * 3_000_000)
        record = store.adopt(clip, owner="ann", filename=None)
        assert not clip.exists()
    finally:
        clip.unlink(missing_ok=True)
    assert lying(tmp_path) == {record.id}
    assert (tmp_path / "files" / record.id).read_bytes() == b"x" * 3_000_000


def test_bytes_without_a_record_can_be_thrown_away(opened: Opened, tmp_path: Path) -> None:
    store, database = opened()
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"clip")
    store.discard(store.adopt(clip, owner="ann", filename=None))
    assert lying(tmp_path) == set()
    with database.write() as connection:
        files.drop(connection)
    with pytest.raises(Exception, match="no such table"):
        store.add(b"hello", owner="ann", filename=None)
    assert lying(tmp_path) == set()


def test_nobody_sees_what_is_somebody_elses(opened: Opened) -> None:
    store, _ = opened()
    record = store.add(b"hello", owner="ann", filename=None)
    asked: list[Callable[[str, str], Any]] = [store.get, store.read, store.open, store.delete]
    for ask in [*asked, lambda file_id, owner: store.local(file_id, owner).__enter__()]:
        with pytest.raises(NotFound):
            ask(record.id, "bob")
        with pytest.raises(NotFound):
            ask(record.id, "")
    assert store.list("bob") == []
    with pytest.raises(NotFound) as caught:
        store.list("bob", after=record.id)
    assert caught.value.field == "after"
    assert store.read(record.id, "ann") == b"hello"


@pytest.mark.parametrize(
    "file_id", ["", ".", "..", "../jobs.db", "/etc/passwd", "file_", "file_" + "0" * 32, "a\0b", "\ud800", "x" * 10**6]
)
def test_what_is_no_id_of_ours_is_not_found(opened: Opened, file_id: str) -> None:
    store, _ = opened()
    for ask in (store.get, store.read, store.delete):
        with pytest.raises(NotFound):
            ask(file_id, "ann")
    with pytest.raises(NotFound):
        store.list("ann", after=file_id)


def test_the_store_makes_no_path_of_what_is_no_id(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "files")
    (tmp_path / "secret").write_bytes(b"secret")
    for file_id in ("../secret", "file_../secret", str(tmp_path / "secret"), "file_" + "0" * 32 + "\n", ".", ""):
        for use in (store.read, store.delete, store.exists, lambda file_id: store.put(file_id, b"mine")):
            with pytest.raises(ValueError, match="not the id"):
                use(file_id)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_the_newest_come_first_in_pages(opened: Opened) -> None:
    store, database = opened()
    made = [store.add(b"x", owner="ann", filename=str(number)).id for number in range(6)]
    store.add(b"x", owner="bob", filename=None)
    with database.write() as connection:  # three of them within one tick of the clock
        for number, file_id in enumerate(made):
            time_ = float(max(number, 3))
            connection.execute(update(files).where(files.c.id == file_id).values(created_at=time_))
    expected = [made[5], made[4], *sorted(made[:4])]
    assert [record.id for record in store.list("ann")] == expected
    assert [record.id for record in store.list("ann", limit=2)] == expected[:2]
    paged: list[str] = []
    while page := store.list("ann", limit=2, after=paged[-1] if paged else None):
        paged += [record.id for record in page]
    assert paged == expected


def test_what_was_deleted_is_gone_once(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened()
    kept, gone = (store.add(b"x", owner="ann", filename=None) for _ in range(2))
    store.delete(gone.id, "ann")
    assert lying(tmp_path) == {kept.id}
    assert store.list("ann") == [kept]
    for ask in (store.get, store.read, store.delete):
        with pytest.raises(NotFound):
            ask(gone.id, "ann")


def test_what_was_opened_stays_whole_though_it_is_deleted(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened()
    record = store.add(b"hello", owner="ann", filename=None)
    _, file = store.open(record.id, "ann")
    with file:
        store.delete(record.id, "ann")
        assert file.read() == b"hello"
    assert lying(tmp_path) == set()
    with pytest.raises(NotFound):
        store.open(record.id, "ann")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_plain_file_is_not_opened_nor_waited_for(
    opened: Opened, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    store, _ = opened()
    record = store.add(b"x", owner="ann", filename=None)
    path = tmp_path / "files" / record.id
    path.unlink()
    make(path)
    for ask in (store.read, store.open):
        with pytest.raises(NotFound):
            ask(record.id, "ann")


def test_a_record_whose_bytes_are_gone_is_not_found_and_can_be_deleted(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened()
    record = store.add(b"x", owner="ann", filename=None)
    (tmp_path / "files" / record.id).unlink()
    with pytest.raises(NotFound):
        store.read(record.id, "ann")
    with pytest.raises(NotFound):
        store.local(record.id, "ann").__enter__()
    store.delete(record.id, "ann")
    assert store.list("ann") == []


def test_what_cannot_be_removed_keeps_its_record(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened(files_hours=1)
    record = store.add(b"x", owner="ann", filename=None)
    path = tmp_path / "files" / record.id
    path.unlink()
    path.mkdir()  # which unlink refuses, even for root
    with pytest.raises(NotReady) as caught:
        store.delete(record.id, "ann")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(NotReady):
        store.sweep(time.time() + 3601)
    assert store.get(record.id, "ann") == record
    path.rmdir()
    assert store.sweep(time.time() + 3601) == 1
    assert store.list("ann") == []


def test_the_old_are_swept_but_for_what_a_job_is_to_use(opened: Opened, tmp_path: Path) -> None:
    store, database = opened(files_hours=2)
    old, queued, running, done = (store.add(b"x", owner="ann", filename=None) for _ in range(4))
    write_job(database, "queued", {"image_start": queued.id})
    write_job(database, "running", {"audio": running.id, "image_end": queued.id})
    for state in ("succeeded", "failed", "canceled"):
        write_job(database, state, {"image_start": done.id})
    now = time.time()
    assert store.sweep(now + 7000) == 0
    assert store.sweep(now + 7300) == 2
    assert {record.id for record in store.list("ann")} == lying(tmp_path) == {queued.id, running.id}
    with pytest.raises(NotFound):
        store.get(old.id, "ann")
    young = store.add(b"x", owner="ann", filename=None)
    with database.write() as connection:
        connection.execute(update(jobs).values(state="succeeded"))
        connection.execute(update(files).where(files.c.id == young.id).values(created_at=now + 100))
    assert store.sweep(now + 7250) == 2
    assert lying(tmp_path) == {young.id}


def test_without_a_limit_of_hours_nothing_is_swept(opened: Opened) -> None:
    store, _ = opened(files_hours=0)
    store.add(b"x", owner="ann", filename=None)
    assert store.sweep(time.time() + 1e9) == 0
    assert len(store.list("ann")) == 1


def test_what_has_an_end_of_its_own_is_swept_whatever_the_hours(opened: Opened, tmp_path: Path) -> None:
    store, database = opened(files_hours=0)
    records = []
    for seconds in (None, 60.0, 600.0, 60.0):
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
        records.append(store.adopt(clip, owner="ann", filename=None, seconds=seconds))
        with database.write() as connection:
            insert_file(connection, records[-1])
    kept, short, long, used = records
    ends = [record.expires_at and record.expires_at - record.created_at for record in records]
    assert ends == [None, pytest.approx(60), pytest.approx(600), pytest.approx(60)]
    assert store.get(short.id, "ann") == short
    write_job(database, "queued", {"image_start": used.id})
    now = time.time()
    assert store.sweep(now + 50) == 0
    assert store.sweep(now + 70) == 1
    assert lying(tmp_path) == {kept.id, long.id, used.id}
    with pytest.raises(NotFound):
        store.get(short.id, "ann")
    with database.write() as connection:
        connection.execute(update(jobs).values(state="canceled"))
    assert store.sweep(now + 700) == 2
    assert store.sweep(now + 1e9) == 0
    assert [record.id for record in store.list("ann")] == [kept.id]
    # an end of its own makes nothing stay for longer than all files do
    limited, _ = opened(files_hours=1)
    with database.write() as connection:
        connection.execute(update(files).values(expires_at=now + 1e9))
    assert limited.sweep(now + 3700) == 1


def test_more_are_swept_at_once_than_one_statement_takes_parameters(opened: Opened) -> None:
    store, database = opened()
    row = {"owner": "ann", "filename": "x", "content_type": "text/plain", "size": 1, "created_at": 0.0, "meta": {}}
    with database.write() as connection:
        connection.execute(insert(files), [row | {"id": new_id("file")} for _ in range(33_000)])
    assert store.sweep(time.time()) == 33_000
    assert store.list("ann") == []


def test_room_is_what_all_files_leave(opened: Opened) -> None:
    store, _ = opened(files_max_gb=1e-6)
    store.check_room()
    first = store.add(b"x" * 999, owner="ann", filename=None)
    store.check_room()
    store.add(b"x", owner="bob", filename=None)
    with pytest.raises(StorageFull, match="LTX2_FILES_MAX_GB"):
        store.check_room()
    store.delete(first.id, "ann")
    store.check_room()


def test_what_a_killed_process_left_is_removed_and_nothing_else(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened()
    kept = store.add(b"x", owner="ann", filename=None)
    folder = tmp_path / "files"
    orphan, partial = new_id("file"), new_id("file") + ".part"
    others = {"README", "other.part", "file_1.part", "file_1", "a folder", new_id("file") + ".mp4"}
    for name in {orphan, partial} | others - {"a folder"}:
        (folder / name).write_bytes(b"x")
    (folder / "a folder").mkdir()
    assert store.remove_orphans() == 2
    assert lying(tmp_path) == others | {kept.id}
    assert store.remove_orphans() == 0
    assert store.read(kept.id, "ann") == b"x"


def test_in_a_folder_that_others_use_too_nothing_is_rubbish(opened: Opened, tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/common", f"{tmp_path}/common"):
        store, _ = opened(files_url=url)
        record = store.add(b"x", owner="ann", filename=None)
        theirs = tmp_path / "common" / new_id("file")
        theirs.write_bytes(b"x")
        assert store.remove_orphans() == 0
        assert theirs.exists()
        assert store.read(record.id, "ann") == b"x"


WRITES_UNTIL_KILLED = """
    import sys
    from pathlib import Path
    from ltx2.settings import Settings
    from ltx2.studio.database import Database
    from ltx2.studio.files import Files
    from ltx2.studio.storage import open_storage

    settings = Settings(data_dir=Path(sys.argv[1]))
    store = Files(Database(settings), open_storage(settings), settings)
    while True:
        store.add(b"x" * 5_000_000, owner="ann", filename=None)
"""


def test_after_a_kill_every_record_has_all_its_bytes(opened: Opened, tmp_path: Path) -> None:
    for wait in (0.0, 0.013):
        store, _ = opened()
        before = len(lying(tmp_path))
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITES_UNTIL_KILLED), tmp_path], cwd=ROOT)
        deadline = time.monotonic() + 30
        while len(lying(tmp_path)) < before + 3:
            assert time.monotonic() < deadline
            assert writer.poll() is None
        time.sleep(wait)
        writer.kill()
        writer.wait()
        store.remove_orphans()
        records = store.list("ann")
        assert {record.id for record in records} == lying(tmp_path)
        for record in records:
            assert (tmp_path / "files" / record.id).stat().st_size == record.size == 5_000_000


FILLS_UP = """
    import resource, sys
    from pathlib import Path
    from ltx2.errors import StorageFull
    from ltx2.settings import Settings
    from ltx2.studio.database import Database
    from ltx2.studio.files import Files
    from ltx2.studio.storage import open_storage

    folder, clip = Path(sys.argv[1]), Path(sys.argv[2])
    settings = Settings(data_dir=folder)
    store = Files(Database(settings), open_storage(settings), settings)
    if sys.argv[3:]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    refused = 0
    for attempt in (
        lambda: store.add(b"x" * 200_000, owner="ann", filename=None),
        lambda: store.adopt(clip, owner="ann", filename=None),
    ):
        try:
            attempt()
        except StorageFull:
            refused += 1
    print(refused, clip.exists(), len(store.list("ann")), *(path.name for path in (folder / "files").iterdir()))
"""


def run_full(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_full_disk_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    folder, clip = tmp_path / "files", tmp_path / "clip.mp4"
    folder.mkdir()
    clip.write_bytes(b"x" * 200_000)
    alone = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', str(folder)]
    try:
        subprocess.run([*alone, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine does not let its users mount a small disk")
    python = [sys.executable, "-c", textwrap.dedent(FILLS_UP), str(tmp_path), str(clip)]
    assert run_full([*alone, *python]) == "2 True 0"


def test_a_file_that_may_not_grow_is_as_on_a_full_disk(tmp_path: Path) -> None:
    clip = tmp_path / "none.mp4"
    clip.write_bytes(b"x")  # moving it writes nothing
    python = [sys.executable, "-c", textwrap.dedent(FILLS_UP), str(tmp_path), str(clip), "limited"]
    refused, there, records, moved = run_full(python).split()
    assert (refused, there, records) == ("1", "False", "0")
    assert not moved.endswith(".part")


def test_a_link_in_the_folder_leads_nowhere(opened: Opened, tmp_path: Path) -> None:
    store, _ = opened()
    record = store.add(b"x", owner="ann", filename=None)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = tmp_path / "files" / record.id
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(NotFound):
        store.read(record.id, "ann")
    with pytest.raises(NotFound):
        store.local(record.id, "ann").__enter__()
    local = LocalStorage(tmp_path / "files")
    assert not local.exists(record.id)
    trap = new_id("file")
    (tmp_path / "files" / f"{trap}.part").symlink_to(secret)
    with pytest.raises(NotReady):
        local.put(trap, b"mine")
    (tmp_path / "clip.mp4").symlink_to(secret)
    with pytest.raises(NotReady):
        local.adopt(trap, tmp_path / "clip.mp4")
    store.delete(record.id, "ann")
    store.remove_orphans()
    assert lying(tmp_path) == set()
    assert secret.read_bytes() == b"secret"


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "files").write_bytes(b"in the way")
    with pytest.raises(NotReady, match=os.strerror(errno.EEXIST)) as caught:
        open_storage(Settings(data_dir=tmp_path))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "default"),
        ("", "default"),
        ("clip.mp4", "clip.mp4"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ann\\me.png", "me.png"),
        ("/", "default"),
        ("..", "default"),
        ("a/..\\..", "default"),
        (" . ", "default"),
        ("a\r\nSet-Cookie: b=c\0.png", "aSet-Cookie: b=c.png"),
        ('a"; filename="b.html', "a; filename=b.html"),
        ("it's.png", "its.png"),
        ("\ud800\udfff.png", "png"),
        ("Grüße 世界 🎬.png", "Grüße 世界 🎬.png"),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("a\u2028b\x7f\x85.png", "ab.png"),
        ("x" * 10_000, "x" * 200),
        ("x" * 10_000 + ".jpeg", "x" * 195 + ".jpeg"),
        ("x." + "y" * 10_000, "x." + "y" * 198),
    ],
)
def test_a_name_is_only_shown(given: str | None, shown: str) -> None:
    assert display_name(given, "default") == shown


def test_a_file_without_a_name_is_named_after_itself(opened: Opened) -> None:
    store, _ = opened()
    for data, extension in ((b"\xff\xd8\xff", "jpg"), (b"GIF89a", "gif"), (b"text", "txt"), (b"\x01\x02", "bin")):
        record = store.add(data, owner="ann", filename="../")
        assert record.filename == f"{record.id}.{extension}"


def image(kind: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (2, 2)).save(file, kind)
    return file.getvalue()


def sound() -> bytes:
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(100))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (image("PNG"), "image/png"),
        (image("JPEG"), "image/jpeg"),
        (image("WEBP"), "image/webp"),
        (image("GIF"), "image/gif"),
        (sound(), "audio/wav"),
        (b"fLaC", "audio/flac"),
        (b"OggS", "audio/ogg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "video/webm"),
        (b"\x1a\x45\xdf\xa3\xa3\x42\x82\x88matroska", "video/x-matroska"),
        (b'{"a": 1}', "application/json"),
        ("Grüße".encode(), "text/plain"),
        (b"", "application/octet-stream"),
        (b"\x01\x02\x03", "application/octet-stream"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "application/octet-stream"),
        (b" \n<HTML>", "application/octet-stream"),
        (b"<svg onload='alert(1)'/>", "application/octet-stream"),
        (b"<?xml version='1.0'?><svg/>", "application/octet-stream"),
        (b"%PDF-1.7", "application/octet-stream"),
        (b"PK\x03\x04", "application/octet-stream"),
    ],
)
def test_the_type_is_told_by_the_content(opened: Opened, data: bytes, expected: str) -> None:
    assert content_type(data) == expected
    store, _ = opened()
    assert store.add(data, owner="ann", filename="page.html").content_type == expected


def test_speech_with_tags_before_it_is_speech(data: Path) -> None:
    assert content_type((data / "speech.mp3").read_bytes()) == "audio/mpeg"
