"""A bucket by S3's protocol: files go there, and links to them come back.

Each request is a link signed here, without any traffic, and good for one method and one name. What travels goes
through :mod:`ltx2.media.fetch`, so that the bucket of a caller is never an internal place.
"""

import asyncio
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import Field, SecretStr, ValidationError, model_validator

from ltx2.errors import InvalidRequest, LTX2Error, NotReady, UrlNotAllowed
from ltx2.media.fetch import Target, Unreachable, check_target, check_url, send
from ltx2.payload import few_values, invalid
from ltx2.request import Strict
from ltx2.settings import Settings

log = logging.getLogger(__name__)

PAUSES: Final = (0.5, 2.0, 5.0)
"""Seconds before an upload is tried again."""
SECONDS_TO_ANSWER: Final = 30.0
SLOWEST_UPLOAD: Final = 1e6
"""Bytes a second: an upload, with all its tries, has as long as this takes, and ``SECONDS_TO_ANSWER``."""
SECONDS_TO_USE: Final = 3600
"""How long the links are good that this process uses itself."""

_NAME: Final = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}$"
_KEY: Final = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._-]+(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)*")
_PRINTABLE: Final = r"^[!-~]{1,1024}$"
_AWS: Final = re.compile(r"s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?")
_IN_HOST: Final = re.compile(
    r"(.+)\.("
    r"s3[.-](?:[a-z0-9-]+\.)*(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|wasabisys\.com|scw\.cloud)"
    r"|[0-9a-f]{32}\.(?:[a-z]+\.)?r2\.cloudflarestorage\.com"
    r"|[a-z0-9-]+\.(?:digitaloceanspaces|linodeobjects)\.com)"
)
"""Hosts that are known to begin with the name of a bucket, and what they are without it."""
_REGION: Final = re.compile(
    r"(?:s3[.-](?:dualstack\.)?([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|backblazeb2\.com|wasabisys\.com|scw\.cloud)"
    r"|([a-z0-9-]+)\.(?:digitaloceanspaces|linodeobjects)\.com"
    r"|s3api-([a-z0-9-]+)\.runpod\.io"
    r"|.*\.r2\.cloudflarestorage\.com)"
)
"""Hosts that are known to say the region. R2 has one alone, and calls it auto."""
_DNS_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")

# At DEBUG it writes down what it signs, and the signature.
logging.getLogger("botocore").setLevel(logging.INFO)


class JobBucket(Strict):
    """The ``s3Config`` of a job, as RunPod has named it."""

    access_id: str = Field(alias="accessId", pattern=_PRINTABLE, repr=False)
    access_secret: str = Field(alias="accessSecret", pattern=_PRINTABLE, repr=False)
    bucket_name: str | None = Field(None, alias="bucketName", pattern=_NAME)
    endpoint_url: str = Field(alias="endpointUrl", repr=False)
    region: str | None = Field(None, pattern=r"^[A-Za-z0-9-]{1,64}$")

    @model_validator(mode="before")
    @classmethod
    def _few_values(cls, data: object) -> object:
        return few_values(data)


