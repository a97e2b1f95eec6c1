"""Results as RunPod's client can send them.

It sends what ``json.dumps`` makes of them, and nothing at all where that fails: the job would be in progress for ever.
So everything passes through here first, and whatever it was, one valid answer comes out.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ltx2.errors import Internal, LTX2Error, MediaTooLarge

log = logging.getLogger(__name__)

MEGA: Final = 10**6
LONGEST_TEXT: Final = 2000
"""Characters of each text of an error. Names of fields are the caller's, and may be as long as a whole request."""
FAILED: Final = "the job failed; the worker's log says why"

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def view_error(error: LTX2Error, *, refresh: bool = False) -> dict[str, Any]:
    """A job's result when it failed: one string as ``error``, as RunPod has it, and our code and field.

    Args:
        error: what the caller should see.
        refresh: whether RunPod should put another worker into the place of this one. Its client takes the field out.
    """
    answer: dict[str, Any] = {"error": str(error), "error_code": error.code}
    return answer | ({"field": error.field} if error.field else {}) | ({"refresh_worker": True} if refresh else {})


def size_of(answer: Mapping[str, Any]) -> int:
    """Bytes of a result on its way to RunPod.

    Raises:
        ValueError, TypeError: it cannot be sent.
    """
    return len(json.dumps({"output": answer}, ensure_ascii=False, allow_nan=False).encode())


def sendable(answer: object, limit: int) -> dict[str, Any]:
    """A result that can be sent, whatever it was before.

    NaN, infinities, bytes and whatever else JSON has no words for become null, and half characters U+FFFD.

    Args:
        answer: a mapping. Anything else, and an empty one, is a failure of ours.
        limit: bytes. A larger result becomes an error that says so.
    """
    try:
        return _fitted(answer, limit)
    except Exception:
        log.exception("a result cannot be sent")
        return view_error(Internal(FAILED))


def _fitted(answer: object, limit: int) -> dict[str, Any]:
    clean = _clean(answer) if isinstance(answer, Mapping) else {}
    if clean.get("error", "") is None:
        del clean["error"]
    if "error" in clean:
        clean = {name: _short(value) for name, value in clean.items()}
        # an empty one would be a success to RunPod
        clean["error"] = clean["error"] if isinstance(clean["error"], str) and clean["error"].strip() else FAILED
    if not clean:
        log.error("a result is empty, or no JSON object")
        return view_error(Internal(FAILED))
    size = size_of(clean)
    if size <= limit or "error" in clean:
        return clean
    return view_error(too_large(size, limit), refresh=clean.get("refresh_worker") is True)


def too_large(size: int, limit: int, *, field: str | None = None, instead: str = "") -> MediaTooLarge:
    """The error of a result that has no way to its caller.

    It has the code of media that are too large: callers may change their request, which mends it.

    Args:
        size: bytes of the result.
        limit: bytes that it may have.
        field: what would make it smaller.
        instead: the first advice, with a comma behind it.
    """
    return MediaTooLarge(
        f"the result has {_mega(size)}, and {_mega(limit)} can be sent with the clip inside",
        field=field,
        hint=f"{instead}give a bucket of yours as s3Config beside input, or have the operator set BUCKET_ENDPOINT_URL, "
        "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY",
    )


def _mega(size: int) -> str:
    return f"{size / MEGA:.1f} MB"


def _clean(value: object) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case Mapping():
            return {_clean(str(name)): _clean(one) for name, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(one) for one in value]
        case _:
            return None


def _short(value: Any) -> Any:
    is_long = isinstance(value, str) and len(value) > LONGEST_TEXT
    return value[: LONGEST_TEXT - 1] + "…" if is_long else value
