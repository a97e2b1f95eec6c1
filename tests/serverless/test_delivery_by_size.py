"""How clips reach the callers of jobs: what is small inside the result, the rest by a bucket or the volume."""

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from quick import QuickEngine
from refusing import refusing

import handler
from ltx2.engine import CancelFlag, Clip, Engine
from ltx2.fake import FakeEngine
from ltx2.media.bucket import Bucket, expires_at
from ltx2.media.probe import probe_video
from ltx2.payload import parse
from ltx2.request import GenerationRequest
from ltx2.serverless.delivery import FOLDER, Delivery, name_of
from ltx2.settings import Settings
from ltx2.studio.direct import Direct

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2, "seed": 1}
LONG = SMALL | {"fps": 1, "num_frames": 9, "output_format": "wav"}
"""Less than a megabyte; as base64 more."""
KEYS = {"bucket_access_key_id": "AKIAEXAMPLE", "bucket_secret_access_key": "nobody-sees-this"}


class Starving(Delivery):
    """Has no memory for the clips of some prompts."""

    async def deliver(
        self, job: Mapping[str, Any], request: GenerationRequest, clip: Clip, bucket: Bucket | None
    ) -> dict[str, Any]:
        if request.prompt == "starve":
            raise MemoryError
        return await super().deliver(job, request, clip, bucket)


def answer_of(folder: Path, job: dict[str, Any], engine: type[Engine] = FakeEngine, **more: Any) -> dict[str, Any]:
    settings = Settings(data_dir=folder / "data", **more)
    studio = Direct(settings, engine(settings))
    try:
        answer = asyncio.run(handler.Worker(studio).handler({"id": "job-1"} | job))
    finally:
        studio.close()
    assert not [path for path in (folder / "data").rglob("*") if path.is_file()]
    return answer


def sent(answer: dict[str, Any]) -> int:
    """Bytes that RunPod's client makes of an answer."""
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("name", "field", "begins", "head"),
    [
        ("mp4", "video", "data:video/mp4", b"\x00\x00\x00"),
        ("webm", "video", "data:video/webm", b"\x1a\x45\xdf\xa3"),
        ("flac", "audio", "data:audio/flac", b"fLaC"),
    ],
)
def test_a_small_file_is_inside_under_its_own_type(
    tmp_path: Path, name: str, field: str, begins: str, head: bytes
) -> None:
    answer = answer_of(tmp_path, {"input": SMALL | {"output_format": name}})
    assert answer.keys() & {"video", "audio"} == {field}
    prefix, encoded = answer[field].split(";base64,")
    assert prefix == begins
    assert base64.b64decode(encoded).startswith(head)
    assert (answer["output_format"], answer["has_audio"], answer["num_frames"]) == (name, True, 9)


def test_the_whole_result_counts_to_the_byte(tmp_path: Path) -> None:
    # times are all that differs from one run to the next: without digits behind the point, mostly nothing
    whole = answer_of(tmp_path, {"input": LONG}, result_max_mb=9.5)
    size = sent(whole)
    room = 40
    enough = answer_of(tmp_path, {"input": LONG}, result_max_mb=(size + room) / 1e6)
    assert enough["audio"] == whole["audio"]
    assert sent(enough) <= size + room
    less = answer_of(tmp_path, {"input": LONG}, result_max_mb=(size - room) / 1e6)
    assert less["error_code"] == "media_too_large"


@pytest.mark.parametrize(
    ("asked", "field", "advice"),
    [
        (SMALL, "quality", "ask for a lower quality"),
        (SMALL | {"output_format": "gif"}, "output_format", "ask for mp4"),
        (LONG, "output_format", "ask for mp3"),
    ],
)
def test_what_has_no_way_is_refused_with_advice(tmp_path: Path, asked: dict[str, Any], field: str, advice: str) -> None:
    answer = answer_of(tmp_path, {"input": asked}, result_max_mb=0.002)
    assert (answer["error_code"], answer["field"]) == ("media_too_large", field)
    for word in ("0.0 MB can be sent", advice, "s3Config", "BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID"):
        assert word in answer["error"]
    assert answer.keys() == {"error", "error_code", "field"}


