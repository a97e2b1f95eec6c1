"""Everything that can go wrong, as one tree.

LTX2Error
├── InvalidRequest          a field of the request is wrong
│   ├── UnsupportedMedia    the bytes are not what the field takes
│   ├── MediaTooLarge       more bytes than allowed, or a larger or longer video
│   ├── ImageTooLarge       more pixels than allowed
│   ├── AudioTooLong        more seconds than allowed
│   ├── BodyTooLarge        the whole request is too large
│   ├── UnknownFile         no file has the id that a field names
│   └── UrlNotAllowed       a URL where none may be followed
├── Unauthorized            no API key, or a wrong one
├── ForbiddenOrigin         a web page of another place calls a server that wants no keys
├── NotFound                no such path or object
├── QueueFull               too many requests are waiting
├── Canceled                the caller withdrew the request
├── NotReady                the model could not be loaded
│   ├── EngineDown          the machines that make the clips cannot be reached now
│   └── StillLoading        it is being loaded, and will be there soon
├── OutOfMemory             the model ran out of memory for this request
├── StorageFull             there is no room for inputs or outputs
├── TimedOut                it took longer than it may
├── ContentRefused          the operator's content check does not let the clip be given out
├── WorkerCrashed           the process that holds the model ended in the middle of it
└── Internal                a bug of ours
    └── GpuLost             the GPU can no longer be used by the process that holds the model

Codes are part of the public contract; HTTP statuses belong to the dialects.
"""

from dataclasses import dataclass
from typing import ClassVar, Self


class LTX2Error(Exception):
    """An error a caller may see.

    Args:
        message: one sentence saying what is wrong. Never a traceback, a path or a payload.
        field: the request field at fault, by the name the caller used.
        hint: what the caller can do about it.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint
        self.job_id: str | None = None
        """The job that came to this, for a caller who waited for it."""

    def __str__(self) -> str:
        named = f"{self.field}: {self.message}" if self.field else self.message
        return f"{named} ({self.hint})" if self.hint else named


class InvalidRequest(LTX2Error):
    code = "invalid_request"


class UnsupportedMedia(InvalidRequest):
    code = "unsupported_media"


class MediaTooLarge(InvalidRequest):
    code = "media_too_large"


class ImageTooLarge(InvalidRequest):
    code = "image_too_large"


class AudioTooLong(InvalidRequest):
    code = "audio_too_long"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class UnknownFile(InvalidRequest):
    pass


class UrlNotAllowed(InvalidRequest):
    code = "url_not_allowed"


class Unauthorized(LTX2Error):
    code = "unauthorized"


class ForbiddenOrigin(LTX2Error):
    code = "forbidden_origin"


class NotFound(LTX2Error):
    code = "not_found"


class QueueFull(LTX2Error):
    code = "queue_full"


class Canceled(LTX2Error):
    code = "canceled"


class NotReady(LTX2Error):
    code = "not_ready"


class EngineDown(NotReady):
    pass


class StillLoading(NotReady):
    pass


class OutOfMemory(LTX2Error):
    code = "out_of_memory"


class StorageFull(LTX2Error):
    code = "storage_full"


class TimedOut(LTX2Error):
    code = "timeout"


class ContentRefused(LTX2Error):
    code = "content_refused"


class WorkerCrashed(LTX2Error):
    code = "worker_crashed"


class Internal(LTX2Error):
    code = "internal"


class GpuLost(Internal):
    pass


def error_of(code: str, message: str, *, field: str | None = None, hint: str | None = None) -> LTX2Error:
    """The error with this code, as it was before it was written down. An unknown code is ours, and internal."""
    kinds = [LTX2Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = next((kind for kind in kinds[1:] if kind.code == code), Internal)
    return found(message, field=field, hint=hint)


def too_long(seconds: float) -> TimedOut:
    """What is said of a generation that took longer than ``LTX2_DEADLINE_SECONDS``."""
    return TimedOut(
        f"the generation took longer than the {seconds:g} seconds allowed here",
        hint="ask for fewer frames, fewer steps or a smaller picture; the server's limit is LTX2_DEADLINE_SECONDS",
    )


def not_in_time(what: str, seconds: float) -> TimedOut:
    """What is said of a generation that had not begun after ``LTX2_DEADLINE_SECONDS``, since this had not happened."""
    return TimedOut(
        f"{what} within the {seconds:g} seconds that a generation may take here",
        hint="send the request again; the server's limit is LTX2_DEADLINE_SECONDS",
    )


@dataclass(frozen=True)
class Failure:
    """An error as a value, to be written down or sent: an exception would take its traceback along."""

    code: str
    message: str
    field: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: LTX2Error) -> Self:
        return cls(error.code, error.message, error.field, error.hint)

    @property
    def error(self) -> LTX2Error:
        """To be raised at a caller who waits."""
        return error_of(self.code, self.message, field=self.field, hint=self.hint)

    def __str__(self) -> str:
        return str(self.error)


@dataclass(frozen=True)
class LastFailure(Failure):
    """The last word of a process that is of no use any more."""
