"""The recipe of one generation."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
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
    InitialLatents,
    SoundConditioning,
    Stream,
    add_noise,
    audio_stream,
    draw_noise,
    pack_video,
    unpack_video,
    video_stream,
)
from ltx2.model.decode import decode_sound, decode_video
from ltx2.model.denoiser import Contexts
from ltx2.model.encode import encode_image, encode_sound
from ltx2.model.guidance import Guide
from ltx2.model.lora import Lora, applied
from ltx2.model.prompts import encode_prompts
from ltx2.model.sampler import denoise
from ltx2.model.schedule import Sigmas, sigmas_for
from ltx2.model.upsample import upsample
from ltx2.plan import Plan
from ltx2.recipes import ANCESTRAL_SEED_OFFSET, NEUTRAL, REFINE_SIGMAS, Kind, Sampler
from ltx2.request import AudioTrack, GenerationRequest

UNGUIDED = Guide(NEUTRAL, NEUTRAL, ())

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

    pictures: Tensor | None
    """``[1, 3, num_frames, height, width]``, -1 … 1, on the model's device. None where only the sound is wanted."""
    sound: Waveform | None
    """None where none is wanted."""


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
    report("encoding", 0, 0)
    prompts = encode_texts(components, request, plan)
    track = request.driving_audio
    heard = inputs.sound(track, plan.grid.grid_seconds) if track else None
    # one generator for all noise of a clip, as in the official code: a second stage draws on where the first ended
    noise = torch.Generator().manual_seed(request.seed or 0)
    video, audio = sample(components, request, plan, inputs, heard, prompts, noise, report, cancelled)
    report("decoding", 0, 0)
    # the sound needs no noise, so it is the same whether or not there are pictures
    pictures = None if request.is_sound_only else decode_video(components, video.tokens, plan.grid, noise)
    return Result(pictures, make_sound(components, request, heard, audio.tokens))


def sample(
    components: Components,
    request: GenerationRequest,
    plan: Plan,
    inputs: Inputs,
    heard: Waveform | None,
    prompts: tuple[Contexts, Contexts],
    noise: torch.Generator,
    report: Report = lambda *_: None,
    cancelled: Cancelled = lambda: False,
) -> tuple[Stream, Stream]:
    """Denoise both streams in one stage or two: what is left is to decode them."""
    recipe = components.recipe
    grid = plan.grid.halved if plan.stages == 2 else plan.grid
    for_video = encode_images(components, request, inputs, grid)
    for_audio = encode_track(components, request, heard, grid)
    guide = Guide(plan.video, plan.audio, recipe.stg_blocks)
    stage = Stage(grid, sigmas_for(recipe.kind, plan.steps), guide, step_noise(recipe.sampler, request.seed or 0))

    def on_step(step: int) -> None:
        report("denoising", step, plan.all_steps)

    on_step(0)
    video, audio = stage.run(components, for_video, for_audio, prompts, noise, on_step, cancelled)
    if plan.stages == 1 or (request.is_sound_only and keeps_sound(recipe.kind)):
        return video, audio

    larger = upsample(components, unpack_video(video.tokens, grid))
    for_video = encode_images(components, request, inputs, plan.grid)
    given = refined(recipe.kind, larger, audio.tokens, for_video, for_audio)
    refinement = Stage(plan.grid, REFINE_SIGMAS, UNGUIDED, loras=components.refine_loras)
    done = plan.steps
    return refinement.run(components, *given, prompts, noise, lambda step: on_step(done + step), cancelled)


def keeps_sound(kind: Kind) -> bool:
    """Whether a second stage leaves the first one's sound as it is: a dev checkpoint's is guided, and by all of it."""
    return kind == "dev"


def refined(
    kind: Kind, larger: Tensor, sound: Tensor, for_video: Iterable[Conditioning], for_audio: Iterable[Conditioning]
) -> tuple[list[Conditioning], list[Conditioning]]:
    """What a second stage knows of each stream: the first stage's result, and what the request gives.

    Args:
        kind: of the checkpoint.
        larger: ``[1, 128, F, h, w]``, the first stage's pictures, enlarged.
        sound: ``[1, T, 128]``, the first stage's sound.
        for_video, for_audio: what the request gives, images encoded at the larger size.
    """
    pictures = InitialLatents(pack_video(larger))
    if keeps_sound(kind):
        return [pictures, *for_video], [SoundConditioning(sound, strength=1.0)]
    return [pictures, *for_video], [InitialLatents(sound), *for_audio]


