"""How a finished clip reaches the caller of a job: by a bucket, inside the result, or on the volume.

RunPod drops results that are larger than it takes, and tells nobody. So a clip is inside the result only where the
whole of it is small enough.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pybase64

from ltx2.engine import Clip
from ltx2.errors import LTX2Error, StorageFull
from ltx2.formats import MEDIA_TYPES, OutputFormat, media_type
from ltx2.media.bucket import Bucket, expires_at
from ltx2.media.partial import written_beside
from ltx2.payload import file_field, view
from ltx2.request import GenerationRequest
from ltx2.serverless.answers import MEGA, size_of, too_large
from ltx2.settings import Settings

log = logging.getLogger(__name__)

FOLDER: Final = "ltx2-results"
"""On the volume."""
STALE_SECONDS: Final = 24 * 3600
"""Nobody writes one file for so long."""

_END: Final = rf"-[0-9a-f]{{16}}\.(?:{'|'.join(MEDIA_TYPES)})"
_OURS: Final = re.compile(rf"[A-Za-z0-9_-]+{_END}")
_PARTIAL: Final = re.compile(rf"\.[A-Za-z0-9_-]+{_END}\.[0-9a-f]{{16}}\.part")


class Delivery:
    """Hands over the clips of one worker.

    Args:
        settings: the operator's bucket and volume, and how large a result may be.

    Raises:
        InvalidRequest: the bucket's settings are not complete, or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.limit = int(settings.result_max_mb * MEGA)
        self._settings = settings
        self._bucket = Bucket.of_settings(settings)

    async def bucket_of(self, job: Mapping[str, Any]) -> Bucket | None:
        """Where the clip of a job is to go: its ``s3Config``, else the operator's bucket, else None.

        Raises:
            InvalidRequest: the ``s3Config`` is wrong, or at an internal place. Nothing was made for it yet.
        """
        config = job.get("s3Config")
        if config is None:
            return self._bucket
        bucket = Bucket.of_job(config, self._settings)
        await bucket.check()
        return bucket

    async def deliver(
        self, job: Mapping[str, Any], request: GenerationRequest, clip: Clip, bucket: Bucket | None
    ) -> dict[str, Any]:
        """The result of a job: the facts of its clip, and the way to the file.

        Args:
            job: gives the file its name, where it needs one.
            request: that the clip was made for.
            clip: its file is only read.
            bucket: where it goes first. What cannot be uploaded comes another way, with a warning.

        Raises:
            MediaTooLarge: there is no way for so large a file.
            StorageFull: the way would have been the volume, which is full.
            NotReady: the bucket did not take it, and there is no other way.
        """
        kind, _ = file_field(request)
        name = name_of(job.get("id"), request.output.format)
        answer = view(request, clip)
        failure: LTX2Error | None = None
        if bucket is not None:
            try:
                link = await bucket.put(name, clip.path, media_type(request.output.format))
            except LTX2Error as error:
                log.warning("a clip was not uploaded: %s", error.message)
                failure = error
                answer["warnings"].append(f"This was not uploaded but comes another way: {error}.")
            else:
                return answer | {f"{kind}_url": link, "url_expires_at": _spelled(link)}
        size = (await asyncio.to_thread(clip.path.stat)).st_size
        if (whole := self._size_with(answer, request, size)) <= self.limit:
            return answer | await asyncio.to_thread(_inside, request, clip.path)
        if volume := self._volume():
            try:
                path = await _kept(clip.path, volume / FOLDER / name)
            except StorageFull as error:
                log.warning("a clip was not kept: %s", error.message)
                failure = failure or error
            except OSError as error:
                log.warning("the volume cannot be written: %s", error.strerror)
            else:
                return answer | {f"{kind}_path": str(path)}
        raise failure or _no_way(whole, self.limit, request.output.format)

    def sweep(self) -> None:
        """Remove results from the volume that are older than ``LTX2_FILES_HOURS``, and what was never finished.

        Only files that have such a name as this class gives them. Other workers may do the same at the same time.
        """
        volume = self._volume()
        try:
            found = list((volume / FOLDER).iterdir()) if volume else []
        except FileNotFoundError:
            return  # no result was ever kept
        except OSError as error:
            log.warning("old results cannot be removed from the volume: %s", error.strerror)
            return
        for path in found:
            # another worker may be quicker
            with contextlib.suppress(OSError):
                if path.is_file() and self._is_old(path):
                    path.unlink()

    def _is_old(self, path: Path) -> bool:
        age, keep = time.time() - path.lstat().st_mtime, 3600 * self._settings.files_hours
        if _OURS.fullmatch(path.name):
            return 0 < keep < age
        return age > STALE_SECONDS and _PARTIAL.fullmatch(path.name) is not None

    def _volume(self) -> Path | None:
        """The folder of the volume, if there is one.

        RunPod puts the models it caches below ``/runpod-volume`` also where no volume is, and what is written there is
        lost with the worker. So the default counts only where something is mounted.
        """
        folder = self._settings.volume_dir
        was_named = "volume_dir" in self._settings.model_fields_set
        # pathlib's own raise where the volume's server is gone
        return folder if os.path.isdir(folder) and (was_named or os.path.ismount(folder)) else None  # noqa: PTH112

    def _size_with(self, answer: Mapping[str, Any], request: GenerationRequest, size: int) -> int:
        """Bytes of a result with a file of this size inside."""
        kind, prefix = file_field(request)
        return size_of({**answer, kind: prefix}) + 4 * -(-size // 3)


def name_of(job_id: object, output_format: OutputFormat) -> str:
    """A name for the clip of a job: a plain one whatever the id is, and never given twice."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", str(job_id))[:64]
    return f"{plain or 'job'}-{secrets.token_hex(8)}.{output_format}"


def _inside(request: GenerationRequest, path: Path) -> dict[str, str]:
    kind, prefix = file_field(request)
    return {kind: prefix + pybase64.b64encode(path.read_bytes()).decode()}


async def _kept(path: Path, target: Path) -> Path:
    """Copy a file to the volume. No thread can be cancelled: where the task is, this waits and takes the file back."""
    copying = asyncio.ensure_future(asyncio.to_thread(_copied, path, target))
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        while not copying.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([copying])
        if copying.exception() is None:
            await asyncio.to_thread(target.unlink, missing_ok=True)
        raise


def _copied(path: Path, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    with written_beside(target) as partial:
        shutil.copyfile(path, partial)
    return target


def _spelled(link: str) -> str:
    return expires_at(link).isoformat().replace("+00:00", "Z")


def _no_way(size: int, limit: int, output_format: OutputFormat) -> LTX2Error:
    if output_format in ("mp4", "mov", "webm"):
        return too_large(size, limit, field="quality", instead="ask for a lower quality, ")
    instead = "mp4" if output_format == "gif" else "mp3"
    return too_large(size, limit, field="output_format", instead=f"ask for {instead}, ")
