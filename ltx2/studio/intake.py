"""What is checked before a request may wait for the model."""

from ltx2.errors import InvalidRequest
from ltx2.media.audio import decode_audio
from ltx2.media.images import decode_image
from ltx2.media.sources import resolve
from ltx2.payload import Sources
from ltx2.request import GenerationRequest
from ltx2.settings import Settings


def take_in(request: GenerationRequest, sources: Sources, settings: Settings) -> dict[str, bytes]:
    """The bytes of everything a request names, known to be usable.

    Everything is decoded once here, and again by the engine when it is needed, so that a wrong file is
    refused at once and not after an hour in the queue.

    Raises:
        InvalidRequest: naming the field.
    """
    request.check_limits(settings)
    media = resolve(sources, settings)
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
    return media
