"""The media of a request, decoded when they are needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ltx2.media.audio import Waveform, decode_audio, fit
from ltx2.media.footage import Source
from ltx2.media.images import decode_image
from ltx2.media.videofile import VideoLimits, inspect_video, read_frames, read_sound
from ltx2.model.lora import Lora
from ltx2.pieces import Piece, source_frames, source_start
from ltx2.plan import Plan
from ltx2.request import AudioTrack, GenerationRequest, Keyframe

NO_VIDEO = VideoLimits(0, 0.0, 0)
LOOPING = Keyframe(image="the first picture of the loop", frame="first")
"""Where a loop begins that was given no image."""


@dataclass(frozen=True)
class Inputs:
    """The media of a request, decoded when they are needed: a decoded image can have a hundred megabytes."""

    media: Mapping[str, bytes]
    max_image_megapixels: float
    max_audio_seconds: float
    video_limits: VideoLimits = NO_VIDEO
    loras: tuple[tuple[Lora, float], ...] = ()
    """What the transformer and the connectors wear, each with its scale."""
    still: NDArray[np.uint8] | None = None
    """``[h, w, 3]`` RGB: the picture that a loop begins and ends with, where no image was given."""

    def image(self, name: str) -> NDArray[np.uint8]:
        """``[h, w, 3]`` RGB."""
        if name == LOOPING.image and self.still is not None:
            return self.still
        return decode_image(self.media[name], field=name, max_megapixels=self.max_image_megapixels)

    def sound(self, track: AudioTrack, seconds: float, at: float = 0.0) -> Waveform:
        """The part of a sound that goes with so many seconds of a clip; before its beginning there is silence."""
        sound = decode_audio(self.media[track.source], field=track.source, max_seconds=self.max_audio_seconds)
        early = max(0.0, -at)
        part = fit(sound, track.start + max(0.0, at), max(0.0, seconds - early))
        before = np.zeros((part.samples.shape[0], round(early * part.sample_rate)), np.float32)
        return fit(Waveform(np.concatenate([before, part.samples], axis=1), part.sample_rate), 0.0, seconds)

    def heard(self, request: GenerationRequest, plan: Plan, piece: Piece) -> Waveform | None:
        """What goes with a piece of the sound to follow."""
        track = request.driving_audio
        if track is None:
            return None
        return self.sound(track, plan.grid_of(piece).grid_seconds, float(piece.start / request.exact_fps))

    def source(self, request: GenerationRequest) -> Source | None:
        """The video that a request changes."""
        if request.video is None:
            return None
        data, field, limits = self.media[request.video], request.video, self.video_limits
        info = inspect_video(data, field=field, limits=limits)
        is_heard = request.wants_sound and request.driving_audio is None
        return Source(
            source_start(request),
            source_frames(request),
            partial(read_frames, data, field=field, limits=limits, info=info),
            read_sound(data, field=field, limits=limits, max_seconds=limits.max_seconds) if is_heard else None,
        )
