"""Files in a bucket: against moto's server on loopback, and fsspec's store in memory."""

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from ltx2.errors import NotFound, NotReady
from ltx2.settings import Settings
from ltx2.studio.database import Database
from ltx2.studio.files import Files
from ltx2.studio.job import new_id
from ltx2.studio.storage import RemoteStorage, Storage, open_storage

ROOT = Path(__file__).parent.parent.parent
SECRET = "a-secret-that-nobody-sees"
URL = "s3://bucket/folder"


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    """The address of a server, and the environment of somebody who has a bucket there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)  # nobody's own bucket is meant
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", url)
        make_bucket("bucket")
        yield url
    # a session is closed when its file system is collected: while its server is there, not in somebody else's test
    gc.collect()
    server.stop()


def make_bucket(name: str) -> S3FileSystem:
    fs = S3FileSystem(skip_instance_cache=True)
    fs.mkdir(name)
    return fs


@pytest.fixture(params=[URL, "memory://folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(Settings(data_dir=tmp_path, files_url=request.param))


def test_bytes_go_there_and_come_back_and_go(store: Storage, tmp_path: Path) -> None:
    file_id = new_id("file")
    assert not store.exists(file_id)
    store.put(file_id, b"hello")
    assert store.exists(file_id)
    assert store.read(file_id) == b"hello"
    assert file_id in set(store.ids())
    with store.open(file_id) as file:
        assert file.read() == b"hello"
        path = Path(file.name)
        assert tmp_path in path.parents
        assert path.read_bytes() == b"hello"
    assert not path.exists()
    store.put(file_id, b"")
    assert store.read(file_id) == b""
    assert store.exists(file_id)
    store.delete(file_id)
    assert not store.exists(file_id)
    assert file_id not in set(store.ids())
    store.delete(file_id)
    with pytest.raises(NotFound):
        store.read(file_id)
    with pytest.raises(NotFound):
        store.open(file_id)
    assert list((tmp_path / "work").iterdir()) == []
    assert store.shared
    assert store.remove_partial() == 0


def test_a_finished_file_is_uploaded_and_leaves_its_place(store: Storage, tmp_path: Path) -> None:
    file_id, clip = new_id("file"), tmp_path / "clip.mp4"
    clip.write_bytes(b"x" * 3_000_000)
    store.adopt(file_id, clip)
    assert not clip.exists()
    assert store.read(file_id) == b"x" * 3_000_000


def test_the_local_copy_is_gone_however_its_reader_ends(store: Storage, tmp_path: Path) -> None:
    file_id = new_id("file")
    store.put(file_id, b"hello")
    with pytest.raises(FileNotFoundError, match="a reader fails"), store.open(file_id):
        raise FileNotFoundError("a reader fails")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_name_that_is_no_id_is_never_a_key(store: Storage) -> None:
    for file_id in ("", "..", "../x", "file_", "file_" + "0" * 32 + "?versionId=1"):
        for use in (store.read, store.delete, store.exists, lambda file_id: store.put(file_id, b"mine")):
            with pytest.raises(ValueError, match="not the id"):
                use(file_id)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3a://bucket/a/b/"])
def test_a_folder_may_be_the_bucket_itself_or_deep_in_it(url: str, tmp_path: Path) -> None:
    store, file_id = RemoteStorage(url, tmp_path), new_id("file")
    store.put(file_id, b"hello")
    assert store.read(file_id) == b"hello"
    assert list(store.ids()) == [file_id]
    store.delete(file_id)


def test_two_servers_see_what_each_other_writes(store: Storage, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.node.callspec.params["store"]
    other = RemoteStorage(url, tmp_path)
    file_id = new_id("file")
    for first, second in ((store, other), (other, store)):
        assert not second.exists(file_id)
        assert file_id not in set(second.ids())
        first.put(file_id, b"hello")
        assert second.exists(file_id)
        assert file_id in set(second.ids())
        assert second.read(file_id) == b"hello"
        first.put(file_id, b"and again")
        assert second.read(file_id) == b"and again"
        second.delete(file_id)
        assert not first.exists(file_id)


def test_records_and_bytes_in_a_bucket(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, files_url=URL)
    database, storage = Database(settings), open_storage(settings)
    store = Files(database, storage, settings)
    record = store.add(b"hello", owner="ann", filename="a.txt")
    with store.local(record.id, "ann") as (found, path):
        assert (found, path.read_bytes()) == (record, b"hello")
    theirs = new_id("file")
    storage.put(theirs, b"of another server in the same bucket")
    assert store.remove_orphans() == 0
    assert storage.exists(theirs)
    store.delete(record.id, "ann")
    assert not storage.exists(record.id)
    database.close()


def test_opening_leaves_nothing_behind(tmp_path: Path) -> None:
    RemoteStorage("s3://bucket/empty", tmp_path)
    assert S3FileSystem(skip_instance_cache=True).find("bucket/empty") == []


def test_a_bucket_that_is_not_there_is_told_at_once_and_without_secrets(tmp_path: Path) -> None:
    for url in ("s3://missing/folder", f"s3://{SECRET}:{SECRET}@missing/folder", "s3://", f"nothing://{SECRET}"):
        with pytest.raises(NotReady, match="the file store") as caught:
            RemoteStorage(url, tmp_path)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_server_that_is_not_there_is_told_before_anybody_loses_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, but not listening: nobody else gets this port, and nobody answers
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NotReady, match="cannot be reached") as caught:
            RemoteStorage(URL, tmp_path)
    assert "127.0.0.1" not in str(caught.value)


def test_a_server_that_is_silent_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(NotReady, match="cannot be reached"):
            RemoteStorage(URL, tmp_path, patience=0.2)
        assert time.monotonic() - started < 10


def test_a_store_that_fails_later_says_so_without_its_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fs = make_bucket("goes-away")
    store, file_id, clip = RemoteStorage("s3://goes-away", tmp_path), new_id("file"), tmp_path / "clip.mp4"
    fs.rmdir("goes-away")
    clip.write_bytes(b"clip")
    for use in (lambda: store.put(file_id, b"x"), lambda: store.adopt(file_id, clip)):
        with pytest.raises(NotReady) as caught:
            use()
        assert caught.value.message == "the file store cannot be reached"
    assert clip.exists()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("ltx2")]
    assert ours == ["the file store cannot be reached: FileNotFoundError"] * 2


def test_a_local_store_does_not_wait_for_the_import_of_a_remote_one(tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        from ltx2.settings import Settings
        from ltx2.studio.storage import open_storage
        open_storage(Settings(data_dir={str(tmp_path)!r}))
        print(*({{"fsspec", "s3fs", "botocore"}} & sys.modules.keys()))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