@pytest.mark.parametrize("job_id", ["job-1", "../../etc/x", "a b\n\ud800é/\\", "", None, "x" * 5000, ".hidden", 7])
def test_a_large_file_goes_to_the_volume_whatever_the_job_is_called(tmp_path: Path, job_id: object) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    job = {"id": job_id, "input": SMALL}
    answer = answer_of(tmp_path, job, result_max_mb=0.002, volume_dir=volume)
    assert "video" not in answer
    path = Path(answer["video_path"])
    assert path.parent == volume / FOLDER
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}-[0-9a-f]{16}\.mp4", path.name)
    assert probe_video(path).num_frames == 9
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_names_are_never_given_twice() -> None:
    assert len({name_of("job", "mp4") for _ in range(100)}) == 100


def test_a_volume_that_cannot_be_written_is_no_way(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / FOLDER).write_text("this is no folder")
    answer = answer_of(tmp_path, {"input": SMALL}, result_max_mb=0.002, volume_dir=volume)
    assert answer["error_code"] == "media_too_large"
    assert str(tmp_path) not in answer["error"]


def test_a_volume_that_cannot_even_be_looked_at_is_none(tmp_path: Path) -> None:
    volume = tmp_path / ("x" * 300)  # one whose server is gone fails in the same way
    answer = answer_of(tmp_path, {"input": SMALL}, result_max_mb=0.002, volume_dir=volume)
    assert answer["error_code"] == "media_too_large"
    Delivery(Settings(volume_dir=volume)).sweep()