@dataclass(frozen=True)
class Stage:
    """One way down a schedule, on one grid."""

    grid: Grid
    sigmas: Sigmas
    guide: Guide
    step_noise: torch.Generator | None = None
    """Where an ancestral sampler's fresh noise comes from."""
    loras: tuple[tuple[Lora, float], ...] = ()
    """What the transformer wears, each with its scale."""

    def run(
        self,
        components: Components,
        for_video: Iterable[Conditioning],
        for_audio: Iterable[Conditioning],
        prompts: tuple[Contexts, Contexts],
        noise: torch.Generator,
        on_step: Callable[[int], None] = lambda _step: None,
        cancelled: Cancelled = lambda: False,
    ) -> tuple[Stream, Stream]:
        """Denoise both streams, starting from what is given and noise."""
        with ExitStack() as at_work:
            at_work.enter_context(components.using("transformer"))
            at_work.enter_context(applied(components.transformer, self.loras))
            streams = start(
                components.transformer, self.grid, components.device, for_video, for_audio, noise, self.sigmas[0]
            )
            return denoise(
                components.denoiser,
                *streams,
                self.sigmas,
                *prompts,
                self.guide,
                step_noise=self.step_noise,
                on_step=on_step,
                cancelled=cancelled,
            )


def encode_texts(components: Components, request: GenerationRequest, plan: Plan) -> tuple[Contexts, Contexts]:
    """The contexts of the prompt and of the negative prompt (the former again when it is not needed)."""
    is_guided = plan.video.cfg != 1 or plan.audio.cfg != 1
    positive, negative = encode_prompts(
        components, request.prompt, plan.negative_prompt if is_guided else request.prompt
    )
    return positive, negative


def encode_images(components: Components, request: GenerationRequest, inputs: Inputs, grid: Grid) -> list[Conditioning]:
    """What the images say about the video stream of a grid."""
    if not request.shown_keyframes:
        return []
    # the VAE comes once for all of them
    with components.using("vae"):
        return [
            ImageConditioning(
                encode_image(components, inputs.image(keyframe.image), grid),
                keyframe.index(request.length),
                keyframe.strength,
                float(grid.fps),
            )
            for keyframe in request.shown_keyframes
        ]


def encode_track(
    components: Components, request: GenerationRequest, heard: Waveform | None, grid: Grid
) -> list[Conditioning]:
    """What the sound, as long as the grid, says about the audio stream."""
    track = request.driving_audio
    if track is None or heard is None:
        return []
    return [SoundConditioning(encode_sound(components, heard, grid), track.strength)]


def start(
    transformer: Any,
    grid: Grid,
    device: torch.device,
    for_video: Iterable[Conditioning],
    for_audio: Iterable[Conditioning],
    noise: torch.Generator,
    sigma: float,
) -> tuple[Stream, Stream]:
    """Both streams with all that is given, noised to level ``sigma``."""
    video, audio = video_stream(transformer, grid, device), audio_stream(transformer, grid, device)
    for conditioning in for_video:
        video = conditioning.apply(video)
    for conditioning in for_audio:
        audio = conditioning.apply(audio)
    drawn = draw_noise(noise, video, audio)
    return add_noise(video, drawn[0], sigma), add_noise(audio, drawn[1], sigma)


def step_noise(sampler: Sampler, seed: int) -> torch.Generator | None:
    """Where an ancestral sampler's fresh noise comes from; none for plain Euler."""
    return torch.Generator().manual_seed(seed + ANCESTRAL_SEED_OFFSET) if sampler == "euler_ancestral" else None


def make_sound(
    components: Components, request: GenerationRequest, heard: Waveform | None, tokens: Tensor
) -> Waveform | None:
    """The sound track: the given sound itself if the clip follows it strictly, else the generated one."""
    if not request.wants_sound:
        return None
    track = request.driving_audio
    if track is not None and track.strength == 1 and heard is not None:
        return fit(heard, 0.0, float(request.length / request.exact_fps))
    return decode_sound(components, tokens)