class Bucket:
    """Where files are put by name, each below the operator's ``LTX2_BUCKET_PREFIX``.

    Args:
        base: the URL that the names of files are put behind.
        region: that its links are signed for.
        credentials: of whoever owns it.
        settings: the prefix, and how long links are good.
        allow: internal ``host:port`` that it may be at.
        field: what the caller or the operator has named it by.
    """

    def __init__(
        self,
        base: str,
        region: str,
        credentials: Credentials,
        settings: Settings,
        *,
        allow: frozenset[str],
        field: str | None = None,
    ) -> None:
        self.allow = allow
        self.seconds = settings.bucket_seconds
        self.pauses: tuple[float, ...] = PAUSES
        self.patience = SECONDS_TO_ANSWER
        self._base = base
        self._region = region
        self._credentials = credentials
        self._prefix = settings.bucket_prefix
        self._field = field

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # neither whose it is nor where

    @classmethod
    def of_settings(cls, settings: Settings) -> "Bucket | None":
        """The operator's bucket, which may be an internal place; None if there is none.

        Raises:
            InvalidRequest: naming the environment variable that is missing or wrong.
        """
        url = settings.bucket_endpoint_url
        if url is None:
            return None
        key = _of_environment(settings.bucket_access_key_id, "BUCKET_ACCESS_KEY_ID")
        secret = _of_environment(settings.bucket_secret_access_key, "BUCKET_SECRET_ACCESS_KEY")
        own = _place_of(url)
        try:
            base, region = _locate(url, settings.bucket_name, allow=settings.allowed_targets | {own})
        except UrlNotAllowed as error:
            raise _wrong("BUCKET_ENDPOINT_URL", f"is wrong: {error.message}") from None
        except LookupError as error:
            raise _wrong("LTX2_BUCKET_NAME", f"is missing: {error.args[0]}") from None
        except ValueError as error:
            raise _wrong("BUCKET_ENDPOINT_URL", f"is wrong: {error}") from None
        allow = settings.allowed_targets | {own, _place_of(base)}
        return cls(base, settings.bucket_region or region, Credentials(key, secret), settings, allow=allow)

    @classmethod
    def of_job(cls, config: object, settings: Settings) -> "Bucket":
        """The bucket that a job names, ``{accessId, accessSecret, bucketName, endpointUrl}``, and maybe ``region``.

        Raises:
            InvalidRequest: naming the field below ``s3Config``; no value is repeated.
            UrlNotAllowed: it is at an internal place that is not in ``LTX2_URL_ALLOW``.
        """
        try:
            asked = JobBucket.model_validate(config)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            # its own words for a pattern say which; ours are those for prompts
            kind = "" if first["type"] == "string_pattern_mismatch" else first["type"]
            raise invalid({**first, "type": kind, "loc": ("s3Config", *first["loc"])}) from None
        allow = settings.allowed_targets
        try:
            base, region = _locate(asked.endpoint_url, asked.bucket_name, allow=allow)
        except UrlNotAllowed as error:
            raise UrlNotAllowed(error.message, field="s3Config.endpointUrl", hint=error.hint) from None
        except LookupError as error:
            raise InvalidRequest(str(error.args[0]), field="s3Config.bucketName") from None
        except ValueError as error:
            raise InvalidRequest(str(error), field="s3Config.endpointUrl") from None
        credentials = Credentials(asked.access_id, asked.access_secret)
        return cls(base, asked.region or region, credentials, settings, allow=allow, field="s3Config")

    async def check(self) -> None:
        """Look where its host is, before anything is made for it. It is looked at again when it is used.

        Raises:
            UrlNotAllowed: it is at an internal place, or cannot be found.
        """
        await check_target(self._base, field=self._url_field, allow=self.allow)

    async def put(self, key: str, body: bytes | Path, content_type: str) -> str:
        """Upload a file, trying again a few times where that may help.

        Args:
            key: its name below the prefix: letters, digits, dots, hyphens, underscores, and slashes between.
            body: what is in it, or the path of a file that is not changed meanwhile.
            content_type: what it is served as.

        Returns:
            A link to it that is good for ``seconds``.

        Raises:
            NotReady: the bucket did not take it; the message says why, without URL and credentials.
            UrlNotAllowed: the bucket is at an internal place by now.
        """
        size = len(body) if isinstance(body, bytes) else (await asyncio.to_thread(body.stat)).st_size
        seconds = self.patience + size / SLOWEST_UPLOAD
        status = await self._ask("PUT", key, body, {"content-type": content_type}, seconds)
        if not 200 <= status < 300:
            raise self._refusal(status)
        return self._link("GET", key, {}, self.seconds)

    async def remove(self, key: str) -> None:
        """Delete a file, if it is there.

        Raises:
            NotReady: as by ``put``.
            UrlNotAllowed: as by ``put``.
        """
        status = await self._ask("DELETE", key, b"", {}, self.patience)
        if not 200 <= status < 300 and status != 404:
            raise self._refusal(status)

    async def _ask(self, method: str, key: str, body: bytes | Path, headers: dict[str, str], seconds: float) -> int:
        """The status of the answer. What may be bad luck is tried again, until the seconds are over."""
        pauses = iter(self.pauses)
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while True:
            link = self._link(method, key, headers, SECONDS_TO_USE)
            try:
                status = await send(method, link, body, headers, allow=self.allow, seconds=deadline - clock())
            except Unreachable as error:
                pause = next(pauses, None)
                if pause is None or clock() + pause >= deadline:
                    raise self._failure(f"the bucket cannot be reached: {error}") from None
            except UrlNotAllowed as error:
                raise UrlNotAllowed(error.message, field=self._url_field, hint=error.hint) from None
            else:
                pause = next(pauses, None) if _is_bad_luck(status) else None
                if pause is None or clock() + pause >= deadline:
                    return status
            await asyncio.sleep(pause)

    @property
    def _url_field(self) -> str | None:
        return self._field and f"{self._field}.endpointUrl"

    def _link(self, method: str, key: str, headers: dict[str, str], seconds: int) -> str:
        if not _KEY.fullmatch(key):
            raise ValueError("this is not the name of a file in a bucket")
        request = AWSRequest(method=method, url=f"{self._base}/{self._prefix}{key}", headers=headers)
        S3SigV4QueryAuth(self._credentials, "s3", self._region, expires=seconds).add_auth(request)
        return str(request.url)

    def _refusal(self, status: int) -> LTX2Error:
        match status:
            case 401 | 403:
                why = "the bucket refuses it: the key or the secret is wrong, or it may not write there"
            case 404:
                why = "there is no bucket of this name"
            case 301 | 307 | 308 | 400:
                why = f"the bucket answers {status}: its region or its URL may be another one"
            case _:
                why = f"the bucket answers {status}"
        return self._failure(why)

    def _failure(self, why: str) -> LTX2Error:
        return NotReady(why, field=self._field)


