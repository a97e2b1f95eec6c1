"""What is fetched and checked before a request may wait for the model."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from ltx2.errors import InvalidRequest, MediaTooLarge, NotFound, UnknownFile
from ltx2.media.audio import decode_audio
from ltx2.media.fetch import fetch
from ltx2.media.images import decode_image
from ltx2.media.sources import decode_source, file_id_of, is_web_url
from ltx2.payload import Source, Sources
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

Reader = Callable[[str], bytes]
"""Gives the bytes of a file by its id; raises NotFound."""


def no_files(file_id: str) -> bytes:
    """The reader where there is no file store."""
    raise NotFound(f"there are no files here, so none is called {file_id}")


async def take_in(
    request: GenerationRequest, sources: Sources, settings: Settings, executor: Executor, read_file: Reader = no_files
) -> tuple[GenerationRequest, dict[str, bytes]]:
    """The bytes of everything a request names, known to be usable, and the request as they settle it.

    Everything is decoded once here, and again by the engine when it is needed, so that a wrong file is
    refused at once and not after an hour in the queue.

    Args:
        request: checked against no limits yet.
        sources: of the media it names.
        settings: limits.
        executor: for the threads that decode.
        read_file: for sources that are file ids.

    Raises:
        InvalidRequest: naming the field.
    """
    request.check_limits(settings)
    loop = asyncio.get_running_loop()
    media: dict[str, bytes] = {}
    deadline = loop.time() + settings.url_seconds
    for name, source in sources.items():
        left = settings.max_body_bytes - sum(map(len, media.values()))
        seconds = max(0.1, deadline - loop.time())
        media[name] = await take(name, source, settings, executor, read_file, limit=left, seconds=seconds)
    await loop.run_in_executor(executor, _check, request, media, settings)
    return request, media


async def take(
    name: str,
    source: Source,
    settings: Settings,
    executor: Executor,
    read_file: Reader = no_files,
    *,
    limit: int | None = None,
    seconds: float | None = None,
) -> bytes:
    """The bytes of one source, which may be anything.

    Args:
        name: of the field it was sent in.
        source: of the bytes.
        settings: limits.
        executor: for the threads that decode.
        read_file: for sources that are file ids.
        limit: bytes at most; as many as in a body when absent.
        seconds: how long fetching it may take; as the settings say when absent.

    Raises:
        InvalidRequest: naming the field.
    """
    limit = settings.max_body_bytes if limit is None else limit
    if isinstance(source, str) and is_web_url(source):
        seconds = settings.url_seconds if seconds is None else seconds
        return await fetch(source, field=name, limit=limit, allow=settings.allowed_targets, seconds=seconds)
    loop = asyncio.get_running_loop()
    data = await loop.run_in_executor(executor, _read, name, source, settings, read_file)
    if len(data) > limit:
        raise MediaTooLarge("all media together are more than allowed here", field=name)
    return data


def _read(name: str, source: Source, settings: Settings, read_file: Reader) -> bytes:
    file_id = file_id_of(source)
    if file_id is None:
        return decode_source(source, name, settings)
    try:
        return read_file(file_id)
    except NotFound as error:
        raise UnknownFile(error.message, field=name) from None


def _check(request: GenerationRequest, media: dict[str, bytes], settings: Settings) -> None:
    for keyframe in request.keyframes:
        decode_image(media[keyframe.image], field=keyframe.image, max_megapixels=settings.max_image_megapixels)
    track = request.audio
    if track is not None:
        sound = decode_audio(media[track.source], field=track.source, max_seconds=settings.max_audio_seconds)
        if track.start >= sound.seconds:
            raise InvalidRequest(
                f"the sound has {sound.seconds:.3g} seconds, so nothing of it is left after {track.start:g}",
                field="audio_start",
            )
