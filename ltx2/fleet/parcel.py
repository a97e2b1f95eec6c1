"""A request as it is sent to an endpoint: one JSON object, the media inside or in a bucket."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pybase64

from ltx2.errors import MediaTooLarge
from ltx2.media.sniff import kind
from ltx2.payload import body_of
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

MOST_BYTES: Final = 9_500_000
"""Of a whole job: /run takes 10 MB."""
LEAST_MS: Final = 5_000
DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS
KEY: Final = r"^inputs/[0-9a-f]{32}\.[a-z0-9]+$"
"""What the names of media in a bucket look like."""

_TYPES: Final = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "mov": "audio/mp4",
    "matroska": "audio/webm",
}
"""Media types by what bytes are. The worker tells them by their bytes, too."""
_VIDEOS: Final = {"mov": "video/mp4", "matroska": "video/webm"}
"""Of what may be a sound alone, or a video."""


@dataclass(frozen=True)
class Parcel:
    """What is sent."""

    body: Mapping[str, Any]
    names: Mapping[str, str]
    """What the request calls each media field in it."""


def media_type_of(request: GenerationRequest, name: str, data: bytes) -> str:
    """The media type of what was sent with a request under a name."""
    types = _VIDEOS if name == request.video else _TYPES
    return types.get(kind(data), "application/octet-stream")


def digest_of(request: GenerationRequest, media: Mapping[str, bytes]) -> str:
    """The same for the same clip, wherever its media lie: hexadecimal, 64 digits."""
    body, _ = body_of(request, {name: hashlib.sha256(data).hexdigest() for name, data in media.items()})
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def names_of(request: GenerationRequest, media: Mapping[str, bytes]) -> Mapping[str, str]:
    """What the request calls each media field that is sent."""
    return body_of(request, dict.fromkeys(media, "-"))[1]


def packed(request: GenerationRequest, media: Mapping[str, bytes], settings: Settings) -> Parcel | None:
    """A request with its media inside; None if that is too large to be sent."""
    if sum(map(len, media.values())) * 4 / 3 > MOST_BYTES:
        return None
    urls = {
        name: f"data:{media_type_of(request, name, data)};base64,{pybase64.b64encode(data).decode()}"
        for name, data in media.items()
    }
    parcel = linked(request, urls, settings)
    return parcel if len(json.dumps(parcel.body)) <= MOST_BYTES else None


def linked(request: GenerationRequest, sources: Mapping[str, str], settings: Settings) -> Parcel:
    """A request with these sources of its media."""
    body, names = body_of(request, sources)
    milliseconds = min(max(round(1000 * settings.deadline_seconds), LEAST_MS), WEEK_MS)
    # RunPod forgets what waited for a day; what it has begun must be let finish
    policy = {"executionTimeout": milliseconds, "ttl": min(DAY_MS + milliseconds, WEEK_MS)}
    return Parcel({"input": body, "policy": policy}, names)


def key_for(data: bytes) -> str:
    """A name for media in a bucket, which nobody can guess."""
    return f"inputs/{uuid.uuid4().hex}.{kind(data)}"


def too_large(media: Mapping[str, bytes]) -> MediaTooLarge:
    """What is said where a request does not fit and there is no bucket."""
    largest = max(media, key=lambda name: len(media[name]))
    return MediaTooLarge(
        f"{len(media[largest]) / 1e6:.1f} MB are too much to be sent to RunPod, which takes 10 MB in all, and base64 "
        "makes a third more of it",
        field=largest,
        hint="send less, or have whoever runs this server give it a bucket (BUCKET_ENDPOINT_URL)",
    )