def expires_at(link: str) -> datetime:
    """When a signed link ends, in UTC."""
    asked = parse_qs(urlsplit(link).query)
    signed = datetime.strptime(asked["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return signed + timedelta(seconds=int(asked["X-Amz-Expires"][0]))


def _locate(endpoint: str, name: str | None, *, allow: frozenset[str]) -> tuple[str, str]:
    """The URL before the names of files, and the region.

    Args:
        endpoint: of the store, or of the bucket: its name may be the beginning of the host, or the path.
        name: of the bucket; wins over what the URL says.
        allow: internal ``host:port`` that it may be at.

    Raises:
        UrlNotAllowed: it is no URL that may be followed.
        LookupError: the bucket has no name.
        ValueError: the URL has more than a bucket's.
    """
    target = check_url(endpoint, field=None, allow=allow)
    folders = [part for part in target.path.split("/") if part]
    host, in_host = target.host, None
    if known := _IN_HOST.fullmatch(host):
        in_host, host = known.groups()
    elif name and host.startswith(f"{name.lower()}."):
        in_host, host = name, host.removeprefix(f"{name.lower()}.")
    if "?" in target.path or len(folders) > (in_host is None):
        raise ValueError("it should end with the host, or with the name of the bucket")
    in_path = folders[0] if folders else None
    bucket = name or in_host or in_path
    if bucket is None:
        raise LookupError("the name of the bucket is neither here nor in the URL")
    if not re.fullmatch(_NAME, bucket):
        raise ValueError("what should be the name of the bucket is none")
    found = _REGION.fullmatch(host)
    region = "us-east-1" if found is None else next(filter(None, found.groups()), "auto")
    # Amazon wants the name in the host, others take both, and those at home know the path alone.
    if bucket == in_host or (_AWS.fullmatch(host) and _DNS_NAME.fullmatch(bucket)):
        return _url(target, f"{bucket}.{host}"), region
    return f"{_url(target, host)}/{bucket}", region


def _url(target: Target, host: str) -> str:
    return f"{target.scheme}://{Target(target.scheme, host, target.port, '').name}"


def _place_of(url: str) -> str:
    """The ``host:port`` of a URL, whether or not anybody may go there."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or {"http": 80}.get(parts.scheme.lower(), 443)
    except ValueError:
        return ""  # it will be refused
    return Target(parts.scheme, host, port, "").place


def _of_environment(secret: SecretStr | None, name: str) -> str:
    if secret is None:
        others = "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY"
        raise _wrong(name, f"is missing: a bucket wants {others}")
    value = secret.get_secret_value().strip()
    if not re.fullmatch(_PRINTABLE, value):
        raise _wrong(name, "is wrong: it should be printable ASCII")
    return value


def _wrong(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the environment variable {name} {why}", field=name)


def _is_bad_luck(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500
