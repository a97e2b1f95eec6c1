"""What is fetched and checked before a request may wait for the model."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from fractions import Fraction
from math import ceil

from ltx2.errors import InvalidRequest, MediaTooLarge, NotFound, UnknownFile
from ltx2.geometry import extend_frames
from ltx2.loras import check_loras
from ltx2.media.audio import Waveform, decode_audio
from ltx2.media.fetch import fetch
from ltx2.media.images import decode_image
from ltx2.media.sources import decode_source, file_id_of, is_web_url, job_id_of
from ltx2.media.videofile import VideoInfo, VideoLimits, inspect_video, read_sound
from ltx2.payload import Source, Sources
from ltx2.pieces import check_keyframes
from ltx2.request import SIDES, GenerationRequest, Retake
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
    if request.video is not None:  # its size and its length are not known yet
        request = request.model_copy(update={"width": SIDES[0], "height": SIDES[0], "num_frames": None})
    request.check_limits(settings)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(executor, check_loras, request, settings)
    media: dict[str, bytes] = {}
    deadline = loop.time() + settings.url_seconds
    for name, source in sources.items():
        left = settings.max_body_bytes - sum(map(len, media.values()))
        seconds = max(0.1, deadline - loop.time())
        media[name] = await take(name, source, settings, executor, read_file, limit=left, seconds=seconds)
    return await loop.run_in_executor(executor, _settled, request, media, settings), media


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
    if job_id_of(source) is not None:
        raise UnknownFile("a job can be named as the video only, and only where its clip was made", field=name)
    if file_id is None:
        return decode_source(source, name, settings)
    try:
        return read_file(file_id)
    except NotFound as error:
        raise UnknownFile(error.message, field=name) from None


def _settled(request: GenerationRequest, media: dict[str, bytes], settings: Settings) -> GenerationRequest:
    """Decode everything once, and give the request what only its media can tell."""
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
        if request.num_frames is None and request.video is None and request.driving_audio is not None:
            request = request.lasting(min(_frames_of(sound, track.start, request), settings.max_num_frames))
    if request.video is not None:
        request = _with_video(request, media[request.video], request.video, settings)
        request.check_limits(settings)
    return request


def _frames_of(sound: Waveform, start: float, request: GenerationRequest) -> int:
    """How many frames a clip needs to be as long as a sound is from a second on, rounded up."""
    left = Fraction(sound.samples.shape[1], sound.sample_rate) - Fraction(str(start))
    return ceil(left * request.exact_fps)


def _with_video(request: GenerationRequest, data: bytes, field: str, settings: Settings) -> GenerationRequest:
    """The request with the size, the rate and the length that its video gives it."""
    limits = VideoLimits.of(settings)
    info = inspect_video(data, field=field, limits=limits)
    if info.has_sound and request.wants_sound and request.driving_audio is None:
        read_sound(data, field=field, limits=limits, max_seconds=limits.max_seconds)
    num_frames, retake = info.num_frames, request.retake
    if request.extend is not None:
        num_frames += extend_frames(request.extend.seconds, info.fps)
        if num_frames > limits.max_frames:
            raise InvalidRequest(
                f"the video would have {num_frames} frames then, more than the {limits.max_frames} allowed here",
                field="extend.seconds",
                hint=f"it has {info.num_frames} frames now, {float(info.fps):g} a second",
            )
    if retake is not None:
        retake = _within(retake, info)
    size = {"width": info.width, "height": info.height, "fps": float(info.fps), "num_frames": num_frames}
    request = request.model_copy(update={**size, "retake": retake})
    check_keyframes(request, settings.piece_seconds)
    return request


def _within(retake: Retake, info: VideoInfo) -> Retake:
    """The part of a video to be made anew. A time is rarely known to the frame, so it may end a little late."""
    seconds = info.num_frames / info.fps
    said = f"the video ends at {float(seconds):.5g} s"
    if retake.start >= seconds:
        raise InvalidRequest(said, field="retake.start")
    if Fraction(str(retake.end)) > seconds + 1 / info.fps:
        raise InvalidRequest(said, field="retake.end", hint="end with it, or extend it")
    return retake.model_copy(update={"end": min(retake.end, float(seconds))})