def test_a_job_that_is_stopped_while_its_clip_is_copied_leaves_none(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", result_max_mb=0.002, volume_dir=tmp_path)
    engine = QuickEngine(settings)

    request, _ = parse(SMALL)
    clip = engine.generate(request, {}, lambda _: None, CancelFlag())
    os.truncate(clip.path, 200_000_000)  # nothing on the disk, and long to copy

    def has_begun() -> bool:
        return any(tmp_path.glob(f"{FOLDER}/.*.part"))

    async def stop() -> None:
        copying = asyncio.create_task(Delivery(settings).deliver({"id": "job"}, request, clip, None))
        while not has_begun():  # noqa: ASYNC110 - only the disk knows
            await asyncio.sleep(0.001)
        for _ in range(3):
            copying.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await copying

    asyncio.run(stop())
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_folder_that_nobody_named_counts_only_where_something_is_mounted(tmp_path: Path) -> None:
    assert Delivery(Settings(volume_dir=tmp_path))._volume() == tmp_path
    assert Delivery(Settings(volume_dir=tmp_path / "none"))._volume() is None
    for folder, is_volume in ((tmp_path, False), (Path("/proc"), True)):
        by_default = Settings.model_construct(_fields_set=set(), volume_dir=folder)
        assert (Delivery(by_default)._volume() is not None) is is_volume


def test_old_results_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    ours, theirs = name_of("job", "mp4"), "holiday.mp4"
    half = f".{name_of('job', 'mp4')}.{'0' * 16}.part"
    new_half = f".{name_of('job', 'wav')}.{'1' * 16}.part"
    for name in (ours, theirs, half, new_half):
        (folder / name).write_bytes(b"x")
    hours = 3600
    for name, age in ((ours, 30), (theirs, 3000), (half, 30), (new_half, 23)):
        os.utime(folder / name, (time.time() - age * hours, time.time() - age * hours))
    (folder / name_of("folder", "mp4")).mkdir()
    (folder / name_of("link", "mp4")).symlink_to(tmp_path)
    Delivery(Settings(volume_dir=tmp_path, files_hours=0)).sweep()
    Delivery(Settings(volume_dir=tmp_path, files_hours=31)).sweep()
    assert not (folder / half).exists()
    assert (folder / ours).exists()
    Delivery(Settings(volume_dir=tmp_path, files_hours=29)).sweep()
    assert not (folder / ours).exists()
    assert len(list(folder.iterdir())) == 4
    Delivery(Settings(volume_dir=tmp_path / "nowhere")).sweep()


def test_a_bucket_gets_everything_and_gives_a_link(tmp_path: Path, store: str) -> None:
    mine = {"bucket_endpoint_url": f"{store}/ours", "bucket_seconds": 120, "bucket_prefix": "clips/"} | KEYS
    answer = answer_of(tmp_path, {"input": SMALL}, **mine)
    assert not answer.keys() & {"video", "video_path", "error"}
    assert re.match(rf"{store}/ours/clips/job-1-[0-9a-f]{{16}}\.mp4\?", answer["video_url"])
    assert answer["url_expires_at"] == expires_at(answer["video_url"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    got = httpx.get(answer["video_url"])
    assert got.headers["content-type"] == "video/mp4"
    (tmp_path / "clip.mp4").write_bytes(got.content)
    assert probe_video(tmp_path / "clip.mp4").num_frames == 9
    assert answer["warnings"] == answer_of(tmp_path, {"input": SMALL})["warnings"]


def test_the_bucket_of_a_job_wins(tmp_path: Path, store: str) -> None:
    config = {"accessId": "theirs", "accessSecret": "hush", "bucketName": "theirs", "endpointUrl": store}
    mine = {"bucket_endpoint_url": f"{store}/ours", "url_allow": urlsplit(store).netloc} | KEYS
    answer = answer_of(tmp_path, {"input": LONG, "s3Config": config}, **mine)
    assert answer["audio_url"].startswith(f"{store}/theirs/ltx2/job-1-")
    assert "X-Amz-Credential=theirs%2F" in answer["audio_url"]
    assert httpx.get(answer["audio_url"]).headers["content-type"] == "audio/wav"
    ours = answer_of(tmp_path, {"input": LONG, "s3Config": None}, **mine)
    assert ours["audio_url"].startswith(f"{store}/ours/")


@pytest.mark.parametrize(
    ("config", "code", "field"),
    [
        ({"endpointUrl": "http://127.0.0.1:1"}, "url_not_allowed", "s3Config.endpointUrl"),
        ({"endpointUrl": "http://localhost:1"}, "url_not_allowed", "s3Config.endpointUrl"),
        ({"accessSecret": 7}, "invalid_request", "s3Config.accessSecret"),
    ],
)
def test_a_wrong_bucket_of_a_job_is_told_before_anything_is_made(
    tmp_path: Path, config: dict[str, Any], code: str, field: str
) -> None:
    good = {"accessId": "a", "accessSecret": "hush", "bucketName": "b", "endpointUrl": "https://s3.example.com"}
    # a clip would take longer than any test
    job = {"input": SMALL | {"prompt": "seconds=80000"}, "s3Config": good | config}
    answer = answer_of(tmp_path, job)
    assert (answer["error_code"], answer["field"]) == (code, field)
    assert "hush" not in answer["error"]


def test_what_cannot_be_uploaded_comes_inside_or_by_the_volume_with_a_warning(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    with refusing(403) as (url, asked):
        mine = {"bucket_endpoint_url": f"{url}/ours", "volume_dir": volume} | KEYS
        inside = answer_of(tmp_path, {"input": SMALL}, **mine)
        outside = answer_of(tmp_path, {"input": SMALL}, result_max_mb=0.002, **mine)
        nowhere = answer_of(tmp_path, {"input": SMALL}, result_max_mb=0.002, **(mine | {"volume_dir": tmp_path / "no"}))
    assert len(asked) == 3
    assert inside["video"].startswith("data:video/mp4;base64,")
    assert Path(outside["video_path"]).is_file()
    for answer in (inside, outside):
        assert answer["warnings"][-1].startswith("This was not uploaded but comes another way: the bucket refuses it")
        assert "video_url" not in answer
    assert nowhere["error_code"] == "not_ready"
    assert "the bucket refuses it" in nowhere["error"]
    assert "127.0.0.1" not in nowhere["error"]


def test_a_worker_asks_to_be_replaced_after_two_jobs_out_of_memory_with_no_answer_between(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    studio = Direct(settings, FakeEngine(settings))
    worker = handler.Worker(studio, Starving(settings))

    def ask(prompt: str) -> dict[str, Any]:
        return asyncio.run(worker.handler({"id": "job", "input": SMALL | {"prompt": prompt}}))

    starved = {"error": "the worker ran out of memory", "error_code": "out_of_memory"}
    assert ask("starve") == starved
    assert ask("a lamp")["num_frames"] == 9
    assert ask("starve") == starved
    assert ask("fail=bug")["error_code"] == "internal"  # which says nothing about memory
    assert ask("starve") == starved | {"refresh_worker": True}
    studio.close()


def test_a_clip_that_vanished_is_our_fault(tmp_path: Path) -> None:
    answer = answer_of(tmp_path, {"input": SMALL | {"prompt": "vanish"}}, QuickEngine)
    assert answer == {"error": "the job failed; the worker's log says why", "error_code": "internal"}
