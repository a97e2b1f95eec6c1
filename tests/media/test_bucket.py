"""Files in a bucket: against moto's server, boto3's signatures, and small servers that refuse."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from botocore.config import Config
from refusing import refusing

from ltx2.errors import InvalidRequest, NotReady, UrlNotAllowed
from ltx2.media.bucket import Bucket, expires_at
from ltx2.settings import Settings

KEY, SECRET = "AKIAEXAMPLE", "a/secret+that=nobody-sees"
JOB = {"accessId": KEY, "accessSecret": SECRET, "bucketName": "theirs", "endpointUrl": "https://s3.example.com"}


def settings(url: str, **more: Any) -> Settings:
    wanted = {"bucket_endpoint_url": url, "bucket_access_key_id": KEY, "bucket_secret_access_key": SECRET}
    return Settings(**(wanted | more))


def bucket_at(url: str, **more: Any) -> Bucket:
    found = Bucket.of_settings(settings(url, **more))
    assert found is not None
    return found


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_put_comes_back_under_its_type_until_it_is_removed(store: str, is_file: bool, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    (tmp_path / "clip").write_bytes(content)
    bucket = bucket_at(store, bucket_name="ours", bucket_prefix="clips/")
    link = asyncio.run(bucket.put("a/b-1.mp4", tmp_path / "clip" if is_file else content, "video/mp4"))
    assert link.startswith(f"{store}/ours/clips/a/b-1.mp4?X-Amz-")
    got = httpx.get(link)
    assert (got.status_code, got.headers["content-type"], got.content) == (200, "video/mp4", content)
    asyncio.run(bucket.remove("a/b-1.mp4"))
    assert httpx.get(link).status_code == 404
    asyncio.run(bucket.remove("a/b-1.mp4"))


def test_a_link_ends_when_the_settings_say(store: str) -> None:
    bucket = bucket_at(store, bucket_name="ours", bucket_seconds=600)
    before = datetime.now(UTC).replace(microsecond=0)
    link = asyncio.run(bucket.put("x", b"x", "text/plain"))
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["600"]
    assert before <= expires_at(link) - timedelta(seconds=600) <= datetime.now(UTC)
    assert bucket.seconds == 600


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_links_are_signed_as_boto3_signs_them(method: str) -> None:
    bucket = bucket_at("https://minio.example.com:9000", bucket_name="clips", bucket_region="eu-north-1")
    client = boto3.client(
        "s3",
        endpoint_url="https://minio.example.com:9000",
        region_name="eu-north-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    typed = {"ContentType": "video/mp4"} if method == "PUT" else {}
    headers = {"content-type": "video/mp4"} if method == "PUT" else {}
    for _ in range(10):  # both have to be signed within the same second
        ours = bucket._link(method, "a-1.mp4", headers, 77)
        theirs = client.generate_presigned_url(
            f"{method.lower()}_object",
            Params={"Bucket": "clips", "Key": "ltx2/a-1.mp4"} | typed,
            ExpiresIn=77,
        )
        if parse_qs(urlsplit(ours).query)["X-Amz-Date"] == parse_qs(urlsplit(theirs).query)["X-Amz-Date"]:
            break
    assert ours.partition("?")[0] == theirs.partition("?")[0]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)


ACCOUNT = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("url", "name", "base", "region"),
    [
        ("https://clips.s3.eu-west-3.amazonaws.com", None, "https://clips.s3.eu-west-3.amazonaws.com", "eu-west-3"),
        ("https://clips.s3.eu-west-3.amazonaws.com/", "clips", "https://clips.s3.eu-west-3.amazonaws.com", "eu-west-3"),
        ("https://old.s3.eu-west-3.amazonaws.com", "clips", "https://clips.s3.eu-west-3.amazonaws.com", "eu-west-3"),
        ("https://s3.eu-west-3.amazonaws.com", "clips", "https://clips.s3.eu-west-3.amazonaws.com", "eu-west-3"),
        ("https://s3.eu-west-3.amazonaws.com/clips", None, "https://clips.s3.eu-west-3.amazonaws.com", "eu-west-3"),
        ("https://s3.eu-west-3.amazonaws.com", "a.b", "https://s3.eu-west-3.amazonaws.com/a.b", "eu-west-3"),
        ("https://s3.amazonaws.com", "clips", "https://clips.s3.amazonaws.com", "us-east-1"),
        (
            "https://s3.dualstack.eu-west-3.amazonaws.com",
            "clips",
            "https://clips.s3.dualstack.eu-west-3.amazonaws.com",
            "eu-west-3",
        ),
        (
            "https://s3.cn-north-1.amazonaws.com.cn",
            "clips",
            "https://clips.s3.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
        ),
        (
            f"https://{ACCOUNT}.r2.cloudflarestorage.com/clips",
            None,
            f"https://{ACCOUNT}.r2.cloudflarestorage.com/clips",
            "auto",
        ),
        (
            f"https://clips.{ACCOUNT}.eu.r2.cloudflarestorage.com",
            None,
            f"https://clips.{ACCOUNT}.eu.r2.cloudflarestorage.com",
            "auto",
        ),
        ("https://clips.nyc3.digitaloceanspaces.com", None, "https://clips.nyc3.digitaloceanspaces.com", "nyc3"),
        ("https://nyc3.digitaloceanspaces.com", "clips", "https://nyc3.digitaloceanspaces.com/clips", "nyc3"),
        (
            "https://s3.us-west-004.backblazeb2.com",
            "clips",
            "https://s3.us-west-004.backblazeb2.com/clips",
            "us-west-004",
        ),
        ("https://s3api-eu-ro-1.runpod.io/", "volume", "https://s3api-eu-ro-1.runpod.io/volume", "eu-ro-1"),
        ("https://clips.oss.example.com", "clips", "https://clips.oss.example.com", "us-east-1"),
        ("https://minio.s3.example.com", "clips", "https://minio.s3.example.com/clips", "us-east-1"),
        ("http://minio.example.com:9000/old", "clips", "http://minio.example.com:9000/clips", "us-east-1"),
        ("http://127.0.0.1:9000", "clips", "http://127.0.0.1:9000/clips", "us-east-1"),
        ("http://[::1]:9000/", "clips", "http://[::1]:9000/clips", "us-east-1"),
    ],
)
def test_where_a_bucket_is(url: str, name: str | None, base: str, region: str) -> None:
    bucket = bucket_at(url, bucket_name=name)
    assert bucket._link("GET", "x", {}, 60).partition("/ltx2/x?")[0] == base
    assert f"%2F{region}%2Fs3%2Faws4_request" in bucket._link("GET", "x", {}, 60)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"bucket_access_key_id": None}, "BUCKET_ACCESS_KEY_ID"),
        ({"bucket_secret_access_key": None}, "BUCKET_SECRET_ACCESS_KEY"),
        ({"bucket_secret_access_key": "two words"}, "BUCKET_SECRET_ACCESS_KEY"),
        ({"bucket_endpoint_url": "https://s3.example.com"}, "LTX2_BUCKET_NAME"),
        ({"bucket_endpoint_url": "https://s3.example.com/a/b"}, "BUCKET_ENDPOINT_URL"),
        ({"bucket_endpoint_url": "https://s3.example.com/?a=b"}, "BUCKET_ENDPOINT_URL"),
        ({"bucket_endpoint_url": "https://s3.example.com/%2e"}, "BUCKET_ENDPOINT_URL"),
        ({"bucket_endpoint_url": "https://clips.s3.eu-west-3.amazonaws.com/folder"}, "BUCKET_ENDPOINT_URL"),
        ({"bucket_endpoint_url": f"https://{KEY}:{SECRET}@s3.example.com/a"}, "BUCKET_ENDPOINT_URL"),
        ({"bucket_endpoint_url": "https://s3.example.com:99999/a"}, "BUCKET_ENDPOINT_URL"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Bucket.of_settings(settings("https://s3.example.com/ours", **wrong))
    assert caught.value.message.startswith(f"the environment variable {name} is ")
    assert caught.value.field == name
    assert SECRET not in str(caught.value)
    assert "two words" not in str(caught.value)


def test_without_an_endpoint_there_is_no_bucket() -> None:
    assert Bucket.of_settings(Settings(bucket_access_key_id=KEY, bucket_name="clips")) is None


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"accessId": None}, "s3Config.accessId"),
        ({"accessSecret": "two words"}, "s3Config.accessSecret"),
        ({"accessSecret": "half \ud800"}, "s3Config.accessSecret"),
        ({"bucketName": "a/b"}, "s3Config.bucketName"),
        ({"bucketName": None}, "s3Config.bucketName"),
        ({"bucketName": ".."}, "s3Config.bucketName"),
        ({"bucketName": ".hidden"}, "s3Config.bucketName"),
        ({"endpointUrl": "ftp://s3.example.com"}, "s3Config.endpointUrl"),
        ({"endpointUrl": "https://a:b@s3.example.com"}, "s3Config.endpointUrl"),
        ({"endpointUrl": "https://s3.example.com/a/b"}, "s3Config.endpointUrl"),
        ({"bucket": "a"}, "s3Config.bucket"),
        ({"region": "here and there"}, "s3Config.region"),
        ("a string", "s3Config"),
        ([], "s3Config"),
    ],
)
def test_a_wrong_config_of_a_job_is_named_and_not_repeated(config: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Bucket.of_job(JOB | config if isinstance(config, dict) else config, Settings(bucket_name="ours"))
    assert caught.value.field == field
    for value in (KEY, SECRET, "example.com", "two words", "a string", "here and"):
        assert value not in str(caught.value)


def test_a_wrong_config_of_a_job_is_told_how_it_should_be() -> None:
    with pytest.raises(InvalidRequest, match=r"^s3Config\.bucketName: String should match pattern '\^\[A-Za-z0-9_-\]"):
        Bucket.of_job(JOB | {"bucketName": "a/b"}, Settings())


def test_the_scheme_of_a_url_may_be_in_capitals() -> None:
    bucket = Bucket.of_job(JOB | {"endpointUrl": "HTTPS://S3.Example.COM"}, Settings())
    assert bucket._link("GET", "x", {}, 60).startswith("https://s3.example.com/theirs/ltx2/x?")


def test_a_config_of_a_job_is_taken(store: str) -> None:
    place = urlsplit(store).netloc
    config = JOB | {"endpointUrl": store}
    bucket = Bucket.of_job(config, Settings(url_allow=place, bucket_name="ours", bucket_region="eu-west-3"))
    link = asyncio.run(bucket.put("x.wav", b"sound", "audio/wav"))
    assert link.startswith(f"{store}/theirs/ltx2/x.wav?")
    assert "%2Fus-east-1%2Fs3" in link
    assert httpx.get(link).headers["content-type"] == "audio/wav"
    assert bucket.allow == {place}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "0x7f.1"])
def test_a_job_cannot_send_us_to_internal_places(host: str) -> None:
    config = JOB | {"endpointUrl": f"http://{host}:9000"}
    with pytest.raises(UrlNotAllowed) as caught:
        asyncio.run(Bucket.of_job(config, Settings()).check())
    assert caught.value.field == "s3Config.endpointUrl"


def test_the_operator_opens_an_internal_place_for_jobs(store: str) -> None:
    config = JOB | {"endpointUrl": store.replace("127.0.0.1", "localhost")}
    asyncio.run(Bucket.of_job(config, Settings(url_allow=f"localhost:{urlsplit(store).port}")).check())


def test_the_operator_may_have_one_at_an_internal_place(store: str) -> None:
    assert bucket_at(store, bucket_name="ours").allow == {urlsplit(store).netloc}
    hosted = bucket_at("http://clips.store.internal", bucket_name="clips", url_allow="other:1")
    assert hosted.allow == {"clips.store.internal:80", "other:1"}


@pytest.mark.parametrize(
    ("statuses", "words", "tries"),
    [
        ((403,), "the bucket refuses it", 1),
        ((404,), "there is no bucket of this name", 1),
        ((301,), "the bucket answers 301: its region", 1),
        ((413,), "the bucket answers 413", 1),
        ((503,), "the bucket answers 503", 3),
        ((500, 429, 403), "the bucket refuses it", 3),
    ],
)
def test_a_refusal_is_told_without_secrets(statuses: tuple[int, ...], words: str, tries: int) -> None:
    with refusing(*statuses) as (url, asked):
        bucket = bucket_at(url, bucket_name="ours")
        bucket.pauses = (0.01, 0.01)
        with pytest.raises(NotReady, match=words) as caught:
            asyncio.run(bucket.put("x.mp4", b"x", "video/mp4"))
        assert len(asked) == tries
    for told in (str(caught.value), repr(bucket), str(bucket)):
        assert not any(hidden in told for hidden in (KEY, SECRET, "127.0.0.1", "Signature"))


def test_bad_luck_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(b"clip")
    with refusing(500, 429, 200) as (url, asked):
        bucket = bucket_at(url, bucket_name="ours")
        bucket.pauses = (0.01, 0.01)
        assert asyncio.run(bucket.put("x.mp4", tmp_path / "clip", "video/mp4")).startswith(url)
        assert len(asked) == 3


def test_a_bucket_that_never_answers_is_waited_for_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bucket = bucket_at(f"http://127.0.0.1:{silent.getsockname()[1]}", bucket_name="ours")
        bucket.pauses, bucket.patience = (0.01, 0.01), 0.5
        with pytest.raises(NotReady, match="there was no answer in"):
            asyncio.run(bucket.put("x.mp4", b"x", "video/mp4"))
        asked, _ = silent.accept()
        asked.close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_bucket_that_is_not_there_and_one_that_does_not_delete() -> None:
    with refusing(200) as (url, _):
        pass  # nobody listens there any more
    bucket = bucket_at(url, bucket_name="ours")
    bucket.pauses = (0.01,)
    with pytest.raises(NotReady, match="the bucket cannot be reached: it could not be sent") as caught:
        asyncio.run(bucket.put("x.mp4", b"x", "video/mp4"))
    assert url not in str(caught.value)
    with refusing(403) as (url, _), pytest.raises(NotReady, match="the bucket refuses it"):
        asyncio.run(bucket_at(url, bucket_name="ours").remove("x.mp4"))


@pytest.mark.parametrize("key", ["", "/x", "x/", "a//b", "../x", "a/../b", "a/.", "a b", "a?b", "é"])
def test_what_is_no_name_of_a_file_is_never_asked_for(key: str) -> None:
    bucket = bucket_at("http://127.0.0.1:9", bucket_name="ours")
    for use in (bucket.put(key, b"", "text/plain"), bucket.remove(key)):
        with pytest.raises(ValueError, match="not the name of a file"):
            asyncio.run(use)
