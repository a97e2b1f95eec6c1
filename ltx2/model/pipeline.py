"""The recipe of one generation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltx2.engine import Cancelled, Phase
from ltx2.geometry import Grid
from ltx2.media.audio import Waveform, decode_audio, fit
from ltx2.media.images import decode_image
from ltx2.model.components import Components
from ltx2.model.conditioning import (
    Conditioning,
    ImageConditioning,
    SoundConditioning,
    Stream,
    add_noise,
    audio_stream,
    draw_noise,
    video_stream,
)
from ltx2.model.decode import decode_sound, decode_video
from ltx2.model.denoiser import Contexts
from ltx2.model.encode import encode_image, encode_sound
from ltx2.model.guidance import Guide
from ltx2.model.prompts import encode_prompt
from ltx2.model.sampler import denoise
from ltx2.model.schedule import sigmas_for
from ltx2.plan import Plan
from ltx2.recipes import ANCESTRAL_SEED_OFFSET, Sampler
from ltx2.request import AudioTrack, GenerationRequest

Report = Callable[[Phase, int, int], None]
"""Told a phase and, while denoising, the finished step and the number of steps."""


@dataclass(frozen=True)
class Inputs:
    """The media of a request, decoded when they are needed: a decoded image can have a hundred megabytes."""

    media: Mapping[str, bytes]
    max_image_megapixels: float
    max_audio_seconds: float

    def image(self, name: str) -> NDArray[np.uint8]:
        """``[h, w, 3]`` RGB."""
        return decode_image(self.media[name], field=name, max_megapixels=self.max_image_megapixels)

    def sound(self, track: AudioTrack, seconds: float) -> Waveform:
        """The part of a sound that goes with a clip of this length."""
        sound = decode_audio(self.media[track.source], field=track.source, max_seconds=self.max_audio_seconds)
        return fit(sound, track.start, seconds)


@dataclass(frozen=True)
class Result:
    """A decoded clip, not yet a file."""

    pictures: Tensor
    """``[1, 3, num_frames, height, width]``, -1 … 1, on the model's device."""
    sound: Waveform | None


@torch.inference_mode()
def generate(
    components: Components,
    request: GenerationRequest,
    plan: Plan,
    inputs: Inputs,
    report: Report = lambda *_: None,
    cancelled: Cancelled = lambda: False,
) -> Result:
    """Make the pictures and the sound of a request.

    Raises:
        Canceled: ``cancelled()`` answered True at a step.
    """
    recipe, grid, seed = components.recipe, request.grid, request.seed or 0

    report("encoding", 0, 0)
    positive, negative = encode_prompts(components, request, plan)
    track = request.driving_audio
    heard = inputs.sound(track, grid.grid_seconds) if track else None
    for_video, for_audio = encode_inputs(components, request, inputs, heard)

    report("denoising", 0, plan.steps)
    sigmas = sigmas_for(recipe.kind, plan.steps)
    video, audio = start(components.transformer, grid, components.device, for_video, for_audio, seed, sigmas[0])
    video, audio = denoise(
        components.denoiser,
        video,
        audio,
        sigmas,
        positive,
        negative,
        Guide(plan.video, plan.audio, recipe.stg_blocks),
        step_noise=step_noise(recipe.sampler, seed),
        on_step=lambda step: report("denoising", step, plan.steps),
        cancelled=cancelled,
    )

    report("decoding", 0, 0)
    pictures = decode_video(components, video.tokens, grid)
    return Result(pictures, make_sound(components, request, heard, audio.tokens))


def encode_prompts(components: Components, request: GenerationRequest, plan: Plan) -> tuple[Contexts, Contexts]:
    """The contexts of the prompt and of the negative prompt (the former again when it is not needed)."""
    positive = encode_prompt(components, request.prompt)
    if plan.video.cfg == 1 and plan.audio.cfg == 1:
        return positive, positive
    return positive, encode_prompt(components, plan.negative_prompt)


def encode_inputs(
    components: Components, request: GenerationRequest, inputs: Inputs, heard: Waveform | None
) -> tuple[list[Conditioning], list[Conditioning]]:
    """What the images say about the video stream, and the sound, as long as the grid, about the audio stream."""
    grid = request.grid
    for_video: list[Conditioning] = [
        ImageConditioning(
            encode_image(components, inputs.image(keyframe.image), grid),
            keyframe.index(request.num_frames),
            keyframe.strength,
            float(grid.fps),
        )
        for keyframe in request.shown_keyframes
    ]
    for_audio: list[Conditioning] = []
    track = request.driving_audio
    if track is not None and heard is not None:
        for_audio.append(SoundConditioning(encode_sound(components, heard, grid), track.strength))
    return for_video, for_audio


def start(
    transformer: Any,
    grid: Grid,
    device: torch.device,
    for_video: Iterable[Conditioning],
    for_audio: Iterable[Conditioning],
    seed: int,
    sigma: float,
) -> tuple[Stream, Stream]:
    """Both streams with all that is given, noised to level ``sigma`` from a seed."""
    video, audio = video_stream(transformer, grid, device), audio_stream(transformer, grid, device)
    for conditioning in for_video:
        video = conditioning.apply(video)
    for conditioning in for_audio:
        audio = conditioning.apply(audio)
    noise = draw_noise(torch.Generator().manual_seed(seed), video, audio)
    return add_noise(video, noise[0], sigma), add_noise(audio, noise[1], sigma)


def step_noise(sampler: Sampler, seed: int) -> torch.Generator | None:
    """Where an ancestral sampler's fresh noise comes from; none for plain Euler."""
    return torch.Generator().manual_seed(seed + ANCESTRAL_SEED_OFFSET) if sampler == "euler_ancestral" else None


def make_sound(
    components: Components, request: GenerationRequest, heard: Waveform | None, tokens: Tensor
) -> Waveform | None:
    """The sound track: the given sound itself if the clip follows it strictly, else the generated one."""
    if not request.include_audio:
        return None
    track = request.driving_audio
    if track is not None and track.strength == 1 and heard is not None:
        return fit(heard, 0.0, request.grid.seconds)
    return decode_sound(components, tokens)
